"`sail_align`: sentences from every kind of file, one video or a list, outputs, and what it refuses."
import contextlib
import io
import json

import pytest
import torch
from clips import grey, write_clip
from fastcore.script import anno_parser

from sail_nbdev import commands
from sail_nbdev.core import read_json
from sail_nbdev.data import read_annotations, read_predictions, read_sentences
from sail_nbdev.export import write_events
from sail_nbdev.run import align, align_all, align_fps

LINES = ["A street.", "Bikes pass.", "一只狗在跑。"]


def typed(name, *words):
    "A command as it is typed: exit code, standard output, and standard error."
    func = getattr(commands, name)
    options = vars(anno_parser(func).parse_args(list(map(str, words))))
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = func(**{k: v for k, v in options.items() if k not in ("pdb", "xtra")})
        except SystemExit as e: code = e.code
    return code or 0, out.getvalue(), err.getvalue().strip()


@pytest.fixture
def clips(tmp_path):
    "Two videos of six seconds, and the sentences of one in a text file."
    (tmp_path/"videos").mkdir()
    for name in ("bikes", "dogs"): write_clip(tmp_path/"videos"/f"{name}.mp4", grey(60))
    (tmp_path/"bikes.txt").write_text("\n".join(LINES) + "\n\n", encoding="utf-8")
    return tmp_path


def test_a_video_and_its_sentences_become_every_kind_of_file(clips, clip_folder):
    outputs = [word for form in ("json", "srt", "vtt", "html") for word in (f"--{form}", clips/f"e.{form}")]
    outputs += ["--annotations", clips/"a.json"]
    video = clips/"videos"/"bikes.mp4"
    code, out, _ = typed("sail_align", video, clips/"bikes.txt", "--encoder", clip_folder, *outputs)
    assert code == 0 and [line.split("  ")[-1] for line in out.splitlines()] == LINES
    events, = read_predictions(clips/"e.json").values()
    assert [e.caption for e in events] == LINES
    assert all(a.start <= b.start for a, b in zip(events, events[1:])) and 0 <= events[0].start
    assert events[-1].end <= 6 and all(0 < e.confidence <= 1 for e in events)
    video, = read_annotations(clips/"a.json", intervals=True).values()
    assert video.duration == pytest.approx(6) and video.captions == tuple(LINES)
    assert [e.start for e in events] == [start for start, _ in video.intervals]
    assert (clips/"e.srt").read_text("utf-8").count("-->") == 3
    assert "<video" in (clips/"e.html").read_text("utf-8")


@pytest.mark.parametrize("name, text", [
    ("s.srt", "".join(f"{i}\n00:00:0{i},000 --> 00:00:0{i},500\n{s}\n\n" for i, s in enumerate(LINES, 1))),
    ("s.json", json.dumps({"whatever": LINES})),
    ("s.txt", "\n\n".join(LINES)),
    ("s.csv", "video,start,end,sentence\n" + "".join(f"x,0,1,{s}\n" for s in LINES)),
])
def test_sentences_come_from_every_kind_of_file(tmp_path, name, text):
    (tmp_path/name).write_text(text, encoding="utf-8")
    sentences, = read_sentences(tmp_path/name).values()
    assert sentences == LINES


def test_a_list_of_videos_and_one_that_fails(clips, clip_folder):
    rows = [{"id": "a", "path": "videos/bikes.mp4", "captions": LINES},
            {"id": "b", "path": "videos/dogs.mp4", "captions": ["A dog."] * 30}]
    (clips/"list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, _ = typed("sail_align", clips/"list.jsonl", "--encoder", clip_folder, "--out", clips/"out")
    assert code == 1 and "failed: 30 sentences are more than the video's" in out
    assert [p.name for p in (clips/"out").iterdir()] == ["a.json"]


def test_a_folder_and_a_file_that_names_its_videos(clips, clip_folder):
    (clips/"all.json").write_text(json.dumps({"bikes.mp4": LINES, "dogs": ["A dog."]}))
    made = ("--encoder", clip_folder, "--json", clips/"e.json")
    assert typed("sail_align", clips/"videos", clips/"all.json", *made)[0] == 0
    assert {v: len(o) for v, o in read_json(clips/"e.json")["results"].items()} == {"bikes": 3, "dogs": 1}


@pytest.mark.parametrize("words, says", [
    (("videos/bikes.mp4", "bikes.txt", "--srt", "e.doc"), "e.doc: events can be written as .json, .srt"),
    (("videos", "bikes.txt", "--srt", "e.srt"), "e.srt: a subtitle file holds one video, not 2"),
    (("videos/bikes.mp4", "none.txt"), "none.txt: no such file"),
    (("videos/none.mp4", "bikes.txt"), "none.mp4"),
    (("videos", "other.json"), "other.json: none of zebra is a name of bikes, dogs"),
    (("videos/bikes.mp4", "empty.txt"), "empty.txt: holds no sentence"),
    (("videos/bikes.mp4", "many.txt"), "1000 sentences are more than the video's"),
    (("videos/bikes.mp4", "bikes.txt", "--model", "demo"), "--encoder and --model: give one of them"),
])
def test_wrong_input_is_one_sentence(clips, clip_folder, monkeypatch, words, says):
    monkeypatch.chdir(clips)
    (clips/"other.json").write_text(json.dumps({"zebra": ["A zebra."]}))
    (clips/"empty.txt").write_text("\n \n")
    (clips/"many.txt").write_text("A bike.\n" * 1000)
    code, _, err = typed("sail_align", *words, "--encoder", clip_folder)
    assert code == 2 and says in err and "\n" not in err
    assert not (clips/"e.srt").exists()


@pytest.mark.parametrize("encoder, says", [
    ("none", "random weights cannot compare"),
    ("ViT-B-32/none", "random weights cannot compare"),
    ("ViT-B-32", "as a model, ViT-B-32/openai or"),
    ("ViT-L-14/openai", "--encoder ViT-L-14/openai: weights 'openai' of ViT-L-14 are neither in the local"),
])
def test_an_encoder_that_cannot_be_is_one_sentence(clips, encoder, says):
    code, _, err = typed("sail_align", clips/"videos"/"bikes.mp4", clips/"bikes.txt", "--encoder", encoder)
    last = err.splitlines()[-1]
    assert code == 2 and says in last and "--encoder" in last and "--pretrained" not in last


def one_hot(spans, seconds, fps=2., width=12):
    "Frames that show a thing each, one unit vector a thing, with a little noise."
    frames = .05 * torch.randn(round(seconds * fps), width, generator=torch.Generator().manual_seed(0))
    for n, (start, end) in enumerate(spans): frames[round(start * fps):round(end * fps), n] += 1
    return frames


class Things:
    "An encoder whose sentences are numbers of things."
    def texts(self, sentences): return torch.eye(12)[[int(s.rstrip(".")) for s in sentences]]


def test_an_event_of_six_seconds_is_found_in_an_hour():
    spans = [(600, 900), (1800, 1806), (2400, 3000)]
    events = align((one_hot(spans, 3600), 3600.), list("012"), Things())
    for e, (start, end) in zip(events, spans):
        near = max(15, .03 * (end - start))      # quantiles of a long event lie far apart
        assert abs(e.start - start) < near and abs(e.end - end) < near
    assert abs(events[1].start - 1800) < 5 and abs(events[1].end - 1806) < 5


def test_sentences_that_are_not_shown_are_left_out(tmp_path):
    spans = [(2, 10), (15, 25), (30, 38)]
    video = (one_hot(spans, 40), 40.)
    sentences = ["0", "5", "1", "2", "6"]
    found = align(video, sentences, Things(), skip=True)
    assert [e and e.caption for e in found] == ["0", None, "1", "2", None]
    assert [e for e in found if e] == align(video, ["0", "1", "2"], Things())
    assert all(align(video, sentences, Things()))
    result = align_all({"v": video}, {"v": sentences}, Things(), skip=True)
    assert result.untimed == {"v": {2: "5", 5: "6"}}
    write_events(result.events, tmp_path/"e.json", result.durations, untimed=result.untimed)
    assert len(read_predictions(tmp_path/"e.json")["v"]) == 3
    left = read_json(tmp_path/"e.json")["untimed"]["v"]
    assert left[0] == {"sentence": "5", "timestamp": None, "number": 2}


def test_what_fits_nothing_is_said_in_one_line(clips, clip_folder):
    video = clips/"videos"/"bikes.mp4"
    words = ("--encoder", clip_folder, "--json", clips/"e.json", "--srt", clips/"e.srt", "--skip")
    code, out, err = typed("sail_align", video, clips/"bikes.txt", *words)
    left = read_json(clips/"e.json").get("untimed", {}).get("bikes", [])
    assert code == 0 and len(out.splitlines()) + len(left) == 3
    assert (clips/"e.srt").read_text("utf-8").count("-->") == 3 - len(left)
    assert ("left without a time" in err) == bool(left)


def test_a_thousand_sentences():
    sentences = [f"{n % 12}." for n in range(1000)]
    frames = torch.randn(1100, 12, generator=torch.Generator().manual_seed(1))
    events = align((frames, 1100.), sentences, Things())
    assert len(events) == 1000 and all(0 <= e.start <= e.end <= 1100 for e in events)


def test_frames_follow_from_length_and_sentences():
    assert [align_fps(n, d) for n, d in ((10, 100.), (10, 20.), (3, 3600.), (5, 0.))] == [2, 4, 1, 1]
    assert align_fps(5000, 7200.) * 7200 == pytest.approx(5000)         # never fewer frames than sentences
