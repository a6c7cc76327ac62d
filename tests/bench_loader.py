"""Batches of 2,000 videos at T = 32: `DeviceData`, which samples once and keeps everything at hand,
beside one np.load and one interpolation per video. Same frames. "Warm" files are in the memory of the
operating system; "cold" ones were dropped from it, also the mapped array."""
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sail_nbdev.config import Config
from sail_nbdev.core import Video
from sail_nbdev.data import DeviceData, batches, sample_frames
from sail_nbdev.arrays import import_arrays
from sail_nbdev.store import FeatureStore

N = 2000
BATCH = 8
T = 32
D = 768


def load_one(path):
    return sample_frames(torch.from_numpy(np.load(path, allow_pickle=False)), T)


def plain(folder, ids):
    return torch.stack([load_one(folder/f"{v}.npy") for v in ids])


def forget(folder):
    "Ask the operating system to drop the files of a folder from memory."
    for path in folder.iterdir():
        with open(path, "rb") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds(work):
    start = time.perf_counter()
    work()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter() - start


def write_arrays(folder):
    "A matrix of 20 to 239 rows for each video; returns the ids."
    rng = np.random.default_rng(0)
    folder.mkdir()
    ids = [f"v{i}" for i in range(N)]
    for v in ids:
        np.save(folder/f"{v}.npy", rng.normal(size=(int(rng.integers(20, 240)), D)).astype(np.float32))
    return ids


def main(root):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = root/"npy"
    ids = write_arrays(folder)
    store = FeatureStore.create(root/"store", dim=D)
    import_arrays(folder, store, progress=False)
    videos = {v: Video(v, ("a", "b")) for v in ids}
    def load(): return DeviceData(videos, store, Config.preset("activitynet"), device=device)
    first = seconds(load)
    again = seconds(load)
    data = load()
    order = batches(data, BATCH, 0)
    for index in order[:3]:
        assert torch.equal(data.batch(index).frames.cpu(), plain(folder, [ids[i] for i in index]))

    def slow():
        for index in order:
            plain(folder, [ids[i] for i in index]).to(device)

    def fast():
        for _ in data.stream(order):
            pass

    print(f"{N} videos on {device}: sampled first in {first:.2f} s, opened again in {again:.2f} s")
    if hasattr(os, "posix_fadvise"):
        forget(folder)
        a = seconds(slow)
        forget(store.folder/"sampled")
        b = seconds(fast)
        print(f"  an epoch of cold files: one at a time {a:.2f} s, DeviceData {b:.3f} s, ratio {a / b:.0f}")
    slow()
    fast()
    a = min(seconds(slow) for _ in range(3))
    b = min(seconds(fast) for _ in range(3))
    print(f"  an epoch of warm files: one at a time {a:.2f} s, DeviceData {b:.3f} s, ratio {a / b:.0f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
