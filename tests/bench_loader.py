"Batches of 2,000 videos at T = 32: `DeviceData`, which samples once and keeps everything on the device, beside one np.load and one interpolation a video. Same batches."
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


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as d:
        folder, rng = Path(d)/"npy", np.random.default_rng(0)
        folder.mkdir()
        ids = [f"v{i}" for i in range(N)]
        for v in ids: np.save(folder/f"{v}.npy", rng.normal(size=(int(rng.integers(20, 240)), D)).astype(np.float32))
        store = FeatureStore.create(Path(d)/"store", dim=D)
        import_arrays(folder, store, progress=False)
        start = time.perf_counter()
        data = DeviceData({v: Video(v, ("a", "b")) for v in ids}, store, Config.preset("activitynet"), device=device)
        once = time.perf_counter() - start
        order = batches(data, BATCH, 0)
        for index in order[:3]: assert torch.equal(data.batch(index).frames.cpu(), plain(folder, [ids[i] for i in index]))
        start = time.perf_counter()
        for index in order: plain(folder, [ids[i] for i in index]).to(device)
        slow = time.perf_counter() - start
        start = time.perf_counter()
        for index in order: data.batch(index)
        if device == "cuda": torch.cuda.synchronize()
        fast = time.perf_counter() - start
    print(f"an epoch of {N} videos on {device}: one file at a time {slow:.2f} s, resident {fast:.3f} s, ratio {slow / fast:.0f}; filled once in {once:.1f} s")
