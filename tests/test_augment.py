"Language models behind `augment`: one in this process, one behind a server, and a server that misbehaves; the counts of the real annotation files."
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sail_nbdev.augment import Gap, OpenAIBackend, TransformersBackend, augment, find_gaps, messages
from sail_nbdev.core import InputError, Video
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


def test_a_language_model_writes(tiny):
    backend = TransformersBackend(str(tiny), device="cpu", batch_size=2, max_new_tokens=8)
    prompt = backend._prompt_text(GAPS[1])
    assert prompt.startswith("[system] You are an expert") and "A man lifts a heavy box." in prompt and prompt.endswith("[assistant] no thinking")
    first = backend.write(GAPS, seed=1)
    assert len(first) == 3 and all(isinstance(t, str) for t in first) and not any("[user]" in t for t in first)
    assert backend.write(GAPS, seed=1) == first != backend.write(GAPS, seed=2)


def test_greedy_answers_do_not_depend_on_the_batch(tiny):
    "Padding on the left is masked: each prompt alone gives what it gives among others."
    together = TransformersBackend(str(tiny), device="cpu", batch_size=3, max_new_tokens=6, temperature=0).write(GAPS, 0)
    alone = TransformersBackend(str(tiny), device="cpu", batch_size=1, max_new_tokens=6, temperature=0).write(GAPS, 0)
    assert together == alone


def test_no_such_model(monkeypatch, tmp_path):
    import huggingface_hub.constants as hub
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="language model Qwen/Qwen3-8B: neither a folder nor a .gguf file here"): TransformersBackend(device="cpu")
    with pytest.raises(InputError, match="language model .*none.gguf"): TransformersBackend(str(tmp_path/"none.gguf"), device="cpu")


# -- a server

class Server:
    "An OpenAI-compatible server that answers by a list of behaviours, then well."
    def __init__(self):
        self.seen, self.busy, self.most, self.plan, lock = [], 0, 0, [], threading.Lock()
        outer = self
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                with lock: outer.busy += 1; outer.most = max(outer.most, outer.busy); how = outer.plan.pop(0) if outer.plan else "well"
                question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append(question)
                time.sleep(.05)
                with lock: outer.busy -= 1
                code, body = 200, json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "He carries the box."}}]})
                if isinstance(how, int): code, body = how, "{}"
                if how == "broken": body = '{"choices": ['
                self.send_response(code); self.send_header("Content-Type", "application/json"); self.send_header("Content-Length", str(len(body))); self.send_header("retry-after-ms", "1"); self.end_headers()
                self.wfile.write(body.encode())
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


def test_a_server_answers(server):
    backend = OpenAIBackend("m", server.url, concurrency=3)
    assert backend.write([*GAPS, *GAPS], seed=0) == ["He carries the box."] * 6
    assert 1 < server.most <= 3
    assert server.seen[0]["model"] == "m" and server.seen[0]["messages"][0]["role"] == "system" and isinstance(server.seen[0]["seed"], int)


def test_a_busy_server_is_asked_again(server):
    server.plan = [429, 500, 503]
    assert OpenAIBackend("m", server.url, concurrency=1).write(GAPS, seed=0) == ["He carries the box."] * 3
    assert len(server.seen) == 6


def test_a_server_that_fails_keeps_what_it_said(server, tmp_path):
    videos = {"v": Video("v", tuple(f"A man lifts box {i}." for i in range(5)))}
    server.plan = ["well", "well", 400]
    with pytest.raises(InputError, match="gave no answer for video v, gap 3 .*run it again"):
        augment(videos, OpenAIBackend("m", server.url, concurrency=1), tmp_path/"c.jsonl", chunk=1, progress=False)
    captions, summary = augment(videos, OpenAIBackend("m", server.url, concurrency=1), tmp_path/"c.jsonl", chunk=1, progress=False)
    assert captions == {"v": ["He carries the box."] * 4} and len(server.seen) == 3 + 2


def test_broken_json_is_one_sentence(server):
    server.plan = ["broken"] * 9
    with pytest.raises(InputError, match="gave no answer for video v, gap 1"): OpenAIBackend("m", server.url, concurrency=1, retries=1).write(GAPS[:1], seed=0)


def test_no_server_is_one_sentence():
    pytest.importorskip("openai")
    with pytest.raises(InputError, match="127.0.0.1:9/v1: gave no answer"): OpenAIBackend("m", "http://127.0.0.1:9/v1", retries=0).write(GAPS[:1], seed=0)
