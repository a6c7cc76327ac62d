"""A training step of the true-size model (122 M parameters, random weights, dropout off): the released form,
taken from the study "One step, two forms", beside ours.
Eight videos with 25 events, 32 frames, captions as long as those of ActivityNet. Same weights, same batch,
losses equal to 1e-4. Time is forward and backward; memory is what a process of its own needs above its state
before the step; at the end the same with `torch.compile`d layers."""
import json
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from sail_nbdev.captioner import EOS, FULL, MASK, PAD, train_tokenizer
from sail_nbdev.config import Config
from sail_nbdev.data import Batch
from sail_nbdev.model import Sail

COUNTS = [2, 2, 3, 3, 3, 3, 4, 5]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STILL = {"captioner.pretrained": None, "captioner.dropout": 0., "localizer.dropout": 0.}
STUDY = Path(__file__).parents[1]/"nbs"/"studies"/"equivalence.ipynb"
WORDS = ("a man woman the ball runs jumps around in on and then with red large camera field throws holds "
         "water stands again kitchen begins talking hand").split()


def sentence(rng):
    n = max(5, round(rng.gauss(13.5, 6)))
    return (" ".join(rng.choice(WORDS) for _ in range(n)) + ".").capitalize()


def made_up():
    "A batch of features with a common part, and captions."
    rng = random.Random(0)
    captions = [[sentence(rng) for _ in range(n)] for n in COUNTS]
    torch.manual_seed(0)
    common = torch.randn(768)
    B = len(COUNTS)
    N = max(COUNTS)
    valid = torch.arange(N) < torch.tensor(COUNTS)[:, None]
    def draw(n): return common + torch.randn(B, n, 768)
    ids = [f"v{i}" for i in range(B)]
    return Batch(ids, captions, draw(32), valid, draw(N), draw(N - 1), valid[:, 1:]).to(DEVICE)


def released_form(model, batch):
    "The functions of the study, which go through `model` and `batch` in the released form."
    names = dict(torch=torch, F=F, EOS=EOS, FULL=FULL, MASK=MASK, PAD=PAD, captions=batch.captions,
                 counts=COUNTS, batch=batch, model=model, cap=model.captioner, positions=[])
    for cell in json.loads(STUDY.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("def "): exec(source, names)
    return names


def forms():
    "The model, and what computes the losses of each form."
    batch = made_up()
    tokenizer = train_tokenizer(sum(batch.captions, []), 2000)
    model = Sail(Config.preset("activitynet", overrides=STILL), tokenizer).to(DEVICE)
    plain = Config.preset("activitynet", "ilcacm", STILL)
    study = released_form(model, batch)

    def ilcacm():
        sail = model.config
        model.config = plain
        try: return model(batch)
        finally: model.config = sail

    return model, {"stage 1, released": study["released_stage1"], "stage 1": lambda: model(batch, stage=1),
                   "stage 2, released": study["released_stage2"], "stage 2": lambda: model(batch),
                   "stage 2, ILCACM": ilcacm}


def step(model, losses):
    model.zero_grad()
    out = losses()
    out["total" if "total" in out else "full"].backward()
    if DEVICE == "cuda": torch.cuda.synchronize()
    return {k: v.item() for k, v in out.items()}


def seconds(model, losses):
    start = time.perf_counter()
    step(model, losses)
    return time.perf_counter() - start


def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def gpu_memory(model, losses):
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(model, losses)
    return torch.cuda.max_memory_allocated() - before


def cpu_memory(model, losses):
    before = resident()
    seen = [before]
    done = threading.Event()

    def watch():
        while not done.wait(.002): seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    step(model, losses)
    done.set()
    watcher.join()
    return max(seen) - before


def memory(name):
    "Bytes that a step of this form needs on top, in this process."
    model, todo = forms()
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    return (gpu_memory if DEVICE == "cuda" else cpu_memory)(model, todo[name])


def memory_elsewhere(name):
    "The same in a process of its own."
    r = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
    return int(r.stdout) / 2**30


def check(model, todo):
    "Both forms have the same losses."
    for stage in ("stage 1", "stage 2"):
        theirs = step(model, todo[f"{stage}, released"])
        ours = step(model, todo[stage])
        assert all(abs(v - ours[k]) < 1e-4 for k, v in theirs.items()), (theirs, ours)


def compare(model, todo):
    "Print time and memory of both forms; seconds of each form."
    rounds = [[seconds(model, f) for f in todo.values()] for _ in range(3)]
    times = dict(zip(todo, map(min, zip(*rounds))))
    for stage in ("stage 1", "stage 2"):
        slow = times[f"{stage}, released"]
        fast = times[stage]
        large = memory_elsewhere(f"{stage}, released")
        little = memory_elsewhere(stage)
        print(f"{stage} on {DEVICE}: released form {slow:.2f} s and {large:.2f} GiB, here {fast:.2f} s and "
              f"{little:.2f} GiB; ratio of time {slow / fast:.2f}, of memory {large / little:.2f}")
    ilcacm = times["stage 2, ILCACM"]
    print(f"a step of SAIL takes {times['stage 2'] / ilcacm:.3f} of one of ILCACM ({ilcacm:.2f} s)")
    return times


def compile_layers(model, todo):
    "Seconds until all layers are compiled, as `sail_train --compile` does it."
    start = time.perf_counter()
    for layer in (*model.captioner.decoder.transformer.h, *model.captioner.encoder.encoder.layers):
        layer.compile(dynamic=True)
    for stage in ("stage 1", "stage 2"): step(model, todo[stage])
    return time.perf_counter() - start


def main():
    model, todo = forms()
    check(model, todo)
    times = compare(model, todo)
    if DEVICE == "cpu" and not shutil.which("g++"):
        print("torch.compile not measured: no C++ compiler")
        return
    wait = compile_layers(model, todo)
    for stage in ("stage 1", "stage 2"):
        fast = min(seconds(model, todo[stage]) for _ in range(3))
        print(f"{stage} with compiled layers {fast:.2f} s, ratio {times[stage] / fast:.2f} "
              f"(compiled in {wait:.0f} s)")


if __name__ == "__main__":
    if len(sys.argv) > 1: print(memory(sys.argv[1]))
    else: main()
