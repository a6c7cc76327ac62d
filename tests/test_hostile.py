"""What is wrong, damaged or made to do harm: a table of inputs and what is said of them, and generated ones.
All ends with one sentence and exit code 1 or 2; nothing is half-written, nothing lies outside its folder."""
import errno
import gzip
import io
import json
import os
import pickle
import re
import resource
import sqlite3
import struct
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from fastcore.script import anno_parser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shell
from sail_nbdev import commands, core, report, run, train
from sail_nbdev.arrays import find_arrays, import_arrays
from sail_nbdev.config import Config
from sail_nbdev.core import Event, InputError, atomic_path, check_outputs, file_name, read_json, write_json
from sail_nbdev.data import read_annotations, read_predictions, read_timed, write_predictions
from sail_nbdev.evaluate import evaluate, evaluate_many, event_numbers
from sail_nbdev.export import write_outputs
from sail_nbdev.gaps import Answer, AnswerCache, augment, find_gaps, write_synthetic
from sail_nbdev.model import check_memory
from sail_nbdev.store import FeatureStore
from sail_nbdev.text_scores import find_java
from sail_nbdev.toyworld import World
from sail_nbdev.video import decode_video, find_videos
from sail_nbdev.writers import FileBackend, OpenAIBackend, RulesBackend

NIGHT = bool(os.environ.get("SAIL_NIGHT"))
few = settings(max_examples=30_000 if NIGHT else 40, deadline=10_000, derandomize=not NIGHT,
               suppress_health_check=list(HealthCheck))
needs_java = pytest.mark.skipif(find_java() is None, reason="no Java on this machine")
TRUTH = {"v": {"duration": 10., "timestamps": [[0, 4], [5, 9]], "sentences": ["A man runs.", "He falls."]}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder to work in, with a truth and predictions in it."
    monkeypatch.chdir(tmp_path)
    write_json("truth.json", TRUTH)
    write_predictions({"v": [Event(0, 4, "A man runs."), Event(5, 9, "He sits.")]}, "found.json")
    return tmp_path


def ends(name, *args, **kwargs):
    "The exit code of a command, which is one that commands have."
    try: code = getattr(commands, name)(*args, **kwargs)
    except SystemExit as e: code = e.code
    assert (code or 0) in (0, 1, 2), code
    return code or 0


def refused(capsys, name, *args, **kwargs):
    "The sentence with which a command refuses its input."
    capsys.readouterr()
    assert ends(name, *args, **kwargs) == 2
    everything = capsys.readouterr().err.strip()
    said = everything.split("\n")[-1]                      # a line before it may say what is about to be done
    assert said.startswith(f"{name}: ") and "Traceback" not in everything, everything
    return said


def scored(**kwargs):
    return ends("sail_eval", ["found.json", "truth.json"], metrics="localization", **kwargs)


# -- numbers of options

NUMBERS = [
    ("sail_features", dict(paths=["x.mp4"], out="s", batch_size=0), "--batch_size 0: must be a whole"),
    ("sail_features", dict(paths=["x.mp4"], out="s", batch_size=-5), "must be a whole number from 1 to"),
    ("sail_features", dict(paths=["x.mp4"], out="s", batch_size=10**9), "--batch_size 1000000000"),
    ("sail_features", dict(paths=["x.mp4"], out="s", workers=-1), "--workers -1: must be a whole number"),
    ("sail_features", dict(paths=["x.mp4"], out="s", fps=float("nan")), "--fps nan: must be a number from"),
    ("sail_features", dict(paths=["x.mp4"], out="s", fps=1e9), "--fps 1000000000.0"),
    ("sail_features", dict(paths=["x.mp4"], out="s", stride=0), "--stride 0"),
    ("sail_caption", dict(videos=["x.mp4"], model="m", window=float("nan")), "--window nan"),
    ("sail_caption", dict(videos=["x.mp4"], model="m", window=-1.), "--window -1.0"),
    ("sail_caption", dict(videos=["x.mp4"], model="m", n_events=0), "--n_events 0"),
    ("sail_align", dict(videos="x.mp4", fps=0.), "--fps 0.0"),
    ("sail_train", dict(preset="toy", seed=-5), "--seed -5"),
    ("sail_train", dict(preset="toy", stage=3), "--stage 3"),
    ("sail_demo", dict(seed=-1), "--seed -1"),
    ("sail_augment", dict(annotations="truth.json", share=2.), "--share 2.0"),
    ("sail_augment", dict(annotations="truth.json", tries=0), "--tries 0"),
    ("sail_augment", dict(annotations="truth.json", timeout=float("inf")), "--timeout inf"),
    ("sail_eval", dict(files=["found.json", "truth.json"], bootstrap=0), "--bootstrap 0"),
    ("sail_uniform", dict(ref=["truth.json"], out="u.json", k=float("nan")), "--k nan"),
    ("sail_uniform", dict(ref=["truth.json"], out="u.json", n_events="1" + 30 * "0"), "at most 10,000"),
    ("sail_ablate", dict(grid="methods", seeds=0), "--seeds 0"),
]


@pytest.mark.parametrize("name, options, sentence", NUMBERS)
def test_a_number_out_of_its_bounds_is_refused_before_anything_else(here, capsys, name, options, sentence):
    before = sorted(here.iterdir())
    assert sentence in refused(capsys, name, **options)
    assert sorted(here.iterdir()) == before


BOUNDED = [(name, option, a.type) for name, command in commands.COMMANDS.items()
           for option, a in command.__annotations__.items()
           if isinstance(getattr(a, "type", None), core.bounded)]


def test_bounds_are_in_the_help(capsys):
    assert len(BOUNDED) > 15
    for name, option, kind in BOUNDED:
        with pytest.raises(SystemExit): anno_parser(commands.COMMANDS[name], name).parse_args(["--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert f"({kind})" in said, (name, option)


@few
@given(st.sampled_from(BOUNDED), st.one_of(st.floats(), st.integers(), st.booleans(), st.text(max_size=3)))
def test_any_number_is_taken_or_refused(case, value):
    name, option, kind = case
    try: kind.check(option, value)
    except InputError as e: assert f"--{option} " in str(e)
    else: assert kind.lo <= value <= kind.hi


# -- files of JSON

NAMES = ("v results database annotations timestamps sentences id duration captions start end sentence "
         "timestamp fps num_frames tgt g vid relevant_windows query text n_events format meta center "
         "width path").split()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, "\x1b[2J", "\ud800", "a" * 300, "../x", "1:30", "0-9 s", -1, 1e308]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=20)
HUGE = ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "1e400", '{"v": NaN}', '"\\ud800"', '{"\\udc00": 1}',
        "", "\0",
        '{"v": {"duration": ' + "9" * 5000 + ', "timestamps": [], "sentences": []}}', "[[[[]]]]", "﻿{}"]


def takes(read, path):
    "Read a file: a value, or one sentence, in less than ten seconds."
    with limited():
        try: read(path)
        except InputError as e: assert str(e) and len(str(e)) < 2000


def refusal(function, *args, **kwargs):
    "The sentence of an `InputError`."
    with pytest.raises(InputError) as e: function(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 1000
    return str(e.value)


@contextmanager
def limited(gigabytes=1, seconds=10):
    "Within the block no more memory is taken than that, and no more time."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clocks = (time.process_time, time.time)         # other work on the machine counts for the second alone
    begin = [clock() for clock in clocks]
    yield
    spent = [clock() - start for clock, start in zip(clocks, begin)]
    assert spent[0] < seconds and spent[1] < 6 * seconds
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < gigabytes * 1e9


def write_store(path):
    "A store whose description is this file."
    folder = path.parent/"store"
    folder.mkdir(exist_ok=True)
    (folder/"store.json").write_bytes(path.read_bytes())
    FeatureStore(folder).shape("v")


READERS = {"timed": read_timed, "annotations": read_annotations, "numbers": lambda p: event_numbers(str(p)),
           "store": write_store, "captions": FileBackend, "videos": lambda p: find_videos([str(p)]),
           "config": lambda p: core_config(p)}


def core_config(path):
    from sail_nbdev.config import Config
    return Config.load(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
def test_json_that_is_made_to_break_a_reader(tmp_path, reader, text):
    for ending in (".json", ".jsonl"):
        path = tmp_path/f"x{ending}"
        path.write_text(text, encoding="utf-8")
        takes(READERS[reader], path)


@few
@given(JSON, st.sampled_from(sorted(READERS)), st.sampled_from(".json .jsonl .txt .csv .srt .vtt".split()))
def test_any_json_is_read_or_refused(tmp_path_factory, value, reader, ending):
    path = tmp_path_factory.getbasetemp()/f"any{ending}"
    path.write_text(json.dumps(value))
    takes(READERS[reader], path)


@few
@given(st.binary(max_size=200), st.sampled_from([".json", ".jsonl", ".txt", ".csv", ".tsv", ".srt", ".vtt"]))
def test_any_bytes_are_read_or_refused(tmp_path_factory, value, ending):
    path = tmp_path_factory.getbasetemp()/f"bytes{ending}"
    path.write_bytes(value)
    takes(read_timed, path)


# A whole file of each kind, and what reads it from its folder
STATE = {"stage": 1, "epoch": 0, "update": 0, "step": 0, "bad": [], "best": None, "scaler": None}
SCORES = {"sail": {"mean": {"METEOR": .1}, "per_tiou": {"METEOR": [.1]}, "soda_c": .2,
                   "coverage": {"videos": 2, "predicted": 2, "share": 1.}, "missing": {"reason": "x"}}}
ABOUT = {"model": "local", "pretrained": None, "weights": "x", "dim": 4, "precision": "fp32", "fps": 1.}
WHOLE = {
    "store.json": ({"format": FeatureStore.FORMAT, "meta": ABOUT, "encoder": {"model": ["a", "b"]}},
                   lambda folder: FeatureStore(folder).encoder_place()),
    "encoder.json": ({**ABOUT, "folder": "../clip", "window": 60.}, run._encoder_settings),
    "counts.json": ({"n_events": {"v": 3}, "paragraphs": {"v": "x"}},
                    lambda folder: run._read_counts(folder/"counts.json", ["v"])),
    "world.json": ({"seed": 1, "n_train": 4, "fps": 4}, World.load),
    "state.json": (STATE, train._read_position),
    "log.jsonl": ({"stage": 1, "epoch": 0, "step": 3, "lr": .1, "total": 2.},
                  lambda folder: train.read_log(folder/"log.jsonl")),
    "scores.json": (SCORES, lambda folder: page_of(scores=folder/"scores.json")),
    "run.json": ({"seed": 1, "data": "x", "versions": {"torch": "2"}}, lambda folder: page_of(folder)),
    "synthetic.summary.json": ({"provenance": {"backend": "rules", "model": "none"}, "seed": 42, "used": 3},
                               lambda folder: page_of(world=folder)),
    "config.json": (Config.preset("toy").model_dump(mode="json"),
                    lambda folder: check_memory(Config.load(folder/"config.json"), 8)),
}


def page_of(folder=None, world=None, scores=None):
    "The parts of a report that show what is in a file."
    m = report.Material()
    if folder: m.runs["sail"] = report._if_there(folder/"run.json", report._Record)
    if world: report._add_world(m, world)
    if scores: m.scores = report._if_there(scores, dict[str, report.Scores])
    report.report_html(m)


def places(value, place=()):
    "The way to everything in a value of JSON."
    yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k, o in parts: yield from places(o, (*place, k))


def replaced(value, place, new):
    "The value with something else at one place; without it if that is `places`."
    if not place: return new
    k, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest or new is not places: copy[k] = replaced(value[k], rest, new)
    else: del copy[k]
    return copy


@few
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 10**6), JSON | st.just(places))
def test_a_file_that_is_wrong_in_one_place_is_read_or_refused(tmp_path_factory, name, n, new):
    whole, read = WHOLE[name]
    ways = list(places(whole))
    place = ways[n % len(ways)]
    folder = tmp_path_factory.mktemp("wrong")
    (folder/name).write_text(json.dumps(None if new is places and not place else replaced(whole, place, new)))
    takes(read, folder)


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_files_are_right(tmp_path, name):
    whole, read = WHOLE[name]
    write_json(tmp_path/name, whole)
    if name == "log.jsonl": (tmp_path/name).write_text(json.dumps(whole))
    read(tmp_path)


SETTINGS = sorted(Config.preset("toy").flat())


@few
@given(st.sampled_from(SETTINGS), st.one_of(st.integers(), st.floats(), st.text(max_size=4), st.none(),
                                            st.sampled_from([10**9, 10**30, "1e9", "9" * 400, "1,2", "nan"])))
def test_any_setting_is_taken_or_refused(name, value):
    takes(lambda v: check_memory(Config.preset("toy", overrides={name: v}), 300), value)


HUGE_SETTINGS = ["captioner.d_model=12000000", "captioner.encoder_layers=1000000000",
                 "data.n_frames=1000000000", "captioner.vocab_size=1000000000000",
                 "localizer.ffn=1000000000000", "train.batch_size=1000000000",
                 "data.feature_dim=1000000000000"]


@pytest.mark.parametrize("setting", HUGE_SETTINGS)
def test_a_setting_that_no_memory_holds_is_refused_with_what_it_takes(here, setting):
    options = ("--estimate", "--device", "cpu", "--override", setting)
    with limited(): r = shell.run("sail_train", "activitynet", *options)
    said = r.stderr.strip().split("\n")[-1]
    assert r.returncode == 2 and setting in said and "Traceback" not in r.stderr, r
    assert "GB of memory" in said


@pytest.mark.parametrize("text", ["a" + " " * 100_000 + "b", "\n" * 100_000, ". " * 50_000, "0" * 100_000,
                                  "0-" * 50_000, "{" * 100_000, "1 s " + " " * 100_000 + "- x"],
                         ids=["spaces", "lines", "dots", "zeros", "dashes", "braces", "span"])
def test_a_text_made_to_be_slow_is_not(tmp_path, text):
    (tmp_path/"x.txt").write_text(text)
    takes(read_timed, tmp_path/"x.txt")
    takes(lambda v: read_timed(v), {"v": [{"timestamp": text, "sentence": "x"}]})


# -- names

IDS = ["../../x", "/etc/x", "..", ".", "a/b", "a\0b", "x" * 300, "é" * 200, "\udc80", "CON", "a:b", "x" * 242,
       "x" * 250, "\x1b[2J"]


@pytest.mark.parametrize("id", IDS, ids=range(len(IDS)))
def test_an_id_is_no_path(tmp_path, id):
    found = {id: [Event(0, 1, "x")]}
    write_outputs(found, [str(tmp_path/"all.json")], str(tmp_path/"out"/"each"))
    each, = (tmp_path/"out"/"each").iterdir()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(["all.json", each.name])
    assert list(json.loads(each.read_text())["results"]) == [id]
    store = FeatureStore.create(tmp_path/"store", dim=2)
    store.add(id, np.ones((1, 2), np.float32))
    assert store.ids() == [id]


@few
@given(st.text(), st.text())
def test_two_ids_are_two_names(a, b):
    names = [file_name(o, ".json") for o in (a, b)]
    assert all("/" not in n and "\0" not in n and len(os.fsencode(n)) <= 200 for n in names)
    assert a == b or names[0] != names[1] or {a, b} == {"", "."}


def test_a_video_with_a_name_that_is_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/v\xff.mp4"
    try: open(path, "wb").close()
    except OSError: pytest.skip("this file system takes UTF-8 only")
    id, = find_videos([str(tmp_path)])
    assert id == "v\\xff"
    write_predictions({id: []}, tmp_path/"p.json")
    assert list(read_predictions(tmp_path/"p.json")) == [id]


# -- outputs

def test_no_output_is_an_input_or_another_output(here, capsys):
    assert "is read by this command" in refused(
        capsys, "sail_eval", ["found.json", "truth.json"], metrics="localization", out="./truth.json")
    assert "written twice" in refused(
        capsys, "sail_eval", ["found.json", "truth.json"], metrics="localization", out="a.json",
        per_video="a.json")
    assert "is read by" in refused(capsys, "sail_uniform", ["truth.json"], out="truth.json")
    rules = dict(backend="rules")
    assert "is read by" in refused(capsys, "sail_augment", "truth.json", out="truth.json", **rules)
    assert "is read by" in refused(capsys, "sail_augment", "truth.json", out="syn.jsonl", **rules)
    assert "written twice" in refused(capsys, "sail_augment", "truth.json", out="syn.sqlite", **rules)
    assert "is a folder" in refused(capsys, "sail_augment", "truth.json", out=".", **rules)
    os.symlink("truth.json", "link.json")
    assert "is read by" in refused(capsys, "sail_uniform", ["truth.json"], out="link.json")
    assert read_json("truth.json") == TRUTH and sorted(p.name for p in here.iterdir()) == [
        "found.json", "link.json", "truth.json"]
    assert ends("sail_augment", "truth.json", out="syn.json", **rules) == 0


OUTS = ["truth.json/x.json", "x" * 300 + ".json", "a\0b.json", ".", "/dev/full/x.json"]


@pytest.mark.parametrize("out", OUTS, ids=range(len(OUTS)))
def test_an_output_that_cannot_be_is_refused_before_the_work(here, capsys, out):
    said = refused(capsys, "sail_uniform", ["truth.json"], out=out)
    assert "cannot be written" in said or "is a folder" in said


@contextmanager
def full_disk(monkeypatch):
    "Within the block nothing more can be written into a file."
    def write(self, *args, **kwargs): raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(Path, "write_text", write)
        yield


def test_a_full_disk_is_one_sentence_and_scores_are_printed(here, capsys, monkeypatch):
    with full_disk(monkeypatch):
        assert "u.json: cannot be written (No space left" in refused(capsys, "sail_uniform", ["truth.json"],
                                                                     out="u.json")
        capsys.readouterr()
        assert scored(out="s.json", per_video="v.csv") == 2
    said = capsys.readouterr()
    assert "Recall" in said.out and "s.json" in said.err and "v.csv" in said.err
    assert sorted(p.name for p in here.iterdir()) == ["found.json", "truth.json"]


def test_one_output_that_fails_does_not_keep_the_others(tmp_path):
    (tmp_path/"b.json").mkdir()
    paths = [str(tmp_path/f"{o}.json") for o in "abc"]
    with pytest.raises(InputError, match="b.json: cannot be written"): write_outputs({"v": []}, paths)
    assert (tmp_path/"a.json").is_file() and (tmp_path/"c.json").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_stream_that_takes_nothing_loses_nothing(here, monkeypatch, encoding):
    with open("/dev/full", "w", encoding=encoding) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert scored(out="s.json") == 2
        monkeypatch.undo()
        try: full.flush()
        except OSError: pass
    assert read_json(here/"s.json")["mean"]["Recall"] == 1


def test_a_terminal_of_ascii_shows_escapes(here, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    @core.command
    def sail_show(): core.say("é\x1b[2J…")
    sail_show()
    assert terminal.buffer.getvalue() == b"\\xe9\\u2026\n"


def test_what_command_says_of_errors_that_are_not_ours(capsys):
    def fail(error): raise error
    for error, sentence in [(PermissionError(13, "Permission denied", "a.json"), "a.json: cannot be used"),
                            (MemoryError(), "not enough memory"), (RecursionError(), "nested too deeply")]:
        with pytest.raises(SystemExit) as e: core.command(fail)(error)
        assert e.value.code == 2 and sentence in capsys.readouterr().err


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("x")):
        with pytest.raises((InputError, RuntimeError)), atomic_path(tmp_path/"x") as tmp:
            tmp.write_text("half")
            raise error
    assert list(tmp_path.iterdir()) == []


# -- arrays and shards

def npy(shape, dtype="<f4", data=b""):
    "The bytes of an array file that claims a shape."
    about = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    about += b" " * (-(len(about) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(about)) + about + data


def packed(path, data, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as z: z.writestr("v.npy", data)


def bad_arrays(folder):
    "One file each of arrays that are damaged, or claim what they are not."
    folder.mkdir()
    (folder/"rows.npy").write_bytes(npy("(1000000000000, 4)"))
    (folder/"object.npy").write_bytes(npy("(2,)", "|O", b"x" * 16))
    (folder/"torn.npy").write_bytes(npy("(100, 4)", data=b"\0" * 8))
    (folder/"flat.npy").write_bytes(npy("(4,)", data=b"\0" * 16))
    (folder/"none.npy").write_bytes(npy("(3, 0)"))
    (folder/"empty.npy").write_bytes(b"")
    packed(folder/"bomb.npz", npy("(40000000, 1)", data=b"\0" * 160_000_000))
    packed(folder/"claim.npz", npy("(1000000000000, 4)"))
    packed(folder/"sum.npz", npy("(2, 4)", data=b"\0" * 32), zipfile.ZIP_STORED)
    body = bytearray((folder/"sum.npz").read_bytes())
    body[body.index(b"NUMPY") + 130] ^= 1
    (folder/"sum.npz").write_bytes(body)
    (folder/"words.csv").write_text("a,b\n1,x\n")
    (folder/"no.pt").write_bytes(b"PK\x03\x04")


def test_bad_arrays_are_named_and_the_rest_is_taken_over(tmp_path):
    bad_arrays(tmp_path/"arrays")
    bad = {p.stem for p in (tmp_path/"arrays").iterdir()}
    np.save(tmp_path/"arrays"/"good.npy", np.ones((3, 4), np.float32))
    store = FeatureStore.create(tmp_path/"store", dim=4)
    result = import_arrays(find_arrays(tmp_path/"arrays"), store, progress=False)
    assert result["done"] == ["good"] and set(result["failed"]) == bad and store.ids() == ["good"]
    assert "claims 0.2 GB" in result["failed"]["bomb"]
    assert all("\n" not in why for why in result["failed"].values())


class Made:
    "What a pickle makes of a call."
    def __init__(self, function, *args): self.made = function, args
    def __reduce__(self): return self.made


def tensor_file(path, tensor=None, old=False, numel=4, shape=(1, 4), strides=(4, 1), first=0, there=4,
                method=zipfile.ZIP_STORED):
    "A file as torch.save writes it, of `there` numbers, with a tensor that claims what is said."
    import torch
    storage = ("storage", torch.FloatStorage, "0", "cpu", numel, *([None] * old))
    made = Made(torch._utils._rebuild_tensor_v2, storage, first, shape, strides, False, {})
    class Pickler(pickle.Pickler):
        def persistent_id(self, o): return o if o is storage else None
    def pickled(*values):
        out = io.BytesIO()
        for o in values: Pickler(out, 2).dump(o)
        return out.getvalue()
    content = {"v": made if tensor is None else tensor}
    if old:
        start = pickled(torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
        keys = ["0"] * (tensor is None)
        path.write_bytes(start + pickled(content, keys) + struct.pack("<q", there) + bytes(4 * there))
        return
    with zipfile.ZipFile(path, "w", method) as z:
        parts = {"data.pkl": pickled(content), "data/0": bytes(4 * there), "version": b"3"}
        for name, part in parts.items(): z.writestr(f"x/{name}", part)


def deep(levels, width):
    "Dictionaries in dictionaries, in which each stands `width` times."
    tree = {"v": 1}
    for _ in range(levels): tree = dict.fromkeys(map(str, range(width)), tree)
    return tree


TENSORS = {
    "storage": (dict(numel=10**12), "claims 4,000.0 GB"),
    "shape": (dict(shape=(10**12, 4)), "beyond its values"),
    "expanded": (dict(shape=(10**9, 4), strides=(0, 1)), "claims 16.0 GB, of which 0.0 MB"),
    "negative": (dict(shape=(1, 4), strides=(-4, -1), first=3), "without a shape"),
    "beyond": (dict(first=10**15), "beyond its values"),
    "number": (dict(shape=(True, 4)), "without a shape"),
    "missing": (dict(numel=400), "values are missing"),
    "packed": (dict(there=50_000_000, numel=50_000_000, method=zipfile.ZIP_DEFLATED), "claims 0.2 GB"),
    "called": (dict(tensor=Made(bytearray, 10**13)), "more than tensors"),
    "deep": (dict(tensor=deep(60, 2)), "too deep"),
    "wide": (dict(tensor=deep(3, 300)), "1,000,000 arrays"),
}


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("name", TENSORS)
def test_a_file_of_tensors_that_claims_too_much_is_refused(tmp_path, name, old):
    how, sentence = TENSORS[name]
    if old and "method" in how: return
    (tmp_path/"arrays").mkdir()
    tensor_file(tmp_path/"arrays"/"v.pt", old=old, **how)
    with limited(): takes_no_more = refusal(find_arrays, tmp_path/"arrays", key="v")
    assert re.search(sentence, takes_no_more), takes_no_more


def test_a_file_of_tensors_is_read(tmp_path):
    for old in (False, True):
        tensor_file(tmp_path/"v.pt", old=old)
        assert find_arrays(tmp_path).rows == {"v": 1}


@pytest.fixture(scope="session")
def array_files(tmp_path_factory):
    "The bytes of a good file of each kind."
    import torch
    from safetensors.numpy import save_file
    folder = tmp_path_factory.mktemp("good")
    rows = np.ones((3, 4), np.float32)
    np.save(folder/"v.npy", rows)
    np.savez_compressed(folder/"v.npz", features=rows)
    torch.save({"v": torch.ones(3, 4)}, folder/"v.pt")
    torch.save({"v": torch.ones(3, 4)}, folder/"v.pth", _use_new_zipfile_serialization=False)
    save_file({"features": rows}, folder/"v.safetensors", {"about": json.dumps({"id": "v"})})
    try:
        import h5py
        with h5py.File(folder/"v.h5", "w") as f: f.create_dataset("v", data=rows, compression="gzip")
    except ImportError: pass
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def shard(path):
    "Read a file as the shard of a store."
    store = FeatureStore.create(path.parent/"s", dim=4)
    store._file("v").write_bytes(path.read_bytes())
    return store["v"]


@few
@given(st.integers(0, 10), st.lists(st.tuples(st.integers(0, 20_000), st.sampled_from([0, 1, 127, 128, 255])),
                                    max_size=12), st.integers(0, 400))
def test_an_array_file_with_wrong_bytes_is_read_or_refused(array_files, tmp_path_factory, kind, changes, cut):
    name = sorted(array_files)[kind % len(array_files)]
    content = bytearray(array_files[name])
    for at, byte in changes: content[at % len(content)] = byte
    path = tmp_path_factory.mktemp("bytes")/name
    path.write_bytes(content[:len(content) - cut // 4 * (cut % 4 == 0)])
    source = path if path.suffix == ".h5" else path.parent
    takes(shard if name.endswith("safetensors") else lambda p: find_arrays(source), path)


ARRAY_CASES = {
    "one number": lambda f: f.create_dataset("v", data=np.float32(1)),
    "texts": lambda f: f.create_dataset("v", data=[b"a"]),
    "names of many files": lambda f: ladder(f, 4, 40),
    "a packed bomb": lambda f: f.create_dataset("v", data=np.zeros((7_000_000, 4), "f4"), compression="gzip"),
    "claimed ids": lambda f: f.create_dataset("key", (10**11,), "S9", chunks=(1000,)),
}


def ladder(group, levels, width):
    "Groups in groups, each of which stands in its place under many names."
    for level in range(levels):
        below = group.file.create_group(f"below{level}")
        for k in range(width): group[str(k)] = below
        group = below
    group["x"] = np.ones((2, 4), np.float32)


@pytest.mark.parametrize("name", ARRAY_CASES)
def test_hdf5_that_is_made_to_fill_memory_or_time_is_refused(tmp_path, name):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path/"a.h5", "w") as f: ARRAY_CASES[name](f)
    with limited(): assert str(tmp_path) in refusal(find_arrays, tmp_path/"a.h5")


def h5_files(folder):
    "HDF5 that is corrupt, empty, linked in a circle, to a missing file, or huge without a number in it."
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder/"whole.h5", "w") as f: f["v"] = np.ones((50, 4), np.float32)
    bytes_ = (folder/"whole.h5").read_bytes()
    (folder/"torn.h5").write_bytes(bytes_[:len(bytes_) // 2])
    (folder/"noise.h5").write_bytes(bytes_[:100] + bytes(len(bytes_) - 100))
    with h5py.File(folder/"empty.h5", "w"): pass
    with h5py.File(folder/"circle.h5", "w") as f: f["v/up"] = f["/"]
    with h5py.File(folder/"link.h5", "w") as f: f["v"] = h5py.ExternalLink("missing.h5", "v")
    with h5py.File(folder/"outside.h5", "w") as f:
        f.create_dataset("v", (4, 4), "f4", external=[("/etc/hostname", 0, 64)])
    with h5py.File(folder/"huge.h5", "w") as f: f.create_dataset("v", (10**12, 4), "f4", chunks=(1000, 4))
    with h5py.File(folder/"deep.h5", "w") as f: f["v/" + "a/" * 50 + "b"] = np.ones((2, 4), np.float32)


def test_a_name_in_hdf5_that_is_no_text_is_refused_and_the_rest_is_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path/"a.h5", "w") as f:
        for name in (b"v\xff", b"w"): f[name] = np.ones((2, 4), np.float32)
    found = find_arrays(tmp_path/"a.h5")
    assert found.rows == {"w": 2} and "codec" in refusal(found.arrays["v\\xff"].load)


def test_bad_hdf5_is_refused(tmp_path):
    h5_files(tmp_path)
    for path in sorted(tmp_path.glob("*.h5")):
        if path.stem == "whole": continue
        with pytest.raises(InputError) as e: find_arrays(path)
        assert str(path) in str(e.value), path
    assert find_arrays(tmp_path/"whole.h5").width == 4


def test_shards_that_are_no_features_are_refused(tmp_path):
    from safetensors.numpy import save_file
    store = FeatureStore.create(tmp_path/"s", dim=4)
    for v in ("v", "w"): store.add(v, np.ones((3, 4), np.float32))
    whole = store._file("v").read_bytes()
    about = {"about": json.dumps({"id": "v"})}
    for array in (np.ones(4, np.float32), np.ones((0, 4), np.float32), np.ones((3, 4), np.int32)):
        save_file({"features": array}, store._file("v"), about)
        with pytest.raises(InputError, match="v.*is damaged"): store["v"]
    other = store._file("w").read_bytes()
    for content in (b"", whole[:50], whole[:-5], struct.pack("<Q", 2**60) + b"{}", other):
        store._file("v").write_bytes(content)
        with pytest.raises(InputError): store["v"]
    with pytest.raises(InputError, match="columns|column at"): store.add("x", np.ones((3, 0), np.float32))
    with pytest.raises(InputError): FeatureStore.create(tmp_path/"t").add("x", np.ones((3, 0), np.float32))


def test_a_sampled_cache_that_is_torn_is_made_again(tmp_path):
    store = FeatureStore.create(tmp_path/"s", dim=4)
    store.add("v", np.ones((3, 4), np.float32))
    assert store.sampled(["v"], 5).shape == (1, 5, 4)
    cache, = (tmp_path/"s"/"sampled").glob("*.npy")
    torn = cache.read_bytes()[:-7]
    for content in (b"", torn, npy("(1,)", "|O", b"x" * 8), npy("(9, 9)", data=b"\0" * 324)):
        cache.write_bytes(content)
        assert store.sampled(["v"], 5).shape == (1, 5, 4)


# -- servers and caches

BODIES = [b"", b"{", b"[]", b"5", b'{"choices": {}}', b'{"choices": [5]}', b'{"choices": [{"message": []}]}',
          b'{"choices": [{"message": {"content": 5}}]}', b'{"choices": [{"message": {"content": ["x"]}}]}',
          b'{"choices": [{"message": {"content": {"a": 1}}}]}', b"[" * 100_000, b"\xff\xfe",
          b'{"choices": ' + b"9" * 5000 + b"}"]
USAGES = ["{}", "[]", "null", '{"prompt_tokens": null}', '{"prompt_tokens": -1, "completion_tokens": 2}',
          '"many"']


@pytest.fixture
def backend():
    pytest.importorskip("openai")
    return OpenAIBackend("m", "http://me:secret@localhost:1/v1?key=secret")


def test_answers_are_looked_at_before_they_are_kept(backend):
    for body in BODIES:
        answer = backend._read_reply(body)
        assert answer.text is None and answer.error and "secret" not in answer.error
    for usage in USAGES:
        body = f'{{"choices": [{{"message": {{"content": "He runs."}}}}], "usage": {usage}}}'
        assert backend._read_reply(body.encode()) == Answer("He runs.", (0, 0))
    assert "secret" not in json.dumps(backend.about)


@few
@given(JSON)
def test_any_answer_is_a_text_or_an_error(value):
    pytest.importorskip("openai")
    answer = OpenAIBackend("m", "http://localhost:1")._read_reply(json.dumps(value).encode())
    assert answer.error or isinstance(answer.text, str)


def drip(to, what=b" ", times=100):
    "Send a few bytes now and then."
    for _ in range(times):
        to.write(what)
        to.flush()
        time.sleep(.1)


def answer_head(h): drip(h.wfile, b"HTTP/1.1 200 OK\r\n" + b"X-More: 1\r\n")
def answer_body(h): drip(begun(h, 200))
def answer_error(h): drip(begun(h, 400))
def answer_circle(h): begun(h, 307, Location=h.path)
def answer_nothing(h): h.connection.close()
def answer_noise(h): h.wfile.write(b"\x1b[2J\r\n" * 9)
def answer_elsewhere(h): begun(h, 302, Location="file:///etc/passwd")


def answer_huge(h):
    out = begun(h, 200, **{"Content-Encoding": "gzip"})
    out.write(BOMB)


def begun(h, code, **headers):
    h.send_response(code)
    for k, v in headers.items(): h.send_header(k, v)
    h.end_headers()
    return h.wfile


BOMB = gzip.compress(bytes(100_000_000), 1)
SERVERS = [(answer_head, "did not answer within 0.4 s"), (answer_body, "does not come to the end"),
           (answer_error, "refuses the question"), (answer_circle, "cannot be reached"),
           (answer_nothing, "cannot be reached"), (answer_noise, "cannot be reached"),
           (answer_elsewhere, "cannot be reached"), (answer_huge, "does not come to the end")]


@pytest.fixture
def a_server():
    "The port of a server, which answers by what is put into the list."
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread
    how = []
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            try: how[0](self)
            except OSError: pass
            self.close_connection = True
        do_GET = do_POST
        def log_message(self, *_): pass
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    Thread(target=http.serve_forever, args=(.05,), daemon=True).start()
    yield how, http.server_port
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("answer, sentence", SERVERS, ids=[a.__name__ for a, _ in SERVERS])
def test_a_server_that_means_harm_is_given_up(tmp_path, a_server, answer, sentence):
    pytest.importorskip("openai")
    how, port = a_server
    how.append(answer)
    url = f"http://me:secret@127.0.0.1:{port}/v1?key=secret"
    client = OpenAIBackend("m", url, timeout=.4, retries=0)
    with limited():
        try: said = str(augment(read_annotations(TRUTH), client, tmp_path/"c.sqlite", progress=False))
        except InputError as e: said = str(e)
    assert sentence in said and "secret" not in said, said
    assert AnswerCache(tmp_path/"c.sqlite").rows == {}


@pytest.mark.parametrize("setting", ["SSL_CERT_FILE=nothing.pem", "HTTPS_PROXY=nonsense", "ALL_PROXY=ftp://x",
                                     "HTTP_PROXY=http://me:secret@[::1", "OPENAI_API_KEY=a\nb"])
def test_a_connection_that_is_set_up_wrong_is_one_sentence(here, capsys, monkeypatch, setting):
    pytest.importorskip("openai")
    name, _, value = setting.partition("=")
    monkeypatch.setenv(name, value)
    options = dict(backend="openai", model="m", base_url="http://127.0.0.1:1/v1?key=secret", out="s.json")
    once = (None, 8, 1., 0, .7, .8, 64)            # of server, questions, seconds, retries, …
    monkeypatch.setattr("sail_nbdev.writers.OpenAIBackend.__init__.__defaults__", once)
    assert "secret" not in refused(capsys, "sail_augment", "truth.json", **options)


@pytest.mark.parametrize("url", ["http://me:99999", "localhost:80", "ftp://x", "http://", "http://[::1"])
def test_an_address_that_is_none(here, capsys, url):
    pytest.importorskip("openai")
    options = dict(backend="openai", model="m", base_url=url, out="s.json")
    assert "--base_url" in refused(capsys, "sail_augment", "truth.json", **options)


def test_a_poisoned_cache_is_asked_again(tmp_path):
    videos = read_annotations(TRUTH)
    summary = write_synthetic(videos, tmp_path/"s.json", RulesBackend(), progress=False)
    cache = AnswerCache(tmp_path/"s.sqlite")
    key, = cache.rows
    for row in ('{"key": 5}', "[", "[]", "9" * 5000, json.dumps({"key": key, "answer": 5}),
                json.dumps({"key": key, "answer": "x", "tokens": [None, 2]}), json.dumps({"key": "another"})):
        cache.db.execute("UPDATE answers SET row = ?", (row,))
        assert AnswerCache(tmp_path/"s.sqlite").rows == {}
        assert write_synthetic(videos, tmp_path/"s.json", RulesBackend(), progress=False) == summary
    cache.close()


def test_a_language_model_that_is_damaged_is_refused(here, capsys):
    Path("m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    how = dict(backend="transformers", model="m.gguf", out="s.json")
    assert "language model m.gguf" in refused(capsys, "sail_augment", "truth.json", **how)


@pytest.mark.parametrize("table", ["answers (n, key, row)", "answers (n INTEGER PRIMARY KEY, key, row, more)",
                                   "claims (key)"])
def test_a_cache_of_another_form_is_refused(tmp_path, table):
    with sqlite3.connect(tmp_path/"s.sqlite") as db: db.execute(f"CREATE TABLE {table}")
    db.close()
    with limited(): said = refusal(augment, read_annotations(TRUTH), RulesBackend(), tmp_path/"s.sqlite")
    assert "s.sqlite: holds other things than answers" in said


# -- Java

@pytest.mark.parametrize("program", ["exit 0", "echo hello", "echo version", "cat >/dev/null; echo 1"])
def test_a_java_that_is_none_leaves_what_needs_none(here, monkeypatch, program):
    (here/"bin").mkdir()
    java = here/"bin"/"java"
    java.write_text(f"#!/bin/sh\n{program}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{here/'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    find_java.cache_clear()
    try: scores = evaluate("found.json", "truth.json")
    finally: find_java.cache_clear()
    assert scores["mean"]["Recall"] == 1 and "METEOR" in scores["missing"]["metrics"]


@pytest.mark.slow
@needs_java
def test_settings_of_java_in_the_environment_change_nothing(here, monkeypatch):
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xmx1k")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dnothing")
    scores = evaluate("found.json", {"v": TRUTH["v"]}, metrics=["METEOR", "CIDEr"])
    assert "missing" not in scores and scores["mean"]["METEOR"] > 0


@pytest.mark.slow
@needs_java
def test_a_carriage_return_keeps_captions_with_their_own(here):
    "The published programs compare all that follows with its neighbour."
    texts = ("A man\r runs.", "A man runs.")
    found = {text: {"v": [Event(0, 4, text), Event(5, 9, "He falls.")]} for text in texts}
    one, other = evaluate_many(found, TRUTH, metrics=["METEOR", "BLEU"]).values()
    assert one["mean"] == other["mean"] and one["mean"]["METEOR"] > .5


def test_captions_in_other_letters_are_counted():
    found = {"v": [Event(0, 4, "Мужчина бежит."), Event(5, 9, "12")]}
    assert evaluate(found, TRUTH, metrics=["localization", "CIDEr"]).get("foreign_captions") == 1
    assert "foreign_captions" not in evaluate(found, TRUTH, metrics=["localization"])


# -- video

def write_mp4(path, pictures, rate=10, sound=None, form=None):
    "A file with the pictures, and with sound that begins that many seconds before them."
    with av.open(str(path), "w", format=form) as out:
        video = out.add_stream("libx264", rate=rate, options={"qp": "10"})
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = "yuv420p"
        audio = out.add_stream("aac", rate=8000, layout="mono") if sound is not None else None
        for i in range(int((sound or 0) * 8000 / 1024) + 16 if audio else 0):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            frame.pts = i * 1024
            out.mux(audio.encode(frame))
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = i + round((sound or 0) * rate)
            out.mux(video.encode(frame))
        for stream in filter(None, (video, audio)): out.mux(stream.encode(None))


def half(side, n=20):
    "Pictures of which one half is white."
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[dict(top=np.s_[:24], left=np.s_[:, :32])[side]] = 255
    return [picture] * n


MATRICES = {"mirrored": ((-1, 0, 0, 1), "left", np.s_[:, 40:]),
            "upside down": ((1, 0, 0, -1), "top", np.s_[30:]),
            "turned": ((-1, 0, 0, -1), "top", np.s_[30:]), "plain": ((1, 0, 0, 1), "top", np.s_[:20])}


@pytest.mark.parametrize("name", MATRICES)
def test_a_display_matrix_is_followed(tmp_path, name):
    (a, b, c, d), side, white = MATRICES[name]
    write_mp4(tmp_path/"v.mp4", half(side))
    content = bytearray((tmp_path/"v.mp4").read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at:at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path/"v.mp4").write_bytes(content)
    frame = decode_video(tmp_path/"v.mp4")[0][0]
    assert frame[white].mean() > 200 and frame.mean() < 160


def test_two_recordings_one_behind_the_other_are_read_to_the_end(tmp_path):
    for name, side in (("a", "top"), ("b", "left")):
        write_mp4(tmp_path/f"{name}.ts", half(side, 30), form="mpegts")
    (tmp_path/"c.ts").write_bytes((tmp_path/"a.ts").read_bytes() + (tmp_path/"b.ts").read_bytes())
    frames, times, seconds = decode_video(tmp_path/"c.ts")
    assert 5.5 < seconds < 6.5 and len(frames) == 6
    assert frames[0][:20].mean() > 200 and frames[5][:, :28].mean() > 200 and frames[5][30:, 40:].mean() < 50


def test_a_picture_that_comes_after_the_sound_keeps_its_place(tmp_path):
    write_mp4(tmp_path/"v.mkv", [*half("top", 10), *half("left", 10)], sound=2.)
    frames, _, seconds = decode_video(tmp_path/"v.mkv")
    assert abs(seconds - 4) < .2 and len(frames) == 4
    assert frames[2][:20].mean() > 200 and frames[3][:, :28].mean() > 200


def test_a_time_stamp_of_weeks_is_refused(tmp_path):
    with av.open(str(tmp_path/"v.mkv"), "w") as out:
        video = out.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for pts in (0, 1, 2, 10**8):
            frame = av.VideoFrame.from_ndarray(half("top")[0], "rgb24")
            frame.pts = pts
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    begin = time.time()
    with pytest.raises(InputError, match="time stamps are damaged"): decode_video(tmp_path/"v.mkv")
    assert time.time() - begin < 10


PLACES = st.integers(0, 3000)


@few
@given(st.lists(st.tuples(PLACES, st.integers(0, 255)), min_size=1, max_size=20), PLACES)
def test_a_video_with_wrong_bytes_is_read_or_refused(a_clip, tmp_path_factory, changes, cut):
    content = bytearray(a_clip)
    for at, byte in changes: content[at % len(content)] = byte
    path = tmp_path_factory.getbasetemp()/"fuzzed.mp4"
    path.write_bytes(content[:len(content) - cut // 2])
    takes(lambda p: decode_video(p), path)


@pytest.fixture(scope="session")
def a_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")/"v.mp4"
    write_mp4(path, half("top", 5))
    return path.read_bytes()


def test_inputs_are_compared_by_what_they_are(here):
    check_outputs(["new.json"], ["truth.json", None])
    os.link("truth.json", "hard.json")
    with pytest.raises(InputError, match="is read by"): check_outputs(["hard.json"], ["truth.json"])


def test_gaps_of_a_video_with_one_caption_are_none():
    assert find_gaps(read_annotations({"v": {"sentences": ["A man runs."]}})) == []


# -- outputs

@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_stays_and_leads_to_what_is_written(tmp_path):
    for name in ("there.json", "nothing_yet.json"):
        (tmp_path/f"to_{name}").symlink_to(tmp_path/"disk"/name)
    (tmp_path/"disk").mkdir()
    (tmp_path/"disk"/"there.json").write_text("{}")
    for name in ("there.json", "nothing_yet.json"):
        write_json(tmp_path/f"to_{name}", [1])
        assert (tmp_path/f"to_{name}").is_symlink() and read_json(tmp_path/"disk"/name) == [1]
    assert not list(tmp_path.rglob("*.tmp"))
