"""A training step of the true-size model (122 M parameters, random weights, dropout off): the released form, taken from the study "One step, two forms", beside ours.
Eight videos with 25 events, 32 frames, captions of ActivityNet's length. Same weights, same batch, losses equal to 1e-4. Time is forward and backward; memory is what a process of its own needs above its state before the step; at the end the same with `torch.compile`d layers."""
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

from sail_nbdev.captioner import FULL, MASK, train_tokenizer
from sail_nbdev.core import Config
from sail_nbdev.data import Batch
from sail_nbdev.model import Sail

COUNTS = [2, 2, 3, 3, 3, 3, 4, 5]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sentence(rng):
    words = "a man woman the ball runs jumps around in on and then with red large camera field throws holds water stands again kitchen begins talking hand".split()
    return (" ".join(rng.choice(words) for _ in range(max(5, round(rng.gauss(13.5, 6))))) + ".").capitalize()


def setting():
    "Model, batch, and the functions of the study that go through them in the released form."
    rng = random.Random(0)
    captions, N = [[sentence(rng) for _ in range(n)] for n in COUNTS], torch.tensor(COUNTS)
    torch.manual_seed(0)
    common, valid, B = torch.randn(768), torch.arange(max(COUNTS)) < N[:, None], len(COUNTS)
    def draw(*shape): return common + torch.randn(*shape, 768)
    batch = Batch([f"v{i}" for i in range(B)], captions, draw(B, 32), valid, draw(B, max(COUNTS)), draw(B, max(COUNTS) - 1), valid[:, 1:]).to(DEVICE)
    model = Sail(Config.preset("activitynet", pretrained=None, dropout=0.), train_tokenizer(sum(captions, []), 2000)).to(DEVICE)
    names = dict(torch=torch, F=F, FULL=FULL, MASK=MASK, captions=captions, N=N, valid=batch.valid, batch=batch, model=model, positions=[])
    study = json.loads((Path(__file__).parents[1]/"nbs"/"studies"/"equivalence.ipynb").read_text())
    for cell in study["cells"]:
        if any(f"def {name}" in "".join(cell["source"]) for name in ("released_captioning", "released_guides", "released_stage1")): exec("".join(cell["source"]), names)
    return model, batch, names


def forms(model, batch, released):
    def ilcacm():
        c, model.config = model.config, Config.preset("activitynet", "ilcacm", pretrained=None, dropout=0.)
        try: return model(batch)
        finally: model.config = c
    return {"stage 1, released": released["released_stage1"], "stage 1": lambda: model(batch, stage=1), "stage 2, released": released["released_stage2"], "stage 2": lambda: model(batch), "stage 2, ILCACM": ilcacm}


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


def memory(name):
    "Bytes that a step of this form needs on top, in this process."
    model, batch, released = setting()
    losses = forms(model, batch, released)[name]
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats(); before = torch.cuda.memory_allocated(); step(model, losses)
        return torch.cuda.max_memory_allocated() - before
    before, seen, done = resident(), [0], threading.Event()
    def watch():
        while not done.wait(.002): seen.append(resident())
    watcher = threading.Thread(target=watch)
    watcher.start(); step(model, losses); done.set(); watcher.join()
    return max(seen) - before


if __name__ == "__main__":
    if len(sys.argv) > 1: sys.exit(print(memory(sys.argv[1])))
    model, batch, released = setting()
    todo = forms(model, batch, released)
    for stage in ("stage 1", "stage 2"):
        theirs, ours = step(model, todo[f"{stage}, released"]), step(model, todo[stage])
        assert all(abs(v - ours[k]) < 1e-4 for k, v in theirs.items()), (theirs, ours)
    times = {name: min(ts) for name, ts in zip(todo, zip(*[[seconds(model, f) for f in todo.values()] for _ in range(3)]))}
    need = {name: int(subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True).stdout) for name in todo if "ILCACM" not in name}
    for stage in ("stage 1", "stage 2"):
        a, b = f"{stage}, released", stage
        print(f"{stage} on {DEVICE}: released form {times[a]:.2f} s and {need[a] / 2**30:.2f} GiB, here {times[b]:.2f} s and {need[b] / 2**30:.2f} GiB; ratio of time {times[a] / times[b]:.2f}, of memory {need[a] / need[b]:.2f}")
    print(f"a step of SAIL takes {times['stage 2'] / times['stage 2, ILCACM']:.3f} of one of ILCACM ({times['stage 2, ILCACM']:.2f} s)")
    if DEVICE == "cpu" and not shutil.which("g++"): sys.exit(print("torch.compile not measured: no C++ compiler"))
    start = time.perf_counter()
    for layer in (*model.captioner.decoder.transformer.h, *model.captioner.encoder.encoder.layers): layer.compile(dynamic=True)          # what `sail_train --compile` does
    for stage in ("stage 1", "stage 2"): step(model, todo[stage])
    start = time.perf_counter() - start
    for stage in ("stage 1", "stage 2"):
        fast = min(seconds(model, todo[stage]) for _ in range(3))
        print(f"{stage} with compiled layers {fast:.2f} s, ratio {times[stage] / fast:.2f} (compiled in {start:.0f} s)")
