"Annotation files: the statistics of the real sets, the three forms, and that training cannot see a time stamp."
import json
from pathlib import Path

import pytest

from sail_nbdev.core import InputError, write_json
from sail_nbdev.data import annotation_files, annotation_stats, read_annotations
from sail_nbdev.features import find_videos

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
