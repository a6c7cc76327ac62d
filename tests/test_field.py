"A small file for every form in which the field keeps annotations and predictions, and for what is wrong."
import json
import math
import random

import pytest

from sail_nbdev.core import Event, InputError, write_json
from sail_nbdev.data import FORMS, match_ids, read_annotations, read_predictions, read_timed

A = Event(0., 4., "A ball rolls.")
B = Event(5., 9., "It stops.")
COLUMNS = {"timestamps": [[0, 4], [5, 9]], "sentences": [A.caption, B.caption]}
BALL = {"duration": 9., **COLUMNS}
SUBTITLES = ("1\n00:00:00,000 --> 00:00:04,000\nA ball rolls.\n\n"
             "2\n00:00:05,000 --> 00:00:09,000\nIt stops.\n")


def lines(*rows): return "".join(json.dumps(row) + "\n" for row in rows)


def rows(start, end, sentence, **more):
    "Two events under these keys."
    return [{**more, start: e.start, end: e.end, sentence: e.caption} for e in (A, B)]


def windows(event):
    "A row of QVHighlights."
    return {"vid": "v1", "query": event.caption, "relevant_windows": [[event.start, event.end]]}


ETBENCH = {"version": 1., "task": "dvc", "video": "v1", "duration": 9., "tgt": [[0, 4], [5, 9]],
           "g": [A.caption, B.caption], "q": "What happens?"}
TIMECHAT = {"image_id": "v1", "duration": 9., "segments": [[0, 4], [5, 9]], "id": 0,
            "caption": "<time_token_0> <time_token_42> a ball rolls", "pure_cap": "A ball rolls.. It stops."}
HUB = {"video_id": "v1", "video_path": "v1.mp4", "duration": 9., "captions_starts": [0., 5.],
       "captions_ends": [4., 9.], "en_captions": [A.caption, B.caption]}
TAGS = [{"timestamp": 0, "tag": A.caption}, {"timestamp": 4000, "tag": B.caption}]
FRAMES = {"num_frames": 270, "fps": 30., "timestamps": [[0, 120], [150, 270]],
          "sentences": COLUMNS["sentences"]}
YOUCOOK = {"duration": 9., "subset": "training", "annotations": [
    {"id": i, "segment": [e.start, e.end], "sentence": e.caption} for i, e in enumerate((A, B))]}
QWEN = [{"start_time": "00:00", "end_time": "00:04", "description": A.caption},
        {"start_time": "00:05", "end_time": "00:09.0", "description": B.caption}]

# name -> (file, its text, its form)
FILES = {
    "ActivityNet": ("a.json", json.dumps({"v1": BALL}), "ActivityNet"),
    "YouCook2": ("a.json", json.dumps({"database": {"v1": YOUCOOK}}), "YouCook2"),
    "own list": ("a.jsonl", lines({"id": "v1", "captions": COLUMNS["sentences"],
                                      "timestamps": [[0, 4], [5, 9]]}), "list"),
    "QVHighlights": ("a.jsonl", lines(windows(A), windows(B)), "QVHighlights"),
    "Charades-STA": ("a.txt", "v1 0.0 4.0##A ball rolls.\nv1 5.0 9.0##It stops.\n", "Charades-STA"),
    "E.T.Bench": ("a.json", json.dumps([ETBENCH]), "E.T.Bench"),
    "TimeChat's truth": ("a.json", json.dumps({"annotations": [TIMECHAT]}), "TimeChat"),
    "hub rows": ("a.json", json.dumps([HUB]), "list"),
    "TACoS": ("a.json", json.dumps({"v1": FRAMES}), "TACoS"),
    "results": ("p.json", json.dumps({"results": {"v1": [
        {"sentence": e.caption, "timestamp": [e.start, e.end]} for e in (A, B)]}}), "results"),
    "TimeChat": ("p.json", json.dumps({"v1.mp4": [
        {"timestamp": [e.start, e.end], "caption": e.caption} for e in (A, B)]}), "events by video"),
    "TRACE": ("p.jsonl", lines({"video": "v1", "timestamps": [[0, 4], [5, 9]],
                                "captions": COLUMNS["sentences"]}), "list"),
    "Qwen-VL by video": ("p.json", json.dumps({"v1": QWEN}), "events by video"),
    "Qwen-VL of one video": ("v1.json", json.dumps(QWEN), "events by video"),
    "Qwen-VL in text": ("p.json", json.dumps({"v1": f"Sure!\n```json\n{json.dumps(QWEN)}\n```"}), "answers"),
    "Qwen-VL cut off": ("p.json", json.dumps({"v1": f"```json\n{json.dumps(QWEN)[:-1]}, {{\"s"}), "answers"),
    "mm:ss in text": ("v1.txt", "00:00 - 00:04: A ball rolls.\n00:05 - 00:09: It stops.", "answers"),
    "hh:mm:ss in text": ("v1.txt", "* [0:00:00 - 0:00:04] A ball rolls.\n* [0:00:05 - 0:00:09] It stops.",
                         "answers"),
    "TimeChat text": ("p.jsonl", lines({"vid": "v1", "response": "0.0 - 4.0 seconds, A ball rolls. "
                                        "5.0 - 9.0 seconds, It stops."}), "answers"),
    "Marlin": ("p.json", json.dumps({"v1": "<0.0 - 4.0> A ball rolls.\n<5.0 - 9.0> It stops."}), "answers"),
    "rows": ("p.json", json.dumps(rows("start", "end", "sentence", video="v1")), "rows"),
    "comma-separated": ("p.csv", "Video ID,Start Time,End Time,Caption\nv1,0:00,0:04,A ball rolls.\n"
                                 "v1,5.0,9.0s,It stops.\n", "rows"),
    "tab-separated": ("p.tsv", "vid\tbegin\tstop\ttext\nv1\t0\t4\tA ball rolls.\nv1\t5\t9\tIt stops.\n",
                      "rows"),
    "SRT": ("v1.srt", SUBTITLES, "subtitles"),
    "VTT": ("v1.vtt", "WEBVTT\n\n" + SUBTITLES.replace(",", "."), "subtitles"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_form_is_told_by_its_shape(tmp_path, name):
    file, text, form = FILES[name]
    (tmp_path/file).write_text(text)
    reading = read_timed(tmp_path/file)
    assert reading.form == form
    assert [*reading.events.values()] == [[A, B]]
    assert next(iter(reading.events)).removesuffix(".mp4") == "v1"
    assert reading.unread == [] and not any(reading.repaired.values())


@pytest.mark.parametrize("name", FILES)
def test_every_form_with_times_trains_too(tmp_path, name):
    "The reader of annotations takes the same files, sentences alone."
    file, text, _ = FILES[name]
    (tmp_path/file).write_text(text)
    video, = read_annotations(tmp_path/file).values()
    assert video.captions == (A.caption, B.caption) and video.intervals is None


@pytest.mark.parametrize("name", FILES)
def test_a_form_can_be_forced(tmp_path, name):
    file, text, form = FILES[name]
    (tmp_path/file).write_text(text)
    assert read_timed(tmp_path/file, form).events == read_timed(tmp_path/file).events


def test_every_form_has_a_file_here():
    assert {form for _, _, form in FILES.values()} | {"ViTT", "sentences"} == set(FORMS)


# -- forms with something of their own

def test_vitt_tells_starts_in_milliseconds_and_has_several_annotators(tmp_path):
    other = [{"timestamp": 1000, "tag": "All of it."}]
    (tmp_path/"ViTT-annotations.json").write_text(
        lines({"id": "FmTp", "annotations": TAGS}, {"id": "FmTp", "annotations": other}))
    reading = read_timed(tmp_path/"ViTT-annotations.json", durations={"FmTp": 9.})
    assert reading.form == "ViTT" and len(reading.annotators) == 2
    assert reading.events == {"FmTp": [A, Event(4., 9., "It stops.")]}
    assert reading.others == [{"FmTp": [Event(1., 9., "All of it.")]}]
    assert reading.repaired["last events ended with their video"] == 2
    assert read_annotations(tmp_path/"ViTT-annotations.json")["FmTp"].captions == (A.caption, B.caption)
    with pytest.raises(InputError, match="video FmTp: event 1: .* has no end, and no duration is known"):
        read_timed(tmp_path/"ViTT-annotations.json")


def test_annotators_before_the_name(tmp_path):
    write_json(tmp_path/"dev.json", {"0_abcdefghijk": BALL, "1_abcdefghijk": BALL, "0_bbcdefghijk": BALL})
    reading = read_timed(tmp_path/"dev.json")
    assert list(reading.events) == ["abcdefghijk", "bbcdefghijk"]
    assert list(reading.others[0]) == ["abcdefghijk"]


def test_a_folder_holds_a_file_for_each_video(tmp_path):
    (tmp_path/"v1.srt").write_text(SUBTITLES)
    (tmp_path/"v2.srt").write_text(SUBTITLES)
    assert read_predictions(tmp_path) == {"v1": [A, B], "v2": [A, B]}
    (tmp_path/"v2.vtt").write_text("WEBVTT\n\n" + SUBTITLES)
    with pytest.raises(InputError, match="holds two files named v2"): read_predictions(tmp_path)


def test_a_folder_of_answers(tmp_path):
    (tmp_path/"v1.txt").write_text("From 0:00 to 0:04, A ball rolls.\nFrom 0:05 to 0:09, It stops.")
    (tmp_path/"v2.json").write_text(json.dumps(QWEN))
    assert read_predictions(tmp_path) == {"v1": [A, B], "v2": [A, B]}


def test_sentences_alone_are_enough_to_train(tmp_path):
    write_json(tmp_path/"mine.json", {"bikes": ["A street.", "Bikes pass."]})
    assert read_annotations(tmp_path/"mine.json")["bikes"].captions == ("A street.", "Bikes pass.")
    with pytest.raises(InputError, match="video bikes: timestamps must be a list"):
        read_timed(tmp_path/"mine.json")


def test_a_file_with_a_byte_order_mark_and_semicolons(tmp_path):
    (tmp_path/"p.csv").write_text("\ufeffvideo;start;end;sentence\nv1;0;4;A ball rolls.\nv1;5;9;It stops.\n")
    assert read_predictions(tmp_path/"p.csv") == {"v1": [A, B]}


# -- what is repaired is counted

def test_repairs_are_counted():
    events = [{"timestamp": [4, 0], "sentence": A.caption},
              {"timestamp": [5, 30], "sentence": ["It", "stops."]}]
    reading = read_timed({"v_v1": events}, durations={"v1": 9.})
    assert reading.events == {"v_v1": [A, B]}
    counts = {k: n for k, n in reading.repaired.items() if n}
    assert counts == {"reversed times put in order": 1, "events beyond the end of their video cut": 1,
                      "sentences given as lists joined": 1}
    notes = reading.notes()
    assert notes[0] == "form: events by video, 1 videos" and "1 reversed times put in order" in notes


def test_half_a_second_beyond_the_end_is_left():
    assert read_timed({"v": {**BALL, "timestamps": [[0, 4], [5, 9.5]]}}).events["v"][1].end == 9.5
    assert read_timed({"v": {**BALL, "timestamps": [[0, 4], [5, 9.6]]}}).events["v"][1].end == 9.


def test_texts_that_nobody_can_read_are_listed():
    reading = read_timed({"v1": "0 - 4 s: A ball rolls.", "v2": "I cannot watch videos.", "v3": ""})
    assert reading.events == {"v1": [A], "v2": [], "v3": []} and reading.unread == ["v2", "v3"]
    assert reading.notes()[-1] == "2 videos without a readable event, scored as empty: v2, v3"


@pytest.mark.parametrize("text", ["2 - 3 onions are cut.", "In 2010 - 2012 he cooks.", "Steps 1 to 4.", "{}"])
def test_numbers_in_a_sentence_are_no_times(text):
    assert read_timed({"v": text}).unread == ["v"]


# -- what cannot be told is refused

LONG = {"duration": 60., "timestamps": [[0, 20_000], [20_000, 60_000]], "sentences": ["a", "b"]}
WRONG = {
    "milliseconds": ({"v": LONG}, "milliseconds or frames"),
    "milliseconds without durations": ({"v": {**LONG, "duration": None}}, "milliseconds or frames"),
    "frames or seconds": ({"v": {**FRAMES, "timestamps": [[0, 4], [5, 9]]}}, "could be frames or seconds"),
    "frames of unknown rate": ({"v": {**FRAMES, "fps": None}}, "num_frames and fps must be numbers"),
    "numbers": ([1, 2], "is in no form that is known here, but a list that begins with '1'"),
    "a row without a name": ([{"id": "a", "start": 0, "end": 1, "text": "a"}, {"start": 0}],
                             "line 2: must be an object with an id"),
    "sentences of another number": ({"annotations": [{**TIMECHAT, "pure_cap": "Only one"}]},
                                    "sentences must be a list as long as timestamps (2)"),
    "tags without times": ([{"id": "a", "annotations": [{"tag": "x"}]}], "line 1: needs annotations with"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_told_is_one_sentence(tmp_path, name):
    value, words = WRONG[name]
    write_json(tmp_path/"a.json", value)
    with pytest.raises(InputError) as e: read_timed(tmp_path/"a.json")
    message = str(e.value)
    assert words in message and message.startswith(str(tmp_path/"a.json")) and "\n" not in message


@pytest.mark.parametrize("file, text, words", [
    ("p.csv", "video,start,end,sentence\n", "holds no row"),
    ("p.csv", "video,start,end,sentence\nv,1\n", "row 2 has not as many cells"),
    ("p.srt", "no subtitles", "is no subtitle file"),
    ("p.docx", "x", "ends in '.docx', not in one of .json"),
    ("p.txt", "v1 0 4##a\nv1 5 9", "line 2: must be 'ID start end##sentence'"),
])
def test_files_that_are_damaged(tmp_path, file, text, words):
    (tmp_path/file).write_text(text)
    with pytest.raises(InputError) as e: read_timed(tmp_path/file)
    assert words in str(e.value) and str(e.value).startswith(str(tmp_path/file))


def test_a_forced_form_that_is_not_there():
    with pytest.raises(InputError, match="form='Vid2Seq': is not one of Activ"): read_timed({}, "Vid2Seq")
    with pytest.raises(InputError, match="is not in the form YouCook2"): read_timed({"v": BALL}, "YouCook2")
    frames = {"v": {**FRAMES, "timestamps": [[0, 4], [5, 9]]}}
    assert read_timed(frames, "TACoS").events["v"][0].end == pytest.approx(4 / 30)
    assert read_timed(frames, "ActivityNet").events["v"] == [A, B]


# -- names

@pytest.mark.parametrize("name, id, way", [
    ("v_QOlSCBRmfWY", "v_QOlSCBRmfWY", "exactly"),
    ("QOlSCBRmfWY", "v_QOlSCBRmfWY", "with or without v_"),
    ("v_QOlSCBRmfWY", "QOlSCBRmfWY", "with or without v_"),
    ("v_QOlSCBRmfWY_clip.npy", "v_QOlSCBRmfWY", "without endings"),
    ("QOlSCBRmfWY.mp4.npy", "v_QOlSCBRmfWY", "without endings"),
    ("youcook2/videos/QOlSCBRmfWY.mp4", "v_QOlSCBRmfWY", "without endings"),
    ("QOlSCBRmfWY_resnet", "QOlSCBRmfWY", "without endings"),
    ("0_QOlSCBRmfWY", "QOlSCBRmfWY", "without what stands before"),
    ("youtube-QOlSCBRmfWY.mp4", "v_QOlSCBRmfWY", "by the last eleven characters"),
])
def test_names_that_mean_one_video(name, id, way):
    matching = match_ids([name, "zzz"], [id, "v_other"])
    assert matching.pairs == {name: id} and matching.how == {way: 1} and matching.unmatched == ["zzz"]


def test_the_surest_way_comes_first():
    assert match_ids(["a", "v_b"], ["a", "v_a", "b"]).pairs == {"a": "a", "v_b": "b"}


def test_names_that_mean_nothing_or_too_much():
    with pytest.raises(InputError, match="feats: none of x, y is a name"): match_ids("xy", ["a"], "feats")
    with pytest.raises(InputError, match="'a' and 'v_a.npy' would both be video 'a'"):
        match_ids(["a", "v_a.npy"], ["a"])
    eleven = ["x-QOlSCBRmfWY", "y-QOlSCBRmfWY"]
    with pytest.raises(InputError, match="none of"): match_ids(["QOlSCBRmfWY"], eleven)


# -- nothing but one sentence, whatever a file holds

WORDS = """video id vid image_id timestamps timestamp sentences sentence captions tag annotations segments
    start end results database duration num_frames fps g tgt pure_cap relevant_windows query response events
    captions_starts v1""".split()
LEAVES = [None, True, 0, 1, -3, 2.5, math.nan, 1e308, "", "a b", "0:05", "x - y", "0 - 4: A.", "v 0 1##a",
          [], {}]


def anything(rng, depth=0):
    "A made-up value of JSON with the field's words in it."
    kind = rng.random()
    if depth > 3 or kind < .35: return rng.choice(LEAVES)
    if kind < .6: return [anything(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(WORDS): anything(rng, depth + 1) for _ in range(rng.randint(0, 4))}


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_file_holds_is_read_or_refused_in_one_sentence(seed):
    rng = random.Random(seed)
    refused = 0
    for _ in range(1500):
        value = anything(rng)
        for form in (None, rng.choice(list(FORMS))):
            try: read_timed(value, form)
            except InputError as e:
                refused += 1
                assert "\n" not in str(e)
    assert 1000 < refused < 3000
