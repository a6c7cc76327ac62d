"Who writes: a language model in this process, one behind a server, good or bad, one that sees the gaps."
import asyncio
import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants as hub
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor
from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig
from transformers import LlavaForConditionalGeneration, LlavaProcessor, OPTConfig, PreTrainedTokenizerFast

from sail_nbdev import gaps as gaps_module
from sail_nbdev import writers as module
from sail_nbdev.core import InputError, Video, read_json, write_json
from sail_nbdev.data import read_annotations
from sail_nbdev.gaps import SEEN, AnswerCache, Gap, _echoes, augment
from sail_nbdev.gaps import find_gaps, messages, tidy, write_synthetic
from sail_nbdev.store import FeatureStore
from sail_nbdev.toyworld import World, write_script, write_video
from sail_nbdev.writers import OpenAIBackend, TransformersBackend, VisionBackend, small_model

BOXES = ("a", "a heavy", "a very heavy and quite large")
GAPS = [Gap("v", i, f"A man lifts {a} box.", "He puts it down.") for i, a in enumerate(BOXES)]
TEXT = "He carries the box."


def texts(backend, gaps, seed=0):
    "Answers in the order of the gaps."
    return [a.text for _, a in sorted(backend.write(gaps, seed), key=lambda o: o[0])]


def rows(folder, name="synthetic.sqlite"):
    "What the cache of answers holds."
    return list(AnswerCache(folder/name).rows.values())


# -- a language model in this process

TEMPLATE = ("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
            "{% if enable_thinking is defined and not enable_thinking %} no thinking{% endif %}\n")


def byte_tokenizer():
    "A tokenizer of 400 tokens with a chat template."
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet,
                                  show_progress=False)
    tok.train_from_iterator([m["content"] for g in GAPS for m in messages(g)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A random Llama of two layers, saved as any model is."
    fast = byte_tokenizer()
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, eos_token_id=0, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_a_language_model_writes(tiny):
    backend = TransformersBackend(str(tiny), device="cpu", batch_size=2, max_new_tokens=8)
    prompt = backend.tokenizer.decode(backend._prompt(GAPS[1]))
    assert prompt.startswith("[system] You are an expert") and "A man lifts a heavy box." in prompt
    assert prompt.rstrip().endswith("[assistant] no thinking")
    first = texts(backend, GAPS, seed=1)
    assert len(first) == 3 and all(isinstance(t, str) and "[user]" not in t for t in first)
    assert texts(backend, GAPS, seed=1) == first != texts(backend, GAPS, seed=2)
    for i, a in backend.write(GAPS, 1):
        assert a.tokens[0] == len(backend._prompt(GAPS[i])) and 0 < a.tokens[1] <= 8


def test_greedy_answers_depend_neither_on_the_batch_nor_on_what_was_read_before(tiny, monkeypatch):
    "The shared start of the prompts, read once, and padding between it and the rest change no token."
    def greedy(batch_size):
        return TransformersBackend(str(tiny), "cpu", batch_size, max_new_tokens=6, temperature=0)
    backend = greedy(3)
    together = texts(backend, GAPS)
    alone = texts(greedy(1), GAPS)
    shortest = min(len(backend._prompt(g)) for g in GAPS)
    assert backend.start is not None and len(backend.start[0]) > .5 * shortest
    monkeypatch.setattr(module, "_common", lambda prompts: 0)
    assert together == alone == texts(greedy(3), GAPS) == texts(greedy(1), GAPS)


def test_a_prompt_that_is_too_long_is_an_error_of_its_gap(tiny):
    backend = TransformersBackend(str(tiny), device="cpu", max_new_tokens=8)
    backend.model.config.max_position_embeddings = len(backend._prompt(GAPS[0])) + 8
    answers = dict(backend.write([GAPS[0], Gap("v", 1, "A man " * 900, "He stops.")], 0))
    assert answers[0].error is None
    assert answers[1].text is None and "tokens, the model reads" in answers[1].error


def test_no_such_model(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="model Qwen/Qwen3-8B: neither a folder nor a .gguf file here"):
        TransformersBackend(device="cpu")
    with pytest.raises(InputError, match="language model .*none.gguf"):
        TransformersBackend(str(tmp_path/"none.gguf"), device="cpu")


# -- a server

class Server:
    "An OpenAI-compatible server that answers by a list of behaviours, then well."

    def __init__(self, pause=.05, hang=3.):
        self.pause = pause
        self.hang = hang                # seconds of a question that hangs
        self.seen = []                  # questions
        self.keys = set()               # of those who asked
        self.busy = 0                   # questions under way
        self.most = 0                   # at any time
        self.plan = []                  # what to do with the next questions
        self.lock = threading.Lock()
        handler = type("Handler", (Handler,), {"outer": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def begin(self):
        "What to do with a question that comes."
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
            return self.plan.pop(0) if self.plan else "well"

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def body(behaviour, key):
    "The text of a reply."
    if isinstance(behaviour, int): return json.dumps({"error": {"message": f"no, {key}"}})
    if behaviour == "broken": return '{"choices": ['
    text = behaviour[1] if isinstance(behaviour, tuple) else TEXT
    if behaviour == "huge": text = "word " * 400_000
    message = {"role": "assistant", "content": text}
    choices = [] if behaviour == "none" else [{"index": 0, "finish_reason": "stop", "message": message}]
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices,
                       "usage": {"prompt_tokens": 200, "completion_tokens": 5, "total_tokens": 205}})


class Handler(BaseHTTPRequestHandler):
    outer: Server

    def do_POST(self):
        behaviour = self.outer.begin()
        self.outer.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.outer.keys.add(self.headers["Authorization"])
        time.sleep(self.outer.hang if behaviour == "hang" else self.outer.pause)
        with self.outer.lock: self.outer.busy -= 1
        text = body(behaviour, self.headers["Authorization"]).encode()
        try:
            self.send_response(behaviour if isinstance(behaviour, int) else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(text)
        except (BrokenPipeError, ConnectionResetError): pass        # the client is gone, as it may be

    def log_message(self, *_): pass


@pytest.fixture
def server():
    pytest.importorskip("openai")
    s = Server()
    yield s
    s.close()


def boxes(n, videos=1):
    "Videos of `n` captions each."
    return {f"v{j}": Video(f"v{j}", tuple(f"A man lifts box {j * n + i}." for i in range(n)))
            for j in range(videos)}


def test_a_server_answers(server):
    answers = list(OpenAIBackend("m", server.url, concurrency=3).write([*GAPS, *GAPS], seed=0))
    assert sorted(i for i, _ in answers) == [*range(6)]
    assert {a.text for _, a in answers} == {TEXT} and {a.tokens for _, a in answers} == {(200, 5)}
    assert 1 < server.most <= 3
    question = server.seen[0]
    assert question["model"] == "m" and question["messages"][0]["role"] == "system"
    assert isinstance(question["seed"], int)


def test_a_server_answers_inside_a_running_event_loop(server):
    "As in a notebook."
    async def cell(): return texts(OpenAIBackend("m", server.url), GAPS)
    assert asyncio.run(cell()) == [TEXT] * 3


def test_a_busy_server_is_asked_again(server):
    server.plan = [429, 500, 503]
    assert texts(OpenAIBackend("m", server.url, concurrency=1), GAPS) == [TEXT] * 3
    assert len(server.seen) == 6


ONE_QUESTION = [(400, "refuses the question (400)"), (422, "refuses the question (422)"),
                ("broken", "something that is not JSON"), ("none", "answers without a text")]


@pytest.mark.parametrize("behaviour, message", ONE_QUESTION)
def test_what_goes_wrong_with_one_question_leaves_the_others_alone(server, tmp_path, behaviour, message):
    "Even if it goes wrong three times; a second run asks for that gap only."
    def ask():
        backend = OpenAIBackend("m", server.url, concurrency=1, retries=0)
        return augment(boxes(5), backend, tmp_path/"c.sqlite", progress=False)
    server.plan = ["well", behaviour, "well", "well", behaviour, behaviour]
    captions, summary = ask()
    assert [c is None for c in captions["v0"]] == [False, True, False, False] and summary["used"] == 3
    error, = summary["errors"]
    assert error.startswith("video v0, gap 2: ") and error.endswith(message)
    asked = len(server.seen)
    captions, summary = ask()
    assert captions == {"v0": [TEXT] * 4} and summary["errors"] == [] and len(server.seen) == asked + 1


def test_a_huge_answer_is_cut_and_rejected(server, tmp_path):
    server.plan = ["huge"]
    backend = OpenAIBackend("m", server.url, concurrency=1)
    captions, summary = augment(boxes(2), backend, tmp_path/"c.sqlite", progress=False)
    assert captions == {"v0": [TEXT]} and summary["tries"][0]["rejected"] == {"too long": 1}
    assert len(json.dumps(rows(tmp_path, "c.sqlite"))) < 20_000


def test_half_a_character_does_no_harm(server, tmp_path):
    "A lone surrogate, which JSON can carry and UTF-8 cannot."
    server.plan = [("text", "He wipes the \ud83d floor.")]
    backend = OpenAIBackend("m", server.url)
    summary = write_synthetic(boxes(2), tmp_path/"synthetic.json", backend, progress=False)
    assert summary["used"] == 1 and read_json(tmp_path/"synthetic.json") == {"v0": ["He wipes the floor."]}


ALL_QUESTIONS = [
    (401, "refuses the key in OPENAI_API_KEY (401)"), (404, "knows no model 'm' (404)"), (500, "fails (500)"),
    (403, "does not allow this with the key in OPENAI_API_KEY (403)"), (429, "is too busy"),
    ("hang", "did not answer within 0.5 s, asked 2 times")]


@pytest.mark.parametrize("behaviour, message", ALL_QUESTIONS)
def test_what_goes_wrong_with_all_questions_stops_and_keeps_the_answers(
        server, tmp_path, monkeypatch, behaviour, message):
    "The key is in no message and in no file."
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    def ask():
        backend = OpenAIBackend("m", server.url, concurrency=1, retries=1, timeout=.5)
        return augment(boxes(8), backend, tmp_path/"c.sqlite", progress=False)
    server.plan = ["well", "well", *[behaviour] * 30]
    begin = time.time()
    with pytest.raises(InputError) as e: ask()
    text = str(e.value)
    assert time.time() - begin < 12
    assert text.startswith(server.url) and message in text and "run it again" in text and "secret" not in text
    assert len(rows(tmp_path, "c.sqlite")) == 2
    time.sleep(.2)
    server.plan = []
    asked = len(server.seen)
    assert ask()[0] == {"v0": [TEXT] * 7} and len(server.seen) == asked + 5
    assert server.keys == {"Bearer sk-very-secret"}
    assert not any(b"secret" in f.read_bytes() for f in tmp_path.iterdir())


def test_work_that_is_stopped_is_called_off(server):
    "Who stops listening pays for no further questions, and no thread is left."
    before = threading.active_count()
    answers = OpenAIBackend("m", server.url, concurrency=2).write(find_gaps(boxes(40)), 0)
    next(answers)
    answers.close()
    time.sleep(.3)
    assert len(server.seen) <= 6
    assert threading.active_count() <= before + 2           # the server's own threads


def test_no_server_and_no_key_are_one_sentence(monkeypatch):
    pytest.importorskip("openai")
    with pytest.raises(InputError, match="127.0.0.1:9/v1: cannot be reached"):
        texts(OpenAIBackend("m", "http://127.0.0.1:9/v1", retries=0), GAPS[:1])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="needs OPENAI_API_KEY in the environment, or --base_url"):
        OpenAIBackend("m")


# -- threads

class Interrupted:
    "A queue of answers at which Ctrl-C comes first, when all but the slow answer are there."

    def __init__(self, done):
        self.done = done
        self.empty = done.empty
        self.interrupted = False

    def get(self):
        if self.interrupted: return self.done.get()
        self.interrupted = True
        while self.done.qsize() < 2: time.sleep(.01)
        raise KeyboardInterrupt


def test_an_interrupt_gives_out_what_is_answered_first(monkeypatch):
    start = module._start_threads
    monkeypatch.setattr(module, "_start_threads", lambda *args: Interrupted(start(*args)))
    answers = []
    def answer(x):
        if x == "slow": time.sleep(1)
        return x.upper()
    with pytest.raises(KeyboardInterrupt):
        for o in module._in_threads(answer, ["a", "slow", "b", "c"], 3): answers.append(o)
    assert set(answers) == {(0, "A"), (2, "B")}


def test_an_error_gives_out_what_is_answered_first():
    "The late answer is there when the error is read."
    pauses = {"bad": .2, "a": 0., "late": .4}
    answers = []
    def answer(x):
        time.sleep(pauses[x])
        if x == "bad": raise ValueError("bad")
        return x
    with pytest.raises(ValueError, match="bad"):
        for _, x in module._in_threads(answer, list(pauses), 3):
            answers.append(x)
            time.sleep(.6)
    assert answers == ["a", "late"]


def test_no_question_is_begun_before_an_answer_is_kept():
    "Two threads: one answer is being kept, so one more at most has been asked."
    asked = []
    for k, _ in enumerate(module._in_threads(asked.append, list(range(6)), 2)):
        time.sleep(.05)
        assert len(asked) <= k + 2
    assert sorted(asked) == list(range(6))


STOPPED = """
import sys
from pathlib import Path
from sail_nbdev.data import read_annotations
from sail_nbdev.gaps import write_synthetic
from sail_nbdev.writers import OpenAIBackend
folder = Path(sys.argv[1])
backend = OpenAIBackend("m", sys.argv[2], concurrency=4)
write_synthetic(read_annotations(folder/"train.json"), folder/"synthetic.json", backend, progress=False)
"""


def prepare(folder, n=9, videos=10):
    write_json(folder/"train.json", {v: {"sentences": list(o.captions)} for v, o in boxes(n, videos).items()})


@pytest.mark.slow
def test_ctrl_c_ends_at_once_while_the_server_thinks(server, tmp_path):
    "Ten answers, then four questions that hang for half a minute."
    prepare(tmp_path)
    server.hang = 30.
    server.plan = ["well"] * 10 + ["hang"] * 99
    program = [sys.executable, "-c", STOPPED, tmp_path, server.url]
    p = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    begin = time.time()
    while len(server.seen) < 14 and time.time() - begin < 60: time.sleep(.02)
    time.sleep(.3)
    begin = time.time()
    p.send_signal(signal.SIGINT)
    _, errors = p.communicate()
    assert time.time() - begin < 8 and p.returncode != 0 and "KeyboardInterrupt" in errors, errors
    assert len(rows(tmp_path)) == 10


# -- killed, and shared

def write_all(folder, url, concurrency, lease):
    "What the command does, in a process that can be killed."
    gaps_module.LEASE = lease
    backend = OpenAIBackend("m", url, concurrency)
    write_synthetic(read_annotations(folder/"train.json"), folder/"synthetic.json", backend, progress=False)


def start(*args):
    "A process that begins with the package already imported."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sail_nbdev.writers"])
    p = context.Process(target=write_all, args=args)
    p.start()
    return p


def kill_after_three(p, cache):
    "kill -9 as soon as there are three answers more."
    cache.refresh()
    before = len(cache.rows)
    begin = time.time()
    while len(cache.rows) < before + 3 and time.time() - begin < 60:
        time.sleep(.02)
        cache.refresh()
    p.kill()
    p.join()
    cache.refresh()
    assert p.exitcode == -signal.SIGKILL and len(cache.rows) > before


@pytest.mark.slow
def test_killed_ten_times_and_continued(tmp_path):
    "No answer is lost, none is kept twice, and every video has its N - 1 in the end."
    pytest.importorskip("openai")
    prepare(tmp_path)                                                               # 80 gaps
    server = Server(pause=.1)
    server.plan = [("text", f"A man lifts box {i}.") for i in range(0, 60, 2)]      # some echoes on the way
    cache = AnswerCache(tmp_path/"synthetic.sqlite")
    for _ in range(10): kill_after_three(start(tmp_path, server.url, 2, .3), cache)
    p = start(tmp_path, server.url, 8, .3)
    p.join()
    captions = read_json(tmp_path/"synthetic.json")
    keys = [row["key"] for row in rows(tmp_path)]
    assert p.exitcode == 0 and read_json(tmp_path/"synthetic.summary.json")["used"] == 80
    assert [len(c) for c in captions.values()] == [8] * 10 and all(c for cs in captions.values() for c in cs)
    assert len(keys) == len(set(keys))
    assert len(server.seen) <= len(keys) + 10 * 2           # what was under way when it was killed
    assert {(r["video"], r["gap"]) for r in rows(tmp_path)} == {(v, i) for v in captions for i in range(8)}
    server.close()


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    "Nothing is asked twice, both end with the same captions, and a third finds all there."
    pytest.importorskip("openai")
    prepare(tmp_path)
    server = Server(pause=.05)
    processes = [start(tmp_path, server.url, 2, 15.) for _ in range(2)]
    for p in processes: p.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(server.seen) == len(rows(tmp_path)) == 80
    p = start(tmp_path, server.url, 2, 15.)
    p.join()
    assert p.exitcode == 0 and len(server.seen) == 80
    server.close()


# -- a model that sees

COLORS = dict(red=(220, 30, 30), green=(30, 170, 60), blue=(40, 60, 220), purple=(140, 40, 180),
              white=(240, 240, 240))


def flat(color):
    return np.full((32, 32, 3), COLORS[color], np.uint8)


def word_tokenizer(more=()):
    "One token per word, and the marks that a model needs."
    words = ["<pad>", "<s>", "</s>", "<unk>", *more, *"a wall that is".split(), *COLORS]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   unk_token="<unk>", additional_special_tokens=list(more))


SMALL = dict(hidden_size=32, num_attention_heads=2)


def random_blip(processor):
    "A BLIP-2 of one layer everywhere."
    tok = processor.tokenizer
    language = OPTConfig(vocab_size=len(tok), ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64,
                         pad_token_id=0, bos_token_id=1, eos_token_id=2, dropout=0., num_hidden_layers=1,
                         **SMALL)
    vision = dict(intermediate_size=64, image_size=32, patch_size=16, num_hidden_layers=1, **SMALL)
    between = dict(vocab_size=16, intermediate_size=64, encoder_hidden_size=32, hidden_dropout_prob=0.,
                   attention_probs_dropout_prob=0., num_hidden_layers=1, **SMALL)
    torch.manual_seed(0)
    return Blip2ForConditionalGeneration(Blip2Config(
        num_query_tokens=4, image_token_index=tok.convert_tokens_to_ids("<image>"),
        text_config=language.to_dict(), vision_config=vision, qformer_config=between))


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    "A BLIP-2 that has learnt to say `a wall that is COLOUR`, saved as any model is."
    folder = tmp_path_factory.mktemp("blip")
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    processor = Blip2Processor(pictures, word_tokenizer(), num_query_tokens=4)
    model = random_blip(processor)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x = processor(images=[Image.fromarray(flat(c)) for c in COLORS],
                  text=[f"<s> a wall that is {c} </s>" for c in COLORS], return_tensors="pt")
    labels = x["input_ids"].masked_fill(torch.arange(x["input_ids"].shape[1]) < 5, -100)
    for _ in range(300):
        optimizer.zero_grad()
        loss = model(**x, labels=labels).loss
        loss.backward()
        optimizer.step()
        if loss < .02: break
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


IMAGE_TEMPLATE = ("{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image> "
                  "{% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}a wall")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    "A random LLaVA with a chat template, which reads several frames."
    folder = tmp_path_factory.mktemp("llava")
    tok = word_tokenizer(("<image>",))
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(pictures, tok, patch_size=16, vision_feature_select_strategy="default",
                               num_additional_image_tokens=1, chat_template=IMAGE_TEMPLATE)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=32, intermediate_size=64,
                              num_hidden_layers=2, **SMALL)
    language = LlamaConfig(vocab_size=len(tok), pad_token_id=0, bos_token_id=1, eos_token_id=2,
                           intermediate_size=64, num_hidden_layers=2, **SMALL)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=language,
                         image_token_index=tok.convert_tokens_to_ids("<image>"))
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


PARTS = {"v_one": [("red", 3), ("green", 3), ("blue", 10), ("purple", 4), ("white", 4)],
         "v_two": [("white", 9), ("purple", 3), ("red", 6)]}
SENTENCES = {"v_one": ["The red wall stands there.", "Now we see blue paint.", "At last white paint."],
             "v_two": ["There is white paint.", "Red paint, at the end."]}
ANSWERS = {"v_one": ["A wall that is green.", "A wall that is purple."], "v_two": ["A wall that is purple."]}


@pytest.fixture
def walls(tmp_path):
    """A data folder of two videos whose gaps have colours that no event of theirs has.
    The time stamps are wrong, and are there to be read by nobody."""
    data = tmp_path/"data"
    directions = dict(zip(COLORS, torch.eye(5)))
    frames = FeatureStore.create(data/"features", dim=5)
    embeddings = FeatureStore.create(data/"text", dim=5)
    write_json(data/"annotations"/"train.json", {
        v: {"duration": sum(s for _, s in parts), "sentences": SENTENCES[v],
            "timestamps": [[0, .1]] * len(SENTENCES[v])} for v, parts in PARTS.items()})
    (data/"videos").mkdir()
    for v, parts in PARTS.items():
        colors = [c for c, s in parts for _ in range(4 * s)]                        # four per second
        frames.add(v, torch.stack([directions[c] for c in colors]))
        named = [next(c for c in COLORS if c in o.lower()) for o in SENTENCES[v]]
        embeddings.add(v, torch.stack([directions[c] for c in named]))
        shots = np.stack([np.full((64, 96, 3), COLORS[c], np.uint8) for c in colors])
        write_video(shots, data/"videos"/f"{v}.mp4")
    return data


def train_videos(walls):
    return read_annotations(walls/"annotations"/"train.json")


def test_a_model_that_sees_says_what_is_in_the_gap(walls, blip, tmp_path):
    "A real processor and a real BLIP-2, on frames decoded from files, in batches that end inside a video."
    backend = VisionBackend(walls, model=str(blip), device="cpu", batch_size=2)
    assert backend.about == {"backend": "vision", "model": blip.name, "question": None, "frames": 1,
                             "max_new_tokens": 32, "do_sample": False}
    captions, summary = augment(train_videos(walls), backend, tmp_path/"c.sqlite", progress=False)
    assert captions == ANSWERS and summary["tokens"] == [0, 15]
    spans = {(o["video"], o["gap"]): o["span"] for o in rows(tmp_path, "c.sqlite")}
    bounds = {("v_one", 0): (3, 6), ("v_one", 1): (16, 20), ("v_two", 0): (9, 12)}
    for gap, (start, end) in bounds.items(): assert start < sum(spans[gap]) / 2 < end
    backend.spans["v_one"] = backend.spans["v_one"][::-1]       # the other place gives the other answer
    captions, _ = augment(train_videos(walls), backend, tmp_path/"c.sqlite", progress=False)
    assert captions["v_one"] == ["A wall that is purple.", "A wall that is green."]


def test_what_the_model_reads_is_the_gap(walls, blip, monkeypatch):
    "The pictures behind the processor, turned back into colours."
    backend = VisionBackend(walls, model=str(blip), device="cpu")
    generate = backend.model.generate
    read = []
    def spy(**x):
        read.append(x["pixel_values"])
        return generate(**x)
    monkeypatch.setattr(backend.model, "generate", spy)
    list(backend.write(find_gaps(train_videos(walls)), 0))
    p = backend.processor.image_processor
    means = torch.cat(read).mean((2, 3)) * torch.tensor(p.image_std) + torch.tensor(p.image_mean)   # [B,3]
    def nearest(mean): return min(COLORS, key=lambda c: (mean * 255 - torch.tensor(COLORS[c])).abs().sum())
    assert [nearest(m) for m in means] == ["green", "purple", "purple"]


def test_a_model_that_chats_is_asked_and_sees_several_frames(walls, llava, blip):
    gaps = find_gaps(train_videos(walls))
    backend = VisionBackend(walls, model=str(llava), device="cpu", n_frames=2, max_new_tokens=5, batch_size=2)
    shots = backend._look(gaps[:2])
    assert [[f.shape for f in s] for s in shots] == [[(64, 96, 3)] * 2] * 2
    x = backend._inputs(shots)
    patches = (x["input_ids"] == backend.model.config.image_token_index).sum(1).tolist()
    assert x["pixel_values"].shape[0] == 4 and patches == [8, 8]                    # 4 patches per frame
    asked = x["input_ids"].shape[1]
    answers = [a for _, a in sorted(backend.write(gaps, 0))]
    assert asked == 8 + len(SEEN.split()) + 2 and backend.about["question"] == SEEN
    for a in answers:
        assert a.error is None and a.tokens[0] == asked and a.tokens[1] <= 5
        assert "<image>" not in a.text and "wall a wall" not in a.text
    with pytest.raises(InputError, match="has no chat template, so it reads one frame of a gap and not 2"):
        VisionBackend(walls, model=str(blip), device="cpu", n_frames=2)


def test_no_such_model_that_sees(walls, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    (tmp_path/"empty").mkdir()
    for model in ("Salesforce/blip2-opt-2.7b", str(tmp_path/"empty"), str(tiny)):
        sentence = (f"^vision-language model {model}: neither a folder here, "
                    "nor can it be fetched from the hub \\(.+\\)$")
        with pytest.raises(InputError, match=sentence): VisionBackend(walls, model=model, device="cpu")


def test_a_gap_that_the_data_folder_has_not(walls, blip):
    backend = VisionBackend(walls, model=str(blip), device="cpu")
    three = {"v_two": Video("v_two", ("A wall.", "A dog.", "A cat."))}
    sentence = ("video v_two: has 1 gap.* in the data folder, so none of number 2; "
                "are the annotations another file's")
    with pytest.raises(InputError, match=sentence): augment(three, backend, progress=False)


# -- a real model

@pytest.mark.slow
def test_a_real_small_model_is_filtered(tmp_path):
    "SmolLM2-135M from a wheel, on captions of the embedded world: what is used holds no echo."
    pytest.importorskip("gguf")
    try: path = small_model()
    except InputError as e: pytest.skip(str(e))
    scripts = [write_script(World.fast(), "train", i) for i in range(6)]
    videos = {s.id: Video(s.id, tuple(o.caption for o in s.scenes)) for s in scripts}
    backend = TransformersBackend(str(path), device="cpu")
    captions, summary = augment(videos, backend, tmp_path/"c.sqlite", progress=False)
    assert [len(c) for c in captions.values()] == [len(o.captions) - 1 for o in videos.values()]
    gaps = {(g.video, g.index): g for g in find_gaps(videos)}
    def echo(text, g): return _echoes(text, g.before) or _echoes(text, g.after)
    raw = [echo(tidy(o["answer"]), gaps[o["video"], o["gap"]]) for o in rows(tmp_path, "c.sqlite")]
    used = [echo(c, gaps[v, i]) for v, cs in captions.items() for i, c in enumerate(cs) if c]
    print(f"echoes: {sum(raw)} of {len(raw)} raw answers, {sum(used)} of {len(used)} used captions")
    assert len(used) > 0 and not any(used) and summary["tokens"][0] > 100 * len(raw)
