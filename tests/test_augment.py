"Language models behind `augment`: one in this process, one behind a server, a server that misbehaves, and one that sees the gaps; the counts of the real annotation files."
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sail_nbdev.augment import SEEN, Gap, OpenAIBackend, TransformersBackend, VisionBackend, augment, find_gaps, messages, reject, small_model, tidy
from sail_nbdev.core import InputError, Video, read_json, write_json
from sail_nbdev.data import read_annotations

ANNOTATIONS = Path(__file__).parents[2]/"shared"/"data"/"annotations"
GAPS = [Gap("v", i, f"A man lifts {a} box.", "He puts it down.") for i, a in enumerate(("a", "a heavy", "a very heavy and quite large"))]


@pytest.mark.parametrize("name, count", [("anet_train.json", 27_412), ("yc2_train.json", 9_004)])
def test_gaps_of_the_real_training_files(name, count):
    if not (ANNOTATIONS/name).exists(): pytest.skip("the annotation files are not beside this checkout")
    assert len(find_gaps(read_annotations(ANNOTATIONS/name))) == count


# -- a language model in this process

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A random Llama of two layers with a tokenizer and a chat template, saved as any model is."
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.train_from_iterator([m["content"] for g in GAPS for m in messages(g)], trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|end|>")
    fast.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]{% if enable_thinking is defined and not enable_thinking %} no thinking{% endif %}\n"
    folder = tmp_path_factory.mktemp("lm")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, eos_token_id=0, bos_token_id=None))
    model.save_pretrained(folder), fast.save_pretrained(folder)
    return folder


def texts(backend, gaps, seed=0):
    "Answers in the order of the gaps."
    return [a.text for _, a in sorted(backend.write(gaps, seed), key=lambda o: o[0])]


def test_a_language_model_writes(tiny):
    backend = TransformersBackend(str(tiny), device="cpu", batch_size=2, max_new_tokens=8)
    prompt = backend.tokenizer.decode(backend._prompt(GAPS[1]))
    assert prompt.startswith("[system] You are an expert") and "A man lifts a heavy box." in prompt and prompt.endswith("[assistant] no thinking")
    first = texts(backend, GAPS, seed=1)
    assert len(first) == 3 and all(isinstance(t, str) for t in first) and not any("[user]" in t for t in first)
    assert texts(backend, GAPS, seed=1) == first != texts(backend, GAPS, seed=2)
    assert all(a.tokens[0] == len(backend._prompt(GAPS[i])) and 0 < a.tokens[1] <= 8 for i, a in backend.write(GAPS, 1))


def test_greedy_answers_depend_neither_on_the_batch_nor_on_what_was_read_before(tiny, monkeypatch):
    "The shared start of the prompts, read once, and padding between it and the rest change no token."
    from sail_nbdev import augment as module
    def greedy(batch_size): return TransformersBackend(str(tiny), device="cpu", batch_size=batch_size, max_new_tokens=6, temperature=0)
    backend = greedy(3)
    together, alone = texts(backend, GAPS), texts(greedy(1), GAPS)
    assert backend.start is not None and len(backend.start[0]) > .5 * min(len(backend._prompt(g)) for g in GAPS)
    monkeypatch.setattr(module, "_common", lambda prompts: 0)
    assert together == alone == texts(greedy(3), GAPS) == texts(greedy(1), GAPS)


def test_a_prompt_that_is_too_long_is_an_error_of_its_gap(tiny):
    backend = TransformersBackend(str(tiny), device="cpu", max_new_tokens=8)
    backend.model.config.max_position_embeddings = len(backend._prompt(GAPS[0])) + 8
    said = dict(backend.write([GAPS[0], Gap("v", 1, "A man " * 900, "He stops.")], 0))
    assert said[0].error is None and said[1].text is None and "tokens, the model reads" in said[1].error


def test_no_such_model(monkeypatch, tmp_path):
    import huggingface_hub.constants as hub
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="language model Qwen/Qwen3-8B: neither a folder nor a .gguf file here"): TransformersBackend(device="cpu")
    with pytest.raises(InputError, match="language model .*none.gguf"): TransformersBackend(str(tmp_path/"none.gguf"), device="cpu")


# -- a server

class Server:
    "An OpenAI-compatible server that answers by a list of behaviours, then well."
    def __init__(self, pause=.05):
        self.seen, self.keys, self.busy, self.most, self.plan, lock = [], set(), 0, 0, [], threading.Lock()
        outer = self
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                with lock: outer.busy += 1; outer.most = max(outer.most, outer.busy); how = outer.plan.pop(0) if outer.plan else "well"
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append(question); outer.keys.add(self.headers["Authorization"])
                time.sleep(3 if how == "hang" else pause)
                with lock: outer.busy -= 1
                code, text = 200, "word " * 400_000 if how == "huge" else how[1] if isinstance(how, tuple) else "He carries the box."
                body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [] if how == "none" else [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                                   "usage": {"prompt_tokens": 200, "completion_tokens": 5, "total_tokens": 205}})
                if isinstance(how, int): code, body = how, json.dumps({"error": {"message": f"no, {self.headers['Authorization']}"}})
                if how == "broken": body = '{"choices": ['
                try:
                    self.send_response(code); self.send_header("Content-Type", "application/json"); self.send_header("Content-Length", str(len(body))); self.send_header("retry-after-ms", "1"); self.end_headers()
                    self.wfile.write(body.encode())
                except (BrokenPipeError, ConnectionResetError): pass        # the client is gone, as it may be
            def log_message(self, *_): pass
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server():
    pytest.importorskip("openai")
    s = Server()
    yield s
    s.http.shutdown(); s.http.server_close()


def boxes(n, videos=1): return {f"v{j}": Video(f"v{j}", tuple(f"A man lifts box {j * n + i}." for i in range(n))) for j in range(videos)}


def test_a_server_answers(server):
    backend = OpenAIBackend("m", server.url, concurrency=3)
    answers = list(backend.write([*GAPS, *GAPS], seed=0))
    assert sorted(i for i, _ in answers) == [*range(6)] and {a.text for _, a in answers} == {"He carries the box."} and {a.tokens for _, a in answers} == {(200, 5)}
    assert 1 < server.most <= 3
    assert server.seen[0]["model"] == "m" and server.seen[0]["messages"][0]["role"] == "system" and isinstance(server.seen[0]["seed"], int)


def test_a_server_answers_inside_a_running_event_loop(server):
    "As in a notebook."
    import asyncio
    async def cell(): return texts(OpenAIBackend("m", server.url), GAPS)
    assert asyncio.run(cell()) == ["He carries the box."] * 3


def test_a_busy_server_is_asked_again(server):
    server.plan = [429, 500, 503]
    assert texts(OpenAIBackend("m", server.url, concurrency=1), GAPS) == ["He carries the box."] * 3
    assert len(server.seen) == 6


@pytest.mark.parametrize("how,says", [(400, "refuses the question (400)"), (422, "refuses the question (422)"), ("broken", "something that is not JSON"), ("none", "answers without a text")])
def test_what_goes_wrong_with_one_question_leaves_the_others_alone(server, tmp_path, how, says):
    "Even if it goes wrong three times; a second run asks for that gap only."
    videos = boxes(5)
    server.plan = ["well", how, "well", "well", how, how]
    captions, summary = augment(videos, OpenAIBackend("m", server.url, concurrency=1, retries=0), tmp_path/"c.jsonl", progress=False)
    assert [c is None for c in captions["v0"]] == [False, True, False, False] and summary["used"] == 3
    assert len(summary["errors"]) == 1 and summary["errors"][0].startswith("video v0, gap 2: ") and summary["errors"][0].endswith(says)
    asked = len(server.seen)
    captions, summary = augment(videos, OpenAIBackend("m", server.url, concurrency=1, retries=0), tmp_path/"c.jsonl", progress=False)
    assert captions == {"v0": ["He carries the box."] * 4} and summary["errors"] == [] and len(server.seen) == asked + 1


def test_a_huge_answer_is_cut_and_rejected(server, tmp_path):
    server.plan = ["huge"]
    captions, summary = augment(boxes(2), OpenAIBackend("m", server.url, concurrency=1), tmp_path/"c.jsonl", progress=False)
    assert captions == {"v0": ["He carries the box."]} and summary["tries"][0]["rejected"] == {"too long": 1}
    assert (tmp_path/"c.jsonl").stat().st_size < 20_000


@pytest.mark.parametrize("how,says", [(401, "refuses the key in OPENAI_API_KEY (401)"), (403, "does not allow this with the key in OPENAI_API_KEY (403)"), (404, "knows no model 'm' (404)"), (500, "fails (500)"), (429, "is too busy"),
                                      ("hang", "did not answer within 0.5 s, asked 2 times")])
def test_what_goes_wrong_with_all_questions_stops_and_keeps_what_was_said(server, tmp_path, monkeypatch, how, says):
    "The key is in no message and in no file."
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    videos = boxes(8)
    server.plan = ["well", "well", *[how] * 30]
    begin = time.time()
    def backend(): return OpenAIBackend("m", server.url, concurrency=1, retries=1, timeout=.5)
    with pytest.raises(InputError) as e: augment(videos, backend(), tmp_path/"c.jsonl", progress=False)
    assert says in str(e.value) and str(e.value).startswith(server.url) and "run it again" in str(e.value) and "secret" not in str(e.value) and time.time() - begin < 12
    assert len((tmp_path/"c.jsonl").read_text().splitlines()) == 2
    time.sleep(.2); server.plan = []
    asked = len(server.seen)
    assert augment(videos, backend(), tmp_path/"c.jsonl", progress=False)[0] == {"v0": ["He carries the box."] * 7} and len(server.seen) == asked + 5
    assert server.keys == {"Bearer sk-very-secret"} and not any(b"secret" in f.read_bytes() for f in tmp_path.iterdir())


def test_work_that_is_stopped_is_called_off(server):
    "Who stops listening pays for no further questions, and no thread is left."
    before = threading.active_count()
    it = OpenAIBackend("m", server.url, concurrency=2).write(find_gaps(boxes(40)), 0)
    next(it); it.close()
    time.sleep(.3)
    assert len(server.seen) <= 6 and threading.active_count() <= before + 2          # the server's own threads


def test_no_server_and_no_key_are_one_sentence(monkeypatch):
    pytest.importorskip("openai")
    with pytest.raises(InputError, match="127.0.0.1:9/v1: cannot be reached"): texts(OpenAIBackend("m", "http://127.0.0.1:9/v1", retries=0), GAPS[:1])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="needs OPENAI_API_KEY in the environment, or --base_url"): OpenAIBackend("m")


# -- killed, and shared

def command(tmp_path, server, *more):
    write_json(tmp_path/"train.json", {v: {"sentences": list(o.captions)} for v, o in boxes(9, 10).items()})       # 80 gaps
    return [str(Path(sys.executable).parent/"sail_augment"), str(tmp_path/"train.json"), "--out", str(tmp_path/"synthetic.json"), "--backend", "openai", "--model", "m", "--base_url", server.url, *map(str, more)]


def rows(tmp_path, name="synthetic.jsonl"): return [json.loads(line) for line in (tmp_path/name).read_text().splitlines()]


def test_killed_ten_times_and_continued(tmp_path):
    "kill -9 after some answers, again and again: no answer is lost, none is kept twice, and every video has its N - 1 in the end."
    pytest.importorskip("openai")
    server, lines = Server(pause=.02), 0
    server.plan = [("text", f"A man lifts box {i}.") for i in range(0, 60, 2)]              # some echoes on the way
    for _ in range(10):
        p = subprocess.Popen(command(tmp_path, server, "--concurrency", 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin = time.time()
        while p.poll() is None and (len((tmp_path/"synthetic.jsonl").read_bytes().splitlines()) if (tmp_path/"synthetic.jsonl").exists() else 0) < lines + 5 and time.time() - begin < 60: time.sleep(.003)
        p.send_signal(signal.SIGKILL); p.wait()
        assert lines < len(rows(tmp_path)); lines = len(rows(tmp_path))
    r = subprocess.run(command(tmp_path, server), capture_output=True, text=True)
    assert r.returncode == 0 and "80 captions for 80 gaps" in r.stdout, r
    captions, keys = read_json(tmp_path/"synthetic.json"), [o["key"] for o in rows(tmp_path)]
    assert [len(c) for c in captions.values()] == [8] * 10 and all(c for cs in captions.values() for c in cs)
    assert len(keys) == len(set(keys)) and len(server.seen) <= len(keys) + 10 * 2          # at most what was under way when it was killed
    assert {(o["video"], o["gap"]) for o in rows(tmp_path)} == {(v, i) for v in captions for i in range(8)}
    server.http.shutdown(); server.http.server_close()


def test_two_processes_share_the_work(tmp_path):
    "Nothing is asked twice, both end with the same captions, and a third finds all there."
    pytest.importorskip("openai")
    server = Server(pause=.05)
    ps = [subprocess.Popen(command(tmp_path, server, "--concurrency", 2), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all("80 captions for 80 gaps" in p.communicate()[0] for p in ps)
    assert len(server.seen) == len(rows(tmp_path)) == 80
    subprocess.run(command(tmp_path, server), check=True, capture_output=True)
    assert len(server.seen) == 80
    server.http.shutdown(); server.http.server_close()


@pytest.mark.parametrize("args,says", [(["--tries", 0], "--tries 0 must be greater than 0"), (["--share", 2], "share=2.0 must be in [0,1]"), (["--backend", "gpt"], "not one of transformers, openai, file, rules"),
    (["--backend", "file"], "--backend file needs --file"), (["--backend", "file", "--file", "nowhere.json"], "nowhere.json: no such file"), (["--out", "/proc/x/s.json"], "cannot be written"), (["--concurrency", -1], "--concurrency -1 must be")])
def test_wrong_input_is_one_sentence(tmp_path, args, says):
    write_json(tmp_path/"train.json", {"one": {"sentences": ["A man lifts a box."]}, "none": {"sentences": []}, "v": {"sentences": ["A man lifts a box.", "He leaves."]}})
    base = [str(Path(sys.executable).parent/"sail_augment"), str(tmp_path/"train.json"), "--backend", "rules", "--out", str(tmp_path/"s.json")]
    r = subprocess.run([*base, *map(str, args)], capture_output=True, text=True)
    assert r.returncode == 2 and says in r.stderr and r.stderr.startswith("sail_augment: ") and "Traceback" not in r.stderr and not (tmp_path/"s.json").exists(), r
    assert subprocess.run(base, capture_output=True).returncode == 0 and read_json(tmp_path/"s.json") == {"one": [], "none": [], "v": ["A man goes and he comes."]}       # what is right is right


@pytest.mark.parametrize("name,gaps", [("anet_train", "27,412"), ("yc2_train", "9,004")])
def test_dry_run(name, gaps):
    if not ANNOTATIONS.exists(): pytest.skip("the annotation files are not beside this checkout")
    r = subprocess.run([str(Path(sys.executable).parent/"sail_augment"), str(ANNOTATIONS/f"{name}.json"), "--dry_run", "--price_in", "1"], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.startswith(f"{gaps} gaps; about ") and "captions a second" in r.stdout and "about $" in r.stdout and "nothing was asked" in r.stdout


# -- a model that sees

COLORS = dict(red=(220, 30, 30), green=(30, 170, 60), blue=(40, 60, 220), purple=(140, 40, 180), white=(240, 240, 240))


def flat(color):
    import numpy as np
    return np.full((32, 32, 3), COLORS[color], np.uint8)


def word_tokenizer(more=()):
    "One token a word, and the marks that a model needs."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    words = ["<pad>", "<s>", "</s>", "<unk>", *more, *"a wall that is".split(), *COLORS]
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=list(more))


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    "A BLIP-2 of one layer everywhere that has learnt to say `a wall that is COLOUR`, saved as any model is."
    import torch
    from PIL import Image
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor, OPTConfig
    folder, small = tmp_path_factory.mktemp("blip"), dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    processor = Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), word_tokenizer(), num_query_tokens=4)
    lm = OPTConfig(vocab_size=len(processor.tokenizer), ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, dropout=0., **small)
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(Blip2Config(num_query_tokens=4, image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"), text_config=lm.to_dict(),
        vision_config=dict(intermediate_size=64, image_size=32, patch_size=16, **small), qformer_config=dict(vocab_size=16, intermediate_size=64, encoder_hidden_size=32, hidden_dropout_prob=0., attention_probs_dropout_prob=0., **small)))
    x, optimizer = processor(images=[Image.fromarray(flat(c)) for c in COLORS], text=[f"<s> a wall that is {c} </s>" for c in COLORS], return_tensors="pt"), torch.optim.AdamW(model.parameters(), 3e-3)
    labels = x["input_ids"].masked_fill(torch.arange(x["input_ids"].shape[1]) < 5, -100)
    for _ in range(300):
        optimizer.zero_grad(); loss = model(**x, labels=labels).loss; loss.backward(); optimizer.step()
        if loss < .02: break
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    "A random LLaVA with a chat template, which reads several frames."
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    folder, small = tmp_path_factory.mktemp("llava"), dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    tok = word_tokenizer(("<image>",))
    template = "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}a wall"
    processor = LlavaProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tok, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=template)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=32, **small), text_config=LlamaConfig(vocab_size=len(tok), pad_token_id=0, bos_token_id=1, eos_token_id=2, **small),
        image_token_index=tok.convert_tokens_to_ids("<image>")))
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return folder


PARTS = {"v_one": [("red", 3), ("green", 3), ("blue", 10), ("purple", 4), ("white", 4)], "v_two": [("white", 9), ("purple", 3), ("red", 6)]}
SAID = {"v_one": ["The red wall stands there.", "Now we see blue paint.", "At last white paint."], "v_two": ["There is white paint.", "Red paint, at the end."]}


@pytest.fixture
def walls(tmp_path):
    "A data folder of two videos whose gaps have colours that no event of theirs has; time stamps that are wrong are there to be read by nobody."
    import numpy as np
    import torch
    from sail_nbdev.features import FeatureStore
    from sail_nbdev.toyworld import write_video
    rows = dict(zip(COLORS, torch.eye(5)))
    frames, texts = FeatureStore.create(tmp_path/"data"/"features", dim=5), FeatureStore.create(tmp_path/"data"/"text", dim=5)
    write_json(tmp_path/"data"/"annotations"/"train.json", {v: {"duration": sum(s for _, s in PARTS[v]), "sentences": SAID[v], "timestamps": [[0, .1]] * len(SAID[v])} for v in PARTS})
    (tmp_path/"data"/"videos").mkdir()
    for v, parts in PARTS.items():
        frames.add(v, torch.stack([rows[c] for c, s in parts for _ in range(4 * s)]))
        texts.add(v, torch.stack([rows[next(c for c in COLORS if c in o.lower())] for o in SAID[v]]))
        write_video(np.stack([np.full((64, 96, 3), COLORS[c], np.uint8) for c, s in parts for _ in range(4 * s)]), tmp_path/"data"/"videos"/f"{v}.mp4")
    return tmp_path/"data"


def test_a_model_that_sees_says_what_is_in_the_gap(walls, blip, tmp_path):
    "A real processor and a real BLIP-2, on frames decoded from files, in batches that end in the middle of a video."
    videos, backend = read_annotations(walls/"annotations"/"train.json"), VisionBackend(walls, model=str(blip), device="cpu", batch_size=2)
    assert backend.about == {"backend": "vision", "model": blip.name, "question": None, "frames": 1, "max_new_tokens": 32, "do_sample": False}
    captions, summary = augment(videos, backend, tmp_path/"c.jsonl", progress=False)
    assert captions == {"v_one": ["A wall that is green.", "A wall that is purple."], "v_two": ["A wall that is purple."]} and summary["tokens"] == [0, 15]
    spans = {(o["video"], o["gap"]): o["span"] for o in rows(tmp_path, "c.jsonl")}
    assert 3 < sum(spans["v_one", 0]) / 2 < 6 and 16 < sum(spans["v_one", 1]) / 2 < 20 and 9 < sum(spans["v_two", 0]) / 2 < 12
    backend.spans["v_one"] = backend.spans["v_one"][::-1]                   # had the places been those of the other gap, so would the answers be
    assert augment(videos, backend, tmp_path/"c.jsonl", progress=False)[0]["v_one"] == ["A wall that is purple.", "A wall that is green."]


def test_what_the_model_reads_is_the_gap(walls, blip, monkeypatch):
    "The pictures behind the processor, turned back into colours."
    import torch
    backend, read = VisionBackend(walls, model=str(blip), device="cpu"), []
    generate = backend.model.generate
    monkeypatch.setattr(backend.model, "generate", lambda **x: (read.append(x["pixel_values"]), generate(**x))[1])
    list(backend.write(find_gaps(read_annotations(walls/"annotations"/"train.json")), 0))
    p = backend.processor.image_processor
    means = (torch.cat(read).mean((2, 3)) * torch.tensor(p.image_std) + torch.tensor(p.image_mean)) * 255         # [B,3]
    assert [min(COLORS, key=lambda c: (m - torch.tensor(COLORS[c])).abs().sum()) for m in means] == ["green", "purple", "purple"]


def test_a_model_that_chats_is_asked_and_sees_several_frames(walls, llava, blip):
    gaps = find_gaps(read_annotations(walls/"annotations"/"train.json"))
    backend = VisionBackend(walls, model=str(llava), device="cpu", n_frames=2, max_new_tokens=5, batch_size=2)
    shots = backend._look(gaps[:2])
    assert [[f.shape for f in s] for s in shots] == [[(64, 96, 3)] * 2] * 2
    x = backend._read(shots)
    assert x["pixel_values"].shape[0] == 4 and (x["input_ids"] == backend.model.config.image_token_index).sum(1).tolist() == [8, 8]      # 4 patches a frame
    asked, said = x["input_ids"].shape[1], [a for _, a in sorted(backend.write(gaps, 0))]
    assert asked == 8 + len(SEEN.split()) + 2 and all(a.error is None and a.tokens[0] == asked and a.tokens[1] <= 5 for a in said)
    assert not any("<image>" in a.text or "wall a wall" in a.text for a in said) and backend.about["question"] == SEEN
    with pytest.raises(InputError, match="has no chat template, so it reads one frame of a gap and not 2"): VisionBackend(walls, model=str(blip), device="cpu", n_frames=2)


def test_no_such_model_that_sees(walls, tiny, monkeypatch, tmp_path):
    import huggingface_hub.constants as hub
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    (tmp_path/"empty").mkdir()
    for model in ("Salesforce/blip2-opt-2.7b", str(tmp_path/"empty"), str(tiny)):
        with pytest.raises(InputError, match=f"^vision-language model {model}: neither a folder here, nor can it be fetched from the hub \\(.+\\)$"): VisionBackend(walls, model=model, device="cpu")


def see(walls, model, *more):
    "The command, without a hub."
    out = walls/"synthetic.json"
    done = subprocess.run([str(Path(sys.executable).parent/"sail_augment"), str(walls/"annotations"/"train.json"), "--out", str(out), "--backend", "vision", "--model", str(model), "--device", "cpu", *map(str, more)],
                          capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return done, read_json(out) if out.exists() else None


def test_the_command_sees(walls, blip, tmp_path):
    "From files to captions; a video that is not there and one that cannot be read are listed, and are asked for when they are back."
    r, captions = see(walls, blip, "--data", walls)
    assert r.returncode == 0 and "3 captions for 3 gaps" in r.stdout and captions == {"v_one": ["A wall that is green.", "A wall that is purple."], "v_two": ["A wall that is purple."]}, r
    assert read_json(walls/"synthetic.summary.json")["provenance"]["backend"] == "vision"
    (walls/"synthetic.jsonl").unlink(); (walls/"videos").rename(tmp_path/"elsewhere")
    whole = (tmp_path/"elsewhere"/"v_two.mp4").read_bytes()
    (tmp_path/"elsewhere"/"v_two.mp4").write_bytes(whole[:300]); (tmp_path/"elsewhere"/"v_one.mp4").rename(tmp_path/"elsewhere"/"other.mp4")
    r, captions = see(walls, blip, "--data", walls, "--videos", tmp_path/"elsewhere")
    assert r.returncode == 1 and captions == {"v_one": [None] * 2, "v_two": [None]} and r.stdout.count("no answer: video ") == 3 and "Traceback" not in r.stderr, r
    assert "video v_one, gap 2: no file of this name in " in r.stdout and "video v_two, gap 1: " in r.stdout and "v_two.mp4: " in r.stdout
    (tmp_path/"elsewhere"/"v_two.mp4").write_bytes(whole); (tmp_path/"elsewhere"/"other.mp4").rename(tmp_path/"elsewhere"/"v_one.mp4")
    r, captions = see(walls, blip, "--data", walls, "--videos", tmp_path/"elsewhere")
    assert r.returncode == 0 and captions["v_one"] == ["A wall that is green.", "A wall that is purple."] and len(rows(walls)) == 3, r


def test_what_the_command_needs_to_see(walls, tmp_path):
    "One sentence each, before a model is loaded."
    train = read_json(walls/"annotations"/"train.json")
    def wrong(says, *args):
        r, _ = see(walls, "none", *args)
        assert r.returncode == 2 and says in r.stderr and r.stderr.count("\n") == 1 and not (walls/"synthetic.json").exists(), r
    wrong("--backend vision needs --data")
    wrong("nowhere: no such file or folder", "--data", walls, "--videos", tmp_path/"nowhere")
    wrong("no video in this folder", "--data", walls, "--videos", walls/"annotations")
    (walls/"text").rename(walls/"hidden")
    wrong("text: no such store; make it with sail_features --texts", "--data", walls)
    (walls/"hidden").rename(walls/"text")
    write_json(walls/"annotations"/"train.json", {v: {k: o for k, o in r.items() if k != "duration"} for v, r in train.items()})
    wrong("train.json: video v_one: has no duration", "--data", walls)
    write_json(walls/"annotations"/"train.json", {v: {**r, "sentences": r["sentences"] + ["A dog barks."]} for v, r in train.items()})
    wrong("video v_one: 3 embeddings for 4 captions; make them anew", "--data", walls)
    r, _ = see(walls, "none", "--dry_run")
    assert r.returncode == 0 and r.stdout.startswith("5 gaps, each seen in its frames; about ") and "tokens" not in r.stdout


def test_a_gap_that_the_data_folder_has_not(walls, blip):
    backend = VisionBackend(walls, model=str(blip), device="cpu")
    with pytest.raises(InputError, match="video v_two: has 1 gap.* in the data folder, so none of number 2; are the annotations another file's"): augment({"v_two": Video("v_two", ("A wall.", "A dog.", "A cat."))}, backend, progress=False)


# -- the filter

def test_the_filter_lets_human_captions_through():
    "Every second caption of ActivityNet as if it were the answer for the gap between its neighbours: few are rejected but for their length."
    if not ANNOTATIONS.exists(): pytest.skip("the annotation files are not beside this checkout")
    said = Counter()
    for o in itertools.islice(read_annotations(ANNOTATIONS/"anet_train.json").values(), 0, None, 10):
        for before, human, after in zip(o.captions, o.captions[1:], o.captions[2:]):
            said[reject(tidy(human), Gap("v", 0, tidy(before), tidy(after)), "en")] += 1
    n = sum(said.values())
    assert n > 1500 and said["other language"] / n < .001 and said["refusal"] == 0 and sum(said[k] for k in ("meta talk", "time stamp", "echo")) / n < .05, {k: v / n for k, v in said.items()}


def test_a_real_small_model_is_filtered(tmp_path):
    "SmolLM2-135M from a wheel, on captions of the embedded world: it writes, the filter finds its echoes, and what is used holds none."
    pytest.importorskip("gguf")
    try: path = small_model()
    except InputError as e: pytest.skip(str(e))
    from sail_nbdev.augment import _echoes
    from sail_nbdev.toyworld import World, write_script
    world = World.fast()
    videos = {s.id: Video(s.id, tuple(o.caption for o in s.scenes)) for s in (write_script(world, "train", i) for i in range(6))}
    captions, summary = augment(videos, TransformersBackend(str(path), device="cpu"), tmp_path/"c.jsonl", progress=False)
    assert [len(c) for c in captions.values()] == [len(o.captions) - 1 for o in videos.values()]
    gaps = {(g.video, g.index): g for g in find_gaps(videos)}
    def echo(text, g): return _echoes(text, g.before) or _echoes(text, g.after)
    raw = [echo(tidy(o["answer"]), gaps[o["video"], o["gap"]]) for o in map(json.loads, (tmp_path/"c.jsonl").read_text().splitlines())]
    used = [echo(c, gaps[v, i]) for v, cs in captions.items() for i, c in enumerate(cs) if c]
    print(f"echoes: {sum(raw)} of {len(raw)} raw answers, {sum(used)} of {len(used)} used captions; {summary['tries']}")
    assert len(used) > 0 and not any(used) and summary["tokens"][0] > 100 * len(raw)
