"""SAIL+ at true size, beside SAIL: the cost of a training step of each stage, in pairs; and a dry run of its
localizer on the true statistics of ActivityNet and YouCook2.
The dry run takes durations, counts, boundaries and captions from the annotation files (beside the checkout in
shared/data/annotations) and makes up frames of 768 numbers: a part that all share, a direction for each
caption, drawn from its words, where the annotation says it happens, and noise. Every video is aligned and its
loss computed; a short training of the localizer alone must stay finite and go down.
Made-up frames tell nothing about real video: what is shown is that it runs, what it costs, and that odd
annotations (overlaps, broken order, 27 events, repeated captions) do no harm."""
import functools
import statistics
import time
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from sail_nbdev.alignment import caption_scores, expected_events, posterior
from sail_nbdev.captioner import train_tokenizer
from sail_nbdev.config import Config
from sail_nbdev.data import Batch, clean_caption, pad_rows, read_annotations
from sail_nbdev.localizer import FrameLocalizer
from sail_nbdev.losses import alignment_loss
from sail_nbdev.masks import hard_mask
from sail_nbdev.model import Sail
from sail_nbdev.toyworld import World, write_script

ANNOTATIONS = Path(__file__).resolve().parents[2]/"shared"/"data"/"annotations"
SETS = {"activitynet": "anet_train.json", "youcook2": "yc2_train.json"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THIRTEEN = "A man in red stands on the field and throws two balls away."
METHODS = ("sail", "sail_plus")


def sentences(preset):
    "Captions of some videos: as long as the toy world's, or of thirteen words."
    if preset != "toy": return [[THIRTEEN] * 5] * 8
    scripts = [[e.caption for e in write_script(World(), "train", i).scenes] for i in range(300)]
    return [o for o in scripts if len(o) > 4]


def made_up_batch(config, captions):
    "A batch of the configuration's size with 3, 4 and 5 captions per video, features at random."
    B = config.train.batch_size
    n = [3 + i % 3 for i in range(B)]
    valid = torch.arange(5) < torch.tensor(n)[:, None]
    def draw(k): return torch.randn(B, k, config.data.feature_dim)
    texts = [o[:k] for o, k in zip(captions, n)]
    batch = Batch([str(i) for i in range(B)], texts, draw(config.data.n_frames), valid, draw(5), draw(4),
                  valid[:, 1:])
    return batch.to(DEVICE)


def seconds(model, batch, stage):
    start = time.perf_counter()
    model.zero_grad()
    model(batch, stage=stage)["total"].backward()
    if DEVICE == "cuda": torch.cuda.synchronize()
    return time.perf_counter() - start


def step_seconds(preset, pairs):
    "Median seconds of a step of each stage for both methods, taken in turns."
    captions = sentences(preset)
    tokenizer = train_tokenizer(2 * sum(captions, []))      # each word a token, as most are for GPT-2
    still = {"captioner.pretrained": None, "captioner.dropout": 0., "localizer.dropout": 0.}
    models = {m: Sail(Config.preset(preset, m, still), tokenizer).to(DEVICE) for m in METHODS}
    batch = made_up_batch(models["sail"].config, captions)
    keys = [(m, stage) for stage in (1, 2) for m in METHODS]
    rounds = [[seconds(models[m], batch, stage) for m, stage in keys] for _ in range(pairs + 1)]
    return dict(zip(keys, map(statistics.median, zip(*rounds[1:]))))        # the first warms up


def cost(preset):
    t = step_seconds(preset, 25 if preset == "toy" else 3)
    train = Config.preset(preset).train
    sail, plus = (t[m, 1] * train.epochs_stage1 + t[m, 2] * train.epochs_stage2 for m in METHODS)
    print(f"{preset} on {DEVICE}: stage 1 {t['sail', 1]:.2f} s and {t['sail_plus', 1]:.2f} s, "
          f"stage 2 {t['sail', 2]:.2f} s and {t['sail_plus', 2]:.2f} s; "
          f"SAIL+ costs {plus / sail:.3f} of SAIL over all epochs")


@functools.cache
def direction(word, D=768):
    return torch.randn(D, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def embedded(caption):
    return F.normalize(sum(direction(w) for w in clean_caption(caption).split()), dim=0)


def made_up(videos, config, seed):
    "Frames and texts of some videos, and where the annotation says the events are."
    most = config.data.max_captions
    T = config.data.n_frames
    rows = [torch.stack([embedded(c) for c in o.captions[:most]]) for o in videos]
    spans = [torch.tensor(o.intervals[:most]) / o.duration for o in videos]
    N = max(map(len, rows))
    texts, valid = pad_rows(rows, N)
    spans, _ = pad_rows(spans, N)
    masks = hard_mask(spans.mean(-1), spans.diff(dim=-1)[..., 0].clamp_min(0), T) * valid[..., None]
    noise = torch.randn(len(videos), T, 768, generator=torch.Generator().manual_seed(seed)) / 768**.5
    frames = 2 * F.normalize(direction("all"), dim=0) + .3 * masks.mT @ texts + noise
    return frames, texts, valid, spans


def align_all(preset, videos, config, net):
    "Align every video and compute its loss: all finite."
    start = time.perf_counter()
    errors = []
    losses = []
    for i in range(0, len(videos), 64):
        frames, texts, valid, spans = made_up(videos[i:i + 64], config, i)
        z = caption_scores(frames, texts, valid)
        c, w = expected_events(*posterior(z, z, valid), valid)
        loss = alignment_loss(*net.scores(frames), z, valid, config.localizer.n_queries)
        assert all(x.isfinite().all() for x in (c, w, loss)), videos[i].id
        errors.append((c - spans.mean(-1)).abs()[valid])
        losses.append(loss.item())
    n = sum(map(len, errors))
    taken = time.perf_counter() - start
    print(f"  {preset}: {len(videos):,} videos with {n:,} events aligned in {taken:.0f} s, "
          f"all finite (greatest loss of 64 videos {max(losses):.2f}); mean distance of aligned to annotated "
          f"centres {torch.cat(errors).mean():.3f} of the video")


def train_localizer(preset, videos, config, net, steps=150):
    "A short training of the localizer alone: the loss goes down."
    optimizer = torch.optim.AdamW(net.parameters(), config.train.lr)
    curve = []
    for k in range(steps):
        frames, texts, valid, _ = made_up(videos[8 * k % len(videos):][:8], config, k)
        z = caption_scores(frames, texts, valid)
        loss = alignment_loss(*net.scores(frames), z, valid, config.localizer.n_queries)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.)
        optimizer.step()
        curve.append(loss.item())
    first = statistics.mean(curve[:20])
    last = statistics.mean(curve[-20:])
    assert last < first, (first, last)
    print(f"  {preset}: {steps} steps of the localizer alone at the preset's rate, "
          f"L_align {first:.3f} to {last:.3f}")


def dry_run(preset):
    config = Config.preset(preset, "sail_plus")
    videos = list(read_annotations(ANNOTATIONS/SETS[preset], intervals=True).values())
    torch.manual_seed(0)
    net = FrameLocalizer(config)
    with torch.no_grad(): align_all(preset, videos, config, net)
    train_localizer(preset, videos, config, net)


if __name__ == "__main__":
    for preset in ("toy", "activitynet"): cost(preset)      # a step of YouCook2 has the same parts
    if ANNOTATIONS.exists():
        for preset in SETS: dry_run(preset)
    else: print(f"dry run left out: {ANNOTATIONS.name} is not there")
