"""Batches of 2,000 videos at T = 32: `DeviceData`, which samples once and keeps everything at hand, beside one np.load and one interpolation a video. Same frames.
"Warm" files are in the memory of the operating system; "cold" ones were dropped from it, the mapped array too."""
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sail_nbdev.core import Config, Video
from sail_nbdev.data import DeviceData, batches, sample_frames
from sail_nbdev.features import FeatureStore, import_arrays

N, BATCH, T, D = 2000, 8, 32, 768


def plain(folder, ids):
    return torch.stack([sample_frames(torch.from_numpy(np.load(folder/f"{v}.npy", allow_pickle=False)), T) for v in ids])


def forget(folder):
    "Ask the operating system to drop the files of a folder from memory."
    for path in folder.iterdir():
        with open(path, "rb") as f: os.fsync(f.fileno()); os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work):
    start = time.perf_counter()
    work()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as d:
        folder, rng = Path(d)/"npy", np.random.default_rng(0)
        folder.mkdir()
        ids = [f"v{i}" for i in range(N)]
        for v in ids: np.save(folder/f"{v}.npy", rng.normal(size=(int(rng.integers(20, 240)), D)).astype(np.float32))
        store = FeatureStore.create(Path(d)/"store", dim=D)
        import_arrays(folder, store, progress=False)
        def load(): return DeviceData({v: Video(v, ("a", "b")) for v in ids}, store, Config.preset("activitynet"), device=device)
        first, again = seconds(load), seconds(load)
        data = load()
        order = batches(data, BATCH, 0)
        for index in order[:3]: assert torch.equal(data.batch(index).frames.cpu(), plain(folder, [ids[i] for i in index]))
        def slow():
            for index in order: plain(folder, [ids[i] for i in index]).to(device)
        def fast():
            for _ in data.stream(order): pass
        print(f"{N} videos on {device}: sampled for the first time in {first:.2f} s, opened again in {again:.2f} s; then, for an epoch,")
        if hasattr(os, "posix_fadvise"):
            forget(folder); a = seconds(slow)
            forget(store.folder/"sampled"); b = seconds(fast)
            print(f"  cold files: one at a time {a:.2f} s, DeviceData {b:.3f} s, ratio {a / b:.0f}")
        slow(), fast()
        a, b = min(seconds(slow) for _ in range(3)), min(seconds(fast) for _ in range(3))
        print(f"  warm files: one at a time {a:.2f} s, DeviceData {b:.3f} s, ratio {a / b:.0f}")
