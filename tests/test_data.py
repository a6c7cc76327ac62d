"Annotation files: the statistics of the real sets, the three forms, and that training cannot see a time stamp."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sail_nbdev.core import Config, InputError, Video, write_json
from sail_nbdev.data import DeviceData, annotation_files, annotation_stats, batches, read_annotations
from sail_nbdev.features import FeatureStore, find_videos

ANNOTATIONS = Path(__file__).resolve().parents[2]/"shared"/"data"/"annotations"


@pytest.mark.skipif(not ANNOTATIONS.exists(), reason="the annotation files are not beside the checkout")
@pytest.mark.parametrize("name,videos,captions,events,least,most,seconds,words,share,gaps,broken", [
    ("anet_train", 10_009, 37_421, 3.74, 2, 27, 117.3, 13.5, .306, 27_412, 1_670), ("anet_val_1", 4_917, 17_505, 3.56, 2, 25, 118.2, 13.6, .323, 12_588, None),
    ("anet_val_2", 4_885, 17_031, 3.49, 3, 15, 118.2, 12.0, .346, 12_146, None), ("yc2_train", 1_333, 10_337, 7.75, 3, 16, 317.7, 8.8, .063, 9_004, 0),
    ("yc2_val", 457, 3_492, 7.64, 3, 16, 308.9, 8.7, .064, 3_035, None)])
def test_statistics_of_the_real_sets(name, videos, captions, events, least, most, seconds, words, share, gaps, broken):
    "The table of the method notes (A.2), and their share of videos whose captions are out of order."
    found = annotation_stats(read_annotations(ANNOTATIONS/f"{name}.json", intervals=True))
    assert [found[k] for k in ("videos", "captions", "least_events", "most_events", "gaps")] == [videos, captions, least, most, gaps]
    assert found["mean_events"] == pytest.approx(events, abs=.0051) and found["mean_seconds"] == pytest.approx(seconds, abs=.051)
    assert found["mean_words"] == pytest.approx(words, abs=.051) and found["mean_segment_share"] == pytest.approx(share, abs=.00051)
    if broken is not None: assert found["order_violations"] == broken


def test_a_list_names_videos_and_their_captions(tmp_path):
    (tmp_path/"videos").mkdir()
    (tmp_path/"videos"/"one.mp4").touch()
    rows = [{"id": "first", "path": "videos/one.mp4", "captions": ["A man walks.", "He sits."]}, {"id": "second", "path": "videos/two.mp4", "captions": ["A cat."]}]
    (tmp_path/"set.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert {v: o.captions for v, o in read_annotations(tmp_path/"set.jsonl").items()} == {"first": ("A man walks.", "He sits."), "second": ("A cat.",)}
    assert find_videos([str(tmp_path/"set.jsonl")]) == {"first": tmp_path/"videos"/"one.mp4", "second": tmp_path/"videos"/"two.mp4"}
    assert list(find_videos([str(tmp_path/"set.jsonl"), str(tmp_path/"videos")])) == ["one", "first", "second"]
    (tmp_path/"videos"/"first.mp4").touch()
    with pytest.raises(InputError, match="would both be stored as 'first'"): find_videos([str(tmp_path/"set.jsonl"), str(tmp_path/"videos")])
    (tmp_path/"other.jsonl").write_text('{"id": "second", "path": "videos/three.mp4", "captions": ["B."]}\n')
    with pytest.raises(InputError, match="would both be stored as 'second'"): find_videos([str(tmp_path/"set.jsonl"), str(tmp_path/"other.jsonl")])
    (tmp_path/"set.jsonl").write_text('{"id": "first", "captions": ["A."]}\n')
    with pytest.raises(InputError, match="video first: needs the path"): find_videos([str(tmp_path/"set.jsonl")])


def test_files_of_a_split(tmp_path):
    write_json(tmp_path/"annotations"/"val_2.json", {}); write_json(tmp_path/"annotations"/"val_1.json", {})
    (tmp_path/"annotations"/"train.jsonl").touch()
    assert [p.name for p in annotation_files(tmp_path, "val")] == ["val_1.json", "val_2.json"]
    assert [p.name for p in annotation_files(tmp_path, "train")] == ["train.jsonl"]
    write_json(tmp_path/"annotations"/"val.json", {})
    assert [p.name for p in annotation_files(tmp_path, "val")] == ["val.json"]
    with pytest.raises(InputError, match="test.json: no such file"): annotation_files(tmp_path, "test")


@pytest.mark.parametrize("text,says", [
    ("[]", "top level must be an object"), ("{}", "at least one video"), ('{"v": 3}', "video v: must be an object"), ('{"v": {}}', "video v: needs a list 'sentences'"),
    ('{"v": {"sentences": [3]}}', "video v: sentence 3 is not a text"), ('{"v": {"sentences": ["a"], "duration": 0}}', "duration 0 is not a positive"),
    ('{"v": {"sentences": ["a"], "duration": NaN}}', "duration nan is not a positive"), ('{"v": {"sentences": ["a"]}, "v": {"sentences": ["b"]}}', "'v' stands twice"),
    ('{"database": {"v": {}}}', "annotations must be a list"), ('{"v": {"sentences": ["a"], "timestamps": [[1]]}}', "time stamp [1]"),
    ('{"v": {"sentences": ["a", "b"], "timestamps": [[1, 2]]}}', "timestamps must be a list of 2")])
def test_wrong_annotations_are_one_sentence(tmp_path, text, says):
    (tmp_path/"a.json").write_text(text)
    with pytest.raises(InputError) as e: read_annotations(tmp_path/"a.json", intervals="timestamps" in text)
    assert says in str(e.value) and str(e.value).startswith(str(tmp_path/"a.json")) and "\n" not in str(e.value)


# -- training and time stamps

def data_folder(folder, stamps, videos=6):
    "`videos` videos with features, captions, their embeddings and gap captions; `stamps(n)` is what the annotation file says of time."
    rng, n = np.random.default_rng(0), {f"v{i}": 2 + i % 2 for i in range(videos)}
    write_json(folder/"annotations"/"train.json", {v: {"duration": 20., "timestamps": stamps(k), "sentences": ["A ball rolls.", "It stops.", "It rolls again."][:k]} for v, k in n.items()})
    write_json(folder/"synthetic.json", {v: ["Then."] * (k - 1) for v, k in n.items()})
    for name, rows in (("features", lambda k: 9), ("text", lambda k: k), ("synthetic_text", lambda k: k - 1)):
        store = FeatureStore.create(folder/name, dim=12, fps=1.0)
        for v, k in n.items(): store.add(v, rng.normal(size=(rows(k), 12)).astype(np.float32))
    return folder


def test_time_stamps_change_nothing_in_training(tmp_path):
    "Right, shuffled, and not even numbers: the weights of both stages are the same to the bit."
    from safetensors.torch import load_file
    from sail_nbdev.train import train
    small = dict(feature_dim=12, d_model=16, n_heads=2, encoder_ffn=24, localizer_ffn=24, decoder_width=20, decoder_heads=2, n_frames=9, n_queries=4, max_captions=4)
    config = Config.preset("toy", **small, batch_size=2, accumulate=1, epochs_stage1=1, epochs_stage2=1)
    weights = []
    for i, stamps in enumerate((lambda k: [[5 * j, 5 * j + 4] for j in range(k)], lambda k: [[19 - j, 20] for j in range(k)], lambda k: "nonsense")):
        train(config, data_folder(tmp_path/f"d{i}", stamps), tmp_path/f"r{i}", device="cpu", progress=False)
        weights.append(load_file(tmp_path/f"r{i}"/"model.safetensors"))
    for name, w in weights[0].items(): assert torch.equal(w, weights[1][name]) and torch.equal(w, weights[2][name]), name


# -- where the frames lie

def made_store(folder, n=20, dim=12):
    store, rng = FeatureStore.create(folder, dim=dim), np.random.default_rng(1)
    for i in range(n): store.add(f"v{i}", rng.normal(size=(3 + i, dim)).astype(np.float32))
    return store


def test_processes_that_sample_at_once_find_one_array(tmp_path):
    store, ids = made_store(tmp_path/"s"), [f"v{i}" for i in range(20)]
    code = ("import sys; from sail_nbdev.features import FeatureStore\n"
            "a = FeatureStore(sys.argv[1]).sampled([f'v{i}' for i in range(20)], 8); print(a.shape, float(a.sum()))")
    ps = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path/"s")], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {p.communicate()[0] for p in ps} == {f"(20, 8, 12) {float(store.sampled(ids, 8).sum())}\n"}
    assert len(list((tmp_path/"s"/"sampled").iterdir())) == 1
    assert np.array_equal(store.sampled(ids, 8), store.batch(ids, 8).numpy())


def test_a_store_that_cannot_be_written_to_is_sampled_in_memory(tmp_path, monkeypatch):
    store = made_store(tmp_path/"s", 3)
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, how: False if Path(p) == store.folder and how == os.W_OK else access(p, how))
    found = store.sampled(["v0", "v2"], 5)
    assert not isinstance(found, np.memmap) and np.array_equal(found, store.batch(["v0", "v2"], 5).numpy()) and not (tmp_path/"s"/"sampled").exists()


def test_a_mapped_batch_can_be_changed_without_changing_the_file(tmp_path):
    store, ids = made_store(tmp_path/"s", 4), ["v0", "v1", "v2", "v3"]
    before = store.sampled(ids, 5).copy()
    data = DeviceData({v: Video(v, ("a", "b")) for v in ids}, store, Config.preset("toy", feature_dim=12, n_frames=5))
    data.batch([0, 1]).frames.zero_(); data.frames.mul_(2)
    assert np.array_equal(store.sampled(ids, 5), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_frames_on_a_gpu_and_on_the_way_there_are_the_same(tmp_path, precision):
    store, ids = made_store(tmp_path/"s"), [f"v{i}" for i in range(20)]
    videos, config = {v: Video(v, ("a", "b")) for v in ids}, Config.preset("toy", feature_dim=12, n_frames=8, precision=precision)
    there, host = (DeviceData(videos, store, config, device="cuda", resident=r) for r in (True, False))
    assert there.frames.is_cuda and host.frames.is_pinned() and there.frames.dtype == (torch.float32 if precision == "no" else torch.float16)
    order = batches(there, 3, 0)
    for a, b in zip(there.stream(order), host.stream(order), strict=True):
        assert a.ids == b.ids and b.frames.is_cuda and torch.equal(a.frames, b.frames) and torch.equal(a.texts, b.texts)
