"The world between has the statistics of its annotation file; calibration on it is blind to times."
import dataclasses
import inspect
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from sail_nbdev.alignment import align_captions, calibrate
from sail_nbdev.core import Video
from sail_nbdev.data import annotation_stats, read_annotations
from sail_nbdev.evaluate import interval_iou, precision_recall
from sail_nbdev.semireal import CLIP_COSINES, SemiReal, make_footage, margins

ANNOTATIONS = Path(__file__).resolve().parents[2]/"shared"/"data"/"annotations"
SETS = {"anet_train": 32, "yc2_train": 100}     # frames
TIOUS = (.3, .5, .7, .9)


def annotated(name, most=300):
    path = ANNOTATIONS/f"{name}.json"
    if not path.is_file(): pytest.skip("needs the annotation files")
    videos = read_annotations(path, intervals=True).values()
    return list(itertools.islice((v for v in videos if v.captions), most))


def f1(footage, centers, widths):
    "Mean over thresholds of the F1 of mean precision and mean recall."
    scores = []
    for c, w, spans, ok in zip(centers, widths, footage.spans, footage.valid):
        ends = torch.stack([c - w / 2, c + w / 2], -1)[ok].clamp(0, 1).numpy()
        iou = interval_iou(ends[:, None], spans[ok].numpy()[None])
        scores.append([precision_recall(iou, t) for t in TIOUS])
    p, r = np.mean(scores, 0).T
    return float((2 * p * r / (p + r)).mean())


@pytest.fixture(scope="module", params=SETS)
def real(request):
    videos = annotated(request.param)
    return videos, make_footage(videos, SemiReal(n_frames=SETS[request.param], noise=4.))


def test_it_has_the_statistics_of_its_annotations(real):
    videos, footage = real
    spans = [np.array(v.intervals) / v.duration for v in videos]
    stats = annotation_stats({v.id: v for v in videos})
    assert footage.valid.sum() == stats["captions"] and footage.valid.sum(1).max() == stats["most_events"]
    for i, s in enumerate(spans): np.testing.assert_allclose(footage.spans[i, :len(s)], s.clip(0, 1))
    centers = [s.mean(-1)[ok] for s, ok in zip(footage.spans, footage.valid)]
    disorder = sum(bool((c.diff() < 0).any()) for c in centers)
    assert disorder == sum(bool((np.diff(s.clip(0, 1).mean(1)) < 0).any()) for s in spans)


def test_it_is_as_hard_as_clip(real):
    "With more noise the mean cosine falls into the published range, and true intervals still fit best."
    videos, footage = real
    hard = make_footage(videos, SemiReal(n_frames=footage.frames.shape[1], noise=6.5))
    low, high = CLIP_COSINES
    assert low < margins(hard)["cosine"] < high + .05 and 0 < margins(hard)["margin"] < .07


def test_calibration_is_near_the_best_in_hindsight(real):
    _, footage = real
    seen = footage.frames, footage.texts, footage.valid
    def score(*option): return f1(footage, *align_captions(*seen, *option))
    best = max(score(theta, b) for theta in (.125, .25) for b in (-1., -.5, 0., .5, .75, 1.))
    assert score(*calibrate(*seen)) > max(.95 * best, score() + .05)


@pytest.mark.slow
@pytest.mark.parametrize("harder", [dict(correlation=.85), dict(topic=1.5, background=1.5)])
def test_calibration_is_near_the_best_where_frames_err_alike(harder):
    "Noise that goes on, and a large part that a whole video shares, do not make events too short."
    footage = make_footage(annotated("yc2_train"), SemiReal(n_frames=100, noise=4., **harder))
    seen = footage.frames, footage.texts, footage.valid
    best = max(f1(footage, *align_captions(*seen, .125, b)) for b in (.5, .75, 1.))
    assert f1(footage, *align_captions(*seen, *calibrate(*seen))) > .95 * best


def made_up(n=60):
    "Videos of two to four events, one of them out of order, two that overlap."
    rng = np.random.default_rng(0)
    words = "cat dog runs eats jumps sleeps ball tree red blue wet old house door opens falls".split()
    videos = []
    for i in range(n):
        captions = tuple(" ".join(rng.choice(words, 4, replace=False)) for _ in range(2 + i % 3))
        ends = np.sort(rng.random((len(captions), 2)), 0) * 60
        videos.append(Video(f"v{i}", captions, 60., tuple((min(o), max(o)) for o in ends.tolist())))
    return videos


def test_no_time_stamp_reaches_the_calibration():
    "It takes frames and captions, and other true times beside the same frames change nothing but the score."
    assert list(inspect.signature(calibrate).parameters)[:3] == ["frames", "texts", "valid"]
    footage = make_footage(made_up(), SemiReal(noise=2.))
    other = dataclasses.replace(footage, spans=footage.spans.flip(1) * .5)
    answers = [(calibrate(o.frames, o.texts, o.valid), f1(o, *align_captions(o.frames, o.texts, o.valid)))
               for o in (footage, other)]
    assert answers[0][0] == answers[1][0] and answers[0][1] != answers[1][1]


def test_embeddings_know_no_time_stamp():
    "The captions' embeddings stay where all times change."
    videos = made_up(20)
    moved = [dataclasses.replace(v, intervals=((0., 1.),) * len(v.captions)) for v in videos]
    assert torch.equal(make_footage(videos).texts, make_footage(moved).texts)
