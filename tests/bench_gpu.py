"""An update of true size on a GPU, and captions: seconds, the share of them in which the GPU computes,
kernels it is asked for, waits of the host, memory. What other benches count on a CPU is measured here;
without a CUDA device nothing is."""
import random
import statistics
import time

import torch
from bench_step import COUNTS, sentence
from counting import waits_of
from run_elsewhere import Store
from torch.profiler import ProfilerActivity, profile

from sail_nbdev.captioner import FULL, MASK, train_tokenizer
from sail_nbdev.config import Config
from sail_nbdev.core import Video
from sail_nbdev.data import DeviceData
from sail_nbdev.model import Sail
from sail_nbdev.train import _accelerator, _adamw, _compiled, _may_round, _update, _with_tf32

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
OWN = {"captioner.pretrained": None}        # random weights
BATCHES = 8                                 # of an update


def made_up(config, n=64):
    "Videos with as many events as those of ActivityNet, features at random."
    rng = random.Random(0)
    torch.manual_seed(0)
    D = config.data.feature_dim
    said = {f"v{i}": tuple(sentence(rng) for _ in range(COUNTS[i % 8])) for i in range(n)}
    videos = {v: Video(v, captions, 10.) for v, captions in said.items()}
    def rows(count): return Store({v: torch.randn(count(o), D) for v, o in videos.items()})
    gaps = {v: ["It goes on."] * (len(o.captions) - 1) for v, o in videos.items()}
    features = Store({v: torch.randn(config.data.n_frames, D).numpy() for v in videos})
    texts = rows(lambda o: len(o.captions)), gaps, rows(lambda o: len(o.captions) - 1)
    return DeviceData(videos, features, config, *texts, device=DEVICE)


class Updates:
    "Updates of a stage, as training makes them: `step()` makes one."
    def __init__(self, method, precision, stage, compile=False, size=8, batches=BATCHES):
        more = {"train.batch_size": size, "train.accumulate": batches, "train.precision": precision}
        self.config = Config.preset("activitynet", method, OWN | more)
        self.acc = _accelerator(self.config, DEVICE)
        self.data = made_up(self.config, max(64, size * batches))
        tokenizer = train_tokenizer(sum(self.data.captions.values(), []), 2000)
        torch.manual_seed(0)
        model = Sail(self.config, tokenizer).to(DEVICE).train()
        self.captioner = model.captioner
        if _may_round(self.acc): _with_tf32(model.captioner)
        optimizer = _adamw(model, self.config)
        self.model, self.optimizer = self.acc.prepare(_compiled(model) if compile else model, optimizer)
        self.stage = stage
        groups = [list(range(i * size, (i + 1) * size)) for i in range(batches)]
        self.share = [(g, batches) for g in groups]

    def step(self):
        feed = self.data.stream([g for g, _ in self.share])
        return _update(self.acc, self.model, self.optimizer, feed, self.share, self.config, self.stage,
                       ("pos", "neg"))


def seconds(f):
    start = time.perf_counter()
    f()
    if CUDA: torch.cuda.synchronize()
    return time.perf_counter() - start


def profiled(f):
    "Kernels that `f` starts, and how many seconds the GPU is at work."
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        f()
        torch.cuda.synchronize()
    on_gpu = [e for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [e for e in on_gpu if not e.name.startswith(("Mem", "ProfilerStep"))]
    return len(kernels), sum(e.time_range.elapsed_us() for e in on_gpu) / 1e6


def measure(name, n_videos, f, rounds=5):
    "Print what one call of `f` for so many videos takes."
    first = seconds(f)
    for _ in range(2): f()
    if CUDA: torch.cuda.reset_peak_memory_stats()
    took = statistics.median(seconds(f) for _ in range(rounds))
    line = f"{name}: {took * 1000:.0f} ms, {n_videos / took:.0f} videos a second (first {first:.1f} s)"
    if CUDA:
        gib = torch.cuda.max_memory_allocated() / 2**30
        _, waits = waits_of(f)
        kernels, busy = profiled(f)
        line += f", GPU busy {busy / took:.0%}, {kernels} kernels, {waits} waits, {gib:.1f} GiB"
    print(line, flush=True)


def updates(method, precision, stage, **options):
    "The updates of a case, measured."
    u = Updates(method, precision, stage, **options)
    size, batches = u.config.train.batch_size, len(u.share)
    more = ", compiled" if options.get("compile") else ""
    name = f"{method}, stage {stage}, {precision}{more}, {batches} x {size} videos"
    measure(name, size * batches, u.step)
    return u


def captions(u, n=24):
    "Captions of the events of some videos, and a paragraph of each."
    u.model.eval()
    owner = torch.tensor([i for i in range(n) for _ in range(COUNTS[i % 8])], device=DEVICE)
    frames = u.data.frames
    with torch.no_grad():
        name = f"captions of {len(owner)} events, fp32"
        measure(name, n, lambda: u.captioner.write(frames[owner], MASK), rounds=3)
        measure(f"paragraphs of {n} videos, fp32", n, lambda: u.captioner.write(frames[:n], FULL), rounds=3)


STAGES = (1, 2)
CASES = [(("sail", p, stage), {}) for p in ("no", "bf16", "fp16") for stage in STAGES]
CASES += [(("sail", p, stage), dict(size=64, batches=1)) for p in ("no", "bf16") for stage in STAGES]
CASES += [((m, "no", 2), {}) for m in ("ilcacm", "sail_plus")]
CASES += [(("sail", p, 2), dict(compile=True)) for p in ("no", "bf16")]


def main(cases):
    print(torch.cuda.get_device_name() if CUDA else "CPU", "torch", torch.__version__)
    for args, options in cases:
        u = updates(*args, **options)
        if (args, options) == CASES[0]: captions(u)
        del u
        if CUDA: torch.cuda.empty_cache()


if __name__ == "__main__":
    if CUDA: main(CASES)
    else: print("nothing measured: no CUDA device on this machine")
