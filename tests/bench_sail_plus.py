"""SAIL+ at true size, beside SAIL: the cost of a training step of each stage, in pairs; and a dry run of its localizer on the true statistics of ActivityNet and YouCook2.
The dry run takes durations, counts, boundaries and captions from the annotation files, beside the checkout in shared/data/annotations, and makes up frames of 768 numbers: what all share, a direction for each
caption, drawn from its words, where the annotation says it happens, and noise. Every video is aligned and its loss computed; a short training of the localizer alone must stay finite and go down.
Made-up frames say nothing about real video: what is shown is that it runs, what it costs, and that odd annotations (overlaps, broken order, 27 events, captions said twice) do no harm."""
import functools
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from sail_nbdev.captioner import train_tokenizer
from sail_nbdev.core import Config
from sail_nbdev.data import clean_caption, pad_rows, read_annotations
from sail_nbdev.localizer import FrameLocalizer, expected_events, posterior
from sail_nbdev.losses import alignment_loss, caption_scores
from sail_nbdev.masks import hard_mask
from sail_nbdev.model import Sail
from sail_nbdev.toyworld import World, write_script
from sail_nbdev.train import _WORDS, _made_up_batch

ANNOTATIONS = Path(__file__).resolve().parents[2]/"shared"/"data"/"annotations"
SETS = {"activitynet": "anet_train.json", "youcook2": "yc2_train.json"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def step_seconds(preset, pairs):
    "Median seconds of a step of each stage for both methods, taken in turns."
    config, times = Config.preset(preset), {}
    batch = _made_up_batch(config, DEVICE)
    said = [_WORDS] * 2                             # a token a word, as GPT-2 has for most of them
    if preset == "toy":                             # captions as long as the world's
        scripts = [[e.caption for e in write_script(World(), "train", i).scenes] for i in range(300)]
        batch, said = replace(batch, captions=[o[:len(c)] for c, o in zip(batch.captions, (o for o in scripts if len(o) > 4))]), sum(scripts, [])
    models = {m: Sail(Config.preset(preset, m, pretrained=None, dropout=0.), train_tokenizer(said)).to(DEVICE) for m in ("sail", "sail_plus")}
    for _ in range(pairs + 1):                      # the first warms up
        for stage in (1, 2):
            for name, model in models.items():
                start = time.perf_counter()
                model.zero_grad(); model(batch, stage=stage)["total"].backward()
                if DEVICE == "cuda": torch.cuda.synchronize()
                times.setdefault((name, stage), []).append(time.perf_counter() - start)
    return {k: sorted(v[1:])[pairs // 2] for k, v in times.items()}


@functools.cache
def direction(word, D=768):
    return torch.randn(D, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def made_up(videos, config, seed):
    "Frames and texts of some videos, and where the annotation says the events are."
    rows = [torch.stack([F.normalize(sum(direction(w) for w in clean_caption(c).split()), dim=0) for c in o.captions[:config.max_captions]]) for o in videos]
    spans, valid = pad_rows([torch.tensor(o.intervals[:config.max_captions]) / o.duration for o in videos], max(map(len, rows)))
    texts, _ = pad_rows(rows, valid.shape[1])
    masks = hard_mask(spans.mean(-1), spans.diff(dim=-1)[..., 0].clamp_min(0), config.n_frames) * valid[..., None]
    noise = torch.randn(len(videos), config.n_frames, 768, generator=torch.Generator().manual_seed(seed)) / 768**.5
    return 2 * F.normalize(direction("all"), dim=0) + .3 * masks.mT @ texts + noise, texts, valid, spans


def dry_run(preset, steps=150):
    config = Config.preset(preset, "sail_plus")
    videos = list(read_annotations(ANNOTATIONS/SETS[preset], intervals=True).values())
    start, errors, worst = time.perf_counter(), [], -torch.inf
    torch.manual_seed(0)
    net = FrameLocalizer(config)
    for i in range(0, len(videos), 64):
        frames, texts, valid, spans = made_up(videos[i:i + 64], config, i)
        z = caption_scores(frames, texts, valid)
        c, w = expected_events(*posterior(z, z, valid), valid)
        loss = alignment_loss(*net.scores(frames), z, valid, config.n_queries)
        assert c.isfinite().all() and w.isfinite().all() and loss.isfinite(), videos[i].id
        errors.append((c - spans.mean(-1)).abs()[valid]); worst = max(worst, loss.item())
    n, seconds = sum(map(len, errors)), time.perf_counter() - start
    print(f"  {preset}: {len(videos):,} videos with {n:,} events aligned in {seconds:.0f} s, all finite (greatest loss of 64 videos {worst:.2f}); mean distance of aligned to annotated centres {torch.cat(errors).mean():.3f} of the video")
    optimizer, curve = torch.optim.AdamW(net.parameters(), config.lr), []
    for k in range(steps):
        frames, texts, valid, _ = made_up(videos[8 * k % len(videos):][:8], config, k)
        loss = alignment_loss(*net.scores(frames), caption_scores(frames, texts, valid), valid, config.n_queries)
        optimizer.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(net.parameters(), 1.); optimizer.step()
        curve.append(loss.item())
    first, last = (sum(x) / len(x) for x in (curve[:20], curve[-20:]))
    assert last < first, (first, last)
    print(f"  {preset}: {steps} steps of the localizer alone at the preset's rate, L_align {first:.3f} to {last:.3f}")


if __name__ == "__main__":
    for preset in ["toy", "activitynet"]:           # a step of YouCook2 has the same parts
        t = step_seconds(preset, 25 if preset == "toy" else 3)
        both = [sum(t[m, s] * e for s, e in ((1, Config.preset(preset).epochs_stage1), (2, Config.preset(preset).epochs_stage2))) for m in ("sail", "sail_plus")]
        print(f"{preset} on {DEVICE}: stage 1 {t['sail', 1]:.2f} s and {t['sail_plus', 1]:.2f} s, stage 2 {t['sail', 2]:.2f} s and {t['sail_plus', 2]:.2f} s; SAIL+ costs {both[1] / both[0]:.3f} of SAIL over all epochs")
    if not ANNOTATIONS.exists(): sys.exit(print(f"dry run left out: {ANNOTATIONS.name} is not there"))
    for preset in SETS: dry_run(preset)
