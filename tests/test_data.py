"Annotations, predictions, and batches: the real sets, every form, and that training cannot see a time stamp."
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sail_nbdev.config import Config
from sail_nbdev.core import Event, InputError, Video, write_json
from sail_nbdev.data import DeviceData, annotation_files, annotation_stats, batches, predictions_json
from sail_nbdev.data import _fetched_ahead, read_annotations, read_predictions, write_predictions
from sail_nbdev.store import FeatureStore
from sail_nbdev.video import find_videos

ANNOTATIONS = Path(__file__).resolve().parents[2]/"shared"/"data"/"annotations"
FIELDS = ("videos", "captions", "mean_events", "least_events", "most_events",
          "mean_seconds", "mean_words", "mean_segment_share", "gaps", "order_violations")
STATISTICS = {
    "anet_train": (10_009, 37_421, 3.74, 2, 27, 117.3, 13.5, .306, 27_412, 1_670),
    "anet_val_1": (4_917, 17_505, 3.56, 2, 25, 118.2, 13.6, .323, 12_588, None),
    "anet_val_2": (4_885, 17_031, 3.49, 3, 15, 118.2, 12.0, .346, 12_146, None),
    "yc2_train": (1_333, 10_337, 7.75, 3, 16, 317.7, 8.8, .063, 9_004, 0),
    "yc2_val": (457, 3_492, 7.64, 3, 16, 308.9, 8.7, .064, 3_035, None),
}
ROUNDED = dict(mean_events=.0051, mean_seconds=.051, mean_words=.051, mean_segment_share=.00051)


# -- annotations

@pytest.mark.skipif(not ANNOTATIONS.exists(), reason="the annotation files are not beside the checkout")
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_the_real_sets(name):
    "The table of the method notes (A.2), and their share of videos whose captions are out of order."
    stats = annotation_stats(read_annotations(ANNOTATIONS/f"{name}.json", intervals=True))
    for field, value in zip(FIELDS, STATISTICS[name]):
        if value is not None: assert stats[field] == pytest.approx(value, abs=ROUNDED.get(field, 0)), field


def listed(path, *rows):
    "A `.jsonl` file of these rows."
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_a_list_names_videos_and_their_captions(tmp_path):
    (tmp_path/"videos").mkdir()
    (tmp_path/"videos"/"one.mp4").touch()
    one = {"id": "first", "path": "videos/one.mp4", "captions": ["A man walks.", "He sits."]}
    two = {"id": "second", "path": "videos/two.mp4", "captions": ["A cat."]}
    path = listed(tmp_path/"set.jsonl", one, two)
    captions = {v: o.captions for v, o in read_annotations(path).items()}
    assert captions == {"first": ("A man walks.", "He sits."), "second": ("A cat.",)}
    files = {"first": tmp_path/"videos"/"one.mp4", "second": tmp_path/"videos"/"two.mp4"}
    assert find_videos([path]) == files
    assert list(find_videos([path, str(tmp_path/"videos")])) == ["one", "first", "second"]


def test_two_videos_cannot_share_an_id(tmp_path):
    (tmp_path/"videos").mkdir()
    (tmp_path/"videos"/"first.mp4").touch()
    path = listed(tmp_path/"set.jsonl", {"id": "first", "path": "videos/one.mp4", "captions": ["A."]})
    with pytest.raises(InputError, match="would both be stored as 'first'"):
        find_videos([path, str(tmp_path/"videos")])
    other = listed(tmp_path/"other.jsonl", {"id": "first", "path": "videos/three.mp4", "captions": ["B."]})
    with pytest.raises(InputError, match="would both be stored as 'first'"): find_videos([path, other])
    pathless = listed(tmp_path/"pathless.jsonl", {"id": "first", "captions": ["A."]})
    with pytest.raises(InputError, match="video first: needs the path"): find_videos([pathless])


def test_files_of_a_split(tmp_path):
    write_json(tmp_path/"annotations"/"val_2.json", {})
    write_json(tmp_path/"annotations"/"val_1.json", {})
    (tmp_path/"annotations"/"train.jsonl").touch()
    assert [p.name for p in annotation_files(tmp_path, "val")] == ["val_1.json", "val_2.json"]
    assert [p.name for p in annotation_files(tmp_path, "train")] == ["train.jsonl"]
    write_json(tmp_path/"annotations"/"val.json", {})
    assert [p.name for p in annotation_files(tmp_path, "val")] == ["val.json"]
    with pytest.raises(InputError, match="test.json: no such file"): annotation_files(tmp_path, "test")


WRONG_ANNOTATIONS = {
    "[]": "at least one video",
    "[1]": "is in no form that is known here, but a list that begins with '1'",
    "{}": "at least one video",
    '{"v": 3}': "video v: must be a list of events",
    '{"v": {}}': "video v: needs a list 'sentences'",
    '{"v": {"sentences": [3]}}': "video v: sentence 3 is not a text",
    '{"v": {"sentences": ["a"], "duration": 0}}': "duration 0 is not a positive",
    '{"v": {"sentences": ["a"], "duration": NaN}}': "duration nan is not a positive",
    '{"v": {"sentences": ["a"], "duration": "long"}}': "duration 'long' is not a positive",
    '{"v": {"sentences": ["a"], "duration": true}}': "duration True is not a positive",
    '{"v": {"sentences": ["a"]}, "v": {"sentences": ["b"]}}': "'v' stands twice",
    '{"database": {"v": {}}}': "video v: needs a list 'sentences'",
    '{"v": {"sentences": ["a"], "timestamps": [[1]]}}': "video v: event 0: timestamp=[1] must be two numbers",
    '{"v": {"sentences": ["a"], "timestamps": [[1, Infinity]]}}': "timestamp=[1.0, inf] must be finite",
    '{"v": {"sentences": ["a", "b"], "timestamps": [[1, 2]]}}': "as long as timestamps (1)",
}


@pytest.mark.parametrize("text", WRONG_ANNOTATIONS)
def test_wrong_annotations_are_one_sentence(tmp_path, text):
    (tmp_path/"a.json").write_text(text)
    with pytest.raises(InputError) as e: read_annotations(tmp_path/"a.json", intervals="timestamps" in text)
    message = str(e.value)
    assert WRONG_ANNOTATIONS[text] in message
    assert message.startswith(str(tmp_path/"a.json")) and "\n" not in message


# -- predictions

EVENTS = {"v1": [Event(5., 9., "It stops.", center=.7, width=.4),
                 Event(0., 4.5, "A ball rolls — “fast”.")],
          "v2": [], "v3": [Event(1., 1., "")]}
ROWS = {"v1": [{"sentence": "A ball rolls.", "timestamp": [0, 4]},
               {"sentence": "It stops.", "timestamp": [5, 9]}]}
READ = {"v1": [Event(0., 4., "A ball rolls."), Event(5., 9., "It stops.")]}


def test_predictions_come_back_as_they_were_written(tmp_path):
    write_predictions(EVENTS, tmp_path/"deep"/"p.json")
    assert read_predictions(tmp_path/"deep"/"p.json") == EVENTS
    assert read_predictions(str(tmp_path/"deep"/"p.json")) == EVENTS


def test_the_results_form_is_the_one_of_the_field():
    assert predictions_json(READ) == {"results": ROWS}
    row = predictions_json(EVENTS)["results"]["v1"][0]
    assert row == {"sentence": "It stops.", "timestamp": [5., 9.], "center": .7, "width": .4}


@pytest.mark.parametrize("source", [
    ROWS, {"results": ROWS}, {"results": ROWS, "durations": {"v1": 9.}, "version": "1.0"},
    READ, {"results": READ},
    {"v1": {"duration": 9, "timestamps": [[0, 4], [5, 9]], "sentences": ["A ball rolls.", "It stops."]}},
    {"v1": [{"sentence": "A ball rolls.", "timestamp": np.array([0, 4])}, READ["v1"][1]]},
], ids=["bare", "results", "with durations", "events", "events in results", "annotations", "mixed"])
def test_every_form_of_predictions_is_read(source):
    assert read_predictions(source) == READ


def row(**fields):
    "Predictions whose second event has these fields."
    right = {"sentence": "a", "timestamp": [0, 1]}
    return {"v": [right, {**right, **fields}]}


def annotated(times, sentences): return {"v": {"timestamps": times, "sentences": sentences}}


WRONG_PREDICTIONS = {
    "a list": ([3], "is in no form that is known here"),
    "empty": ({}, "holds no videos"),
    "empty results": ({"results": {}}, "holds no videos"),
    "results no object": ({"results": [1]}, "results: the top level must be an object"),
    "a number for a video": ({"results": {"v": 3}}, "video v: must be a list of events"),
    "a number for an event": ({"v": [3]}, "video v: event 0 must be an object with sentence and timestamp"),
    "no sentence": ({"v": [{"timestamp": [0, 1]}]}, "video v: event 0 must be an object with sentence"),
    "no text": (row(sentence=3), "video v: event 1: sentence=3 must be text"),
    "one time": (row(timestamp=[0]), "video v: event 1: timestamp=[0] must be two numbers"),
    "a word for a time": (row(timestamp=[0, "end"]), "video v: event 1: timestamp=[0, 'end'] must be two"),
    "a flag": (row(timestamp=[0, True]), "must be two numbers"),
    "not finite": (row(timestamp=[0, float("nan")]), "video v: event 1: timestamp=[0.0, nan] must be finite"),
    "centre": (row(center=2), "video v: event 1: center=2 must be a number in [0,1]"),
    "width": (row(width="wide"), "video v: event 1: width='wide' must be a number in [0,1]"),
    "fewer sentences": (annotated([[0, 1]], []), "sentences must be a list as long as timestamps (1)"),
    "annotated without text": (annotated([[0, 1]], [3]), "event 0: sentence=3 must be text"),
}


@pytest.mark.parametrize("name", WRONG_PREDICTIONS)
def test_wrong_predictions_are_one_sentence(tmp_path, name):
    value, words = WRONG_PREDICTIONS[name]
    (tmp_path/"p.json").write_text(json.dumps(value))
    with pytest.raises(InputError) as e: read_predictions(tmp_path/"p.json")
    message = str(e.value)
    assert words in message and message.startswith(str(tmp_path/"p.json")) and "\n" not in message
    with pytest.raises(InputError, match="^predictions: "): read_predictions(value)


def test_files_that_are_no_json_are_named(tmp_path):
    with pytest.raises(InputError, match="p.json: no such file"): read_predictions(tmp_path/"p.json")
    (tmp_path/"p.json").write_text("{")
    with pytest.raises(InputError, match="p.json: not JSON at line 1"): read_predictions(tmp_path/"p.json")


# -- training and time stamps

SENTENCES = ["A ball rolls.", "It stops.", "It rolls again."]


def data_folder(folder, stamps, videos=6):
    "A data folder; `stamps(n)` is what its annotation file says of the times of n captions."
    rng = np.random.default_rng(0)
    n = {f"v{i}": 2 + i % 2 for i in range(videos)}
    record = lambda k: {"duration": 20., "timestamps": stamps(k), "sentences": SENTENCES[:k]}
    write_json(folder/"annotations"/"train.json", {v: record(k) for v, k in n.items()})
    write_json(folder/"synthetic.json", {v: ["Then."] * (k - 1) for v, k in n.items()})
    rows_of = {"features": lambda k: 9, "text": lambda k: k, "synthetic_text": lambda k: k - 1}
    for name, rows in rows_of.items():
        store = FeatureStore.create(folder/name, dim=12, fps=1.0)
        for v, k in n.items(): store.add(v, rng.normal(size=(rows(k), 12)).astype(np.float32))
    return folder


TINY = {"data.feature_dim": 12, "data.n_frames": 9, "data.max_captions": 4, "localizer.n_queries": 4,
        "captioner.d_model": 16, "captioner.n_heads": 2, "captioner.encoder_ffn": 24,
        "captioner.decoder_width": 20, "captioner.decoder_heads": 2,
        "localizer.d_model": 16, "localizer.n_heads": 2, "localizer.ffn": 24,
        "train.batch_size": 2, "train.accumulate": 1, "train.epochs_stage1": 1, "train.epochs_stage2": 1}


def test_time_stamps_change_nothing_in_training(tmp_path):
    "Right, shuffled, and not even numbers: the weights of both stages are the same to the bit."
    from safetensors.torch import load_file
    from sail_nbdev.train import train
    config = Config.preset("toy", overrides=TINY)
    stamps = (lambda k: [[5 * j, 5 * j + 4] for j in range(k)], lambda k: [[19 - j, 20] for j in range(k)],
              lambda k: "nonsense")
    weights = []
    for i, of in enumerate(stamps):
        train(config, data_folder(tmp_path/f"d{i}", of), tmp_path/f"r{i}", device="cpu", progress=False)
        weights.append(load_file(tmp_path/f"r{i}"/"model.safetensors"))
    for name, w in weights[0].items():
        assert torch.equal(w, weights[1][name]) and torch.equal(w, weights[2][name]), name


# -- where the frames lie

def made_store(folder, n=20, dim=12):
    store = FeatureStore.create(folder, dim=dim)
    rng = np.random.default_rng(1)
    for i in range(n): store.add(f"v{i}", rng.normal(size=(3 + i, dim)).astype(np.float32))
    return store


SAMPLE = """
import sys
from sail_nbdev.store import FeatureStore
a = FeatureStore(sys.argv[1]).sampled([f"v{i}" for i in range(20)], 8)
print(a.shape, float(a.sum()))
"""


@pytest.mark.slow
def test_processes_that_sample_at_once_find_one_array(tmp_path):
    store = made_store(tmp_path/"s")
    ids = [f"v{i}" for i in range(20)]
    call = [sys.executable, "-c", SAMPLE, str(tmp_path/"s")]
    processes = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {p.communicate()[0] for p in processes}
    assert outputs == {f"(20, 8, 12) {float(store.sampled(ids, 8).sum())}\n"}
    assert len(list((tmp_path/"s"/"sampled").iterdir())) == 1
    assert np.array_equal(store.sampled(ids, 8), store.batch(ids, 8).numpy())


def test_a_store_that_cannot_be_written_to_is_sampled_in_memory(tmp_path, monkeypatch):
    store = made_store(tmp_path/"s", 3)
    access = os.access
    refuse = lambda p, how: not (Path(p) == store.folder and how == os.W_OK) and access(p, how)
    monkeypatch.setattr(os, "access", refuse)
    frames = store.sampled(["v0", "v2"], 5)
    assert not isinstance(frames, np.memmap) and not (tmp_path/"s"/"sampled").exists()
    assert np.array_equal(frames, store.batch(["v0", "v2"], 5).numpy())


def test_a_mapped_batch_can_be_changed_without_changing_the_file(tmp_path):
    store = made_store(tmp_path/"s", 4)
    ids = ["v0", "v1", "v2", "v3"]
    before = store.sampled(ids, 5).copy()
    config = Config.preset("toy", overrides={"data.feature_dim": 12, "data.n_frames": 5})
    data = DeviceData({v: Video(v, ("a", "b")) for v in ids}, store, config)
    data.batch([0, 1]).frames.zero_()
    data.frames.mul_(2)
    assert np.array_equal(store.sampled(ids, 5), before)


def test_a_batch_is_fetched_while_the_one_before_it_is_in_use(monkeypatch):
    "The order of things on the way from pinned memory, with streams that only take notes."
    log = []
    wait = lambda event: log.append(f"wait until {event}")
    stream = SimpleNamespace(record_event=lambda: "copied", wait_event=wait)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda side: nullcontext())
    def batch(index):
        log.append(f"fetch {index}")
        return SimpleNamespace(index=index)
    data = SimpleNamespace(device="cuda", batch=batch)
    for b in _fetched_ahead(data, [0, 1, 2]): log.append(f"use {b.index}")
    copied = "wait until copied"
    assert log == ["fetch 0", "fetch 1", copied, "use 0", "fetch 2", copied, "use 1", copied, "use 2"]
    assert list(_fetched_ahead(data, [])) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_frames_on_a_gpu_and_on_the_way_there_are_the_same(tmp_path, precision):
    store = made_store(tmp_path/"s")
    videos = {f"v{i}": Video(f"v{i}", ("a", "b")) for i in range(20)}
    overrides = {"data.feature_dim": 12, "data.n_frames": 8, "train.precision": precision}
    config = Config.preset("toy", overrides=overrides)
    near, host = (DeviceData(videos, store, config, device="cuda", resident=r) for r in (True, False))
    assert near.frames.is_cuda and host.frames.is_pinned()
    assert near.frames.dtype == (torch.float32 if precision == "no" else torch.float16)
    order = batches(near, 3, 0)
    for a, b in zip(near.stream(order), host.stream(order), strict=True):
        assert a.ids == b.ids and b.frames.is_cuda
        assert torch.equal(a.frames, b.frames) and torch.equal(a.texts, b.texts)
