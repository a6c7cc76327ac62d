"""Training that is killed, torn, fed with what is not a number, split over processes, and stopped between its
stages; a first stage that two methods share; and a run folder that can be repeated."""
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_data import data_folder

import sail_nbdev.train
from sail_nbdev.captioner import train_tokenizer
from sail_nbdev.config import Config
from sail_nbdev.core import InputError, read_json, write_json
from sail_nbdev.data import clean_caption, read_annotations
from sail_nbdev.model import Sail
from sail_nbdev.store import digest, open_store
from sail_nbdev.train import _accelerator, _backward, _draw_curves, _load_validation, _open_log, read_log
from sail_nbdev.train import stage1_settings, take_over, train, training_settings, validation_loss

TINY = {"data.feature_dim": 12, "data.n_frames": 9, "data.max_captions": 4, "localizer.n_queries": 4,
        "captioner.d_model": 16, "captioner.n_heads": 2, "captioner.encoder_ffn": 24,
        "captioner.decoder_width": 20, "captioner.decoder_heads": 2,
        "localizer.d_model": 16, "localizer.n_heads": 2, "localizer.ffn": 24,
        "train.batch_size": 2, "train.accumulate": 1, "train.epochs_stage1": 2, "train.epochs_stage2": 2}
UPDATES = 3 * 4         # six videos
ON_CPU = dict(device="cpu", progress=False)
SAIL_TRAIN = ["-m", "sail_nbdev.commands", "sail_train"]


def tiny(method="sail", **changes):
    "`train__lr=1` changes train.lr."
    return Config.preset("toy", method, TINY | {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_folder(tmp_path_factory.mktemp("data"), lambda n: None)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    "A run that nothing happened to."
    out = tmp_path_factory.mktemp("alone")/"run"
    train(tiny(), data, out, **ON_CPU)
    return out


def weights(folder):
    return load_file(folder/"model.safetensors")


def same_weights(a, b):
    x = weights(a)
    y = weights(b)
    assert all(torch.equal(x[k], y[k]) for k in x)


def same_run(a, b):
    assert (a/"model.safetensors").read_bytes() == (b/"model.safetensors").read_bytes()
    assert (a/"log.jsonl").read_text() == (b/"log.jsonl").read_text()


def log(out):
    return [json.loads(line) for line in (out/"log.jsonl").read_text().splitlines()]


# -- killed

SCRIPT = """
import sys, time
from sail_nbdev.config import Config
from sail_nbdev import train as t
update = t._update
def slow(*a):
    time.sleep(.05)
    return update(*a)
t._update = slow
go_on = dict(resume=True, device="cpu", progress=False, checkpoint_minutes=0)
t.train(Config.load(sys.argv[1]), sys.argv[2], sys.argv[3], **go_on)
"""


def log_size(out):
    return (out/"log.jsonl").stat().st_size if (out/"log.jsonl").exists() else 0


def wait_for_an_update(process, out, seconds=60):
    before = log_size(out)
    end = time.time() + seconds
    while process.poll() is None and log_size(out) <= before and time.time() < end: time.sleep(.002)


def kill(command, out, seconds):
    "Start a training, and kill it so many seconds after its next update; was it still at work?"
    p = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_for_an_update(p, out)
    time.sleep(seconds)
    p.send_signal(signal.SIGKILL)
    p.wait()
    return p.returncode == -signal.SIGKILL


def kill_and_continue(tmp_path, config, data, alone, kills, between=lambda out: None):
    "Kill a run `kills` times a moment after an update, and let it end; returns how often it was killed."
    config.save(tmp_path/"c.json")
    rng = random.Random(kills)
    out = tmp_path/"run"
    killed = 0
    command = [sys.executable, "-c", SCRIPT, str(tmp_path/"c.json"), str(data), str(out)]
    for _ in range(kills):
        killed += kill(command, out, rng.random() * .12)
        if (out/"model.safetensors").exists(): break
        between(out)
    r = subprocess.run(command, capture_output=True)
    assert r.returncode == 0, r.stderr
    same_run(alone, out)
    return killed


@pytest.mark.slow
def test_killed_three_times_ends_in_the_same_weights(tmp_path, data, alone):
    assert kill_and_continue(tmp_path, tiny(), data, alone, 3) == 3


@pytest.mark.skipif("SAIL_NIGHT" not in os.environ, reason="takes minutes; set SAIL_NIGHT=1 to run it")
@pytest.mark.parametrize("seed", [10, 11])
def test_killed_ten_times_with_a_full_disk_between_ends_in_the_same_weights(tmp_path, data, seed):
    "After each kill the disk is full for a while: the log cannot grow by more than half a row."
    config = tiny(train__epochs_stage1=6, train__epochs_stage2=6)
    train(config, data, tmp_path/"alone", **ON_CPU)
    errors = []
    def fill(out): errors.append(on_a_full_disk(tmp_path, config, data, out, log_size(out) + 40, 10))
    assert kill_and_continue(tmp_path, config, data, tmp_path/"alone", seed, fill) == seed
    assert len(errors) == seed and all("cannot be written" in e for e in errors)


# -- checkpoints

def interrupted(data, out, after, config=None, **options):
    "Train until `after` updates are done."
    update = sail_nbdev.train._update
    calls = []
    def stop(*a):
        if len(calls) == after: raise KeyboardInterrupt
        calls.append(a)
        return update(*a)
    sail_nbdev.train._update = stop
    try: train(config or tiny(), data, out, resume=True, checkpoint_minutes=0, **ON_CPU, **options)
    except KeyboardInterrupt: pass
    finally: sail_nbdev.train._update = update


def go_on(data, out, config=None):
    return train(config or tiny(), data, out, resume=True, **ON_CPU)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


HARMS = {"cut": lambda f: f.write_bytes(f.read_bytes()[:-100]), "gone": lambda f: f.unlink(),
         "empty": lambda f: f.write_bytes(b"")}
PARTS = ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", PARTS)
def test_a_torn_checkpoint_is_said_and_the_one_before_is_used(tmp_path, data, alone, harm, name):
    out = tmp_path/"run"
    interrupted(data, out, 8)
    assert names(out/"checkpoints") == ["00000007", "00000008"]
    HARMS[harm](out/"checkpoints"/"00000008"/name)
    with pytest.warns(UserWarning, match="00000008: cannot be read .*going on from the one before"):
        go_on(data, out)
    same_run(alone, out)
    assert not (out/"checkpoints").exists()


@pytest.mark.parametrize("name", PARTS)
def test_the_only_checkpoint_torn_means_from_the_start(tmp_path, data, alone, name):
    "Nothing of a checkpoint is loaded before all of it was read."
    out = tmp_path/"run"
    interrupted(data, out, 1)
    (out/"checkpoints"/"00000001"/name).write_bytes(b"")
    with pytest.warns(UserWarning, match="00000001: cannot be read"): go_on(data, out)
    same_run(alone, out)


def test_moments_are_kept_by_name(tmp_path, data):
    interrupted(data, tmp_path/"run", 8)
    model = Sail.from_pretrained(tmp_path/"run"/"checkpoints"/"00000008")
    names = {n for n, _ in model.named_parameters()}
    keys = load_file(tmp_path/"run"/"checkpoints"/"00000008"/"optimizer.safetensors").keys()
    assert {k.rsplit(".", 1)[0] for k in keys} == names
    assert {k.rsplit(".", 1)[1] for k in keys} == {"step", "exp_avg", "exp_avg_sq"}


FULL_DISK = """
import resource, signal, sys
from sail_nbdev.config import Config
from sail_nbdev.train import train
config, data, out, limit, minutes = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
go_on = dict(resume=True, device="cpu", progress=False, checkpoint_minutes=float(minutes))
train(Config.load(config), data, out, **go_on)
"""


def on_a_full_disk(tmp_path, config, data, out, limit, minutes):
    "Go on where no file can grow beyond `limit` bytes; returns the last line of the error."
    config.save(tmp_path/"full.json")
    options = map(str, (tmp_path/"full.json", data, out, limit, minutes))
    r = subprocess.run([sys.executable, "-c", FULL_DISK, *options], capture_output=True, text=True)
    assert r.returncode == 1, r.stderr
    return r.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path, data, alone):
    "Files may grow to 20 kB only: the next checkpoint cannot be written. Later there is room."
    out = tmp_path/"run"
    interrupted(data, out, 4)
    before = names(out/"checkpoints")
    error = on_a_full_disk(tmp_path, tiny(), data, out, 20_000, 0)
    for words in ("InputError", "cannot be written", "--resume goes on from them"): assert words in error
    assert names(out/"checkpoints") == before == ["00000003", "00000004"]
    go_on(data, out)
    same_run(alone, out)


@pytest.mark.slow
def test_a_disk_that_fills_in_the_middle_of_an_epoch(tmp_path, data, alone):
    "The last line of the log is torn; with room again the run ends in the same bits."
    out = tmp_path/"run"
    interrupted(data, out, 4)
    error = on_a_full_disk(tmp_path, tiny(), data, out, log_size(out) + 40, 10)
    assert error.endswith("log.jsonl: cannot be written (File too large)")
    assert not (out/"log.jsonl").read_bytes().endswith(b"\n")
    with pytest.warns(UserWarning, match="log.jsonl: line 5 is torn, .* was cut"): go_on(data, out)
    same_run(alone, out)


DAMAGE = {"half a row": b'{"stage": 1, "epo', "zeros": bytes(200), "no object": b"[3]\n",
          "no UTF-8": b"\xff\xfe{}\n", "no step": b'{"stage": 1, "epoch": 0}\n', "nested": b"[" * 100_000}


@pytest.mark.parametrize("tail", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_end_of_the_log_is_cut(tmp_path, alone, tail):
    path = tmp_path/"log.jsonl"
    whole = (alone/"log.jsonl").read_bytes()
    path.write_bytes(whole + tail)
    with pytest.warns(UserWarning, match=f"line {UPDATES + 1} is torn, or no row, and was cut"):
        append = _open_log(path, UPDATES)
    assert path.read_bytes() == whole
    append({"stage": 2, "epoch": 2, "step": UPDATES})
    assert len(read_log(path)) == UPDATES + 1


def test_a_damaged_log_does_not_end_a_run(tmp_path, data, alone):
    "A line in the middle is cut, and it is said that an update has no row. The weights do not depend on it."
    out = tmp_path/"run"
    interrupted(data, out, 4)
    lines = (out/"log.jsonl").read_text().splitlines()
    (out/"log.jsonl").write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    with pytest.warns(UserWarning) as said: go_on(data, out)
    words = " ".join(str(w.message) for w in said)
    assert "line 2 is torn" in words and "has no row of 1 of the 4 updates" in words
    same_weights(alone, out)
    assert [r["step"] for r in log(out)] == [0, *range(2, UPDATES)]


def on_command_line(data, out, *options):
    "sail_train toy on a CPU."
    overrides = [f"{k}={v}" for k, v in TINY.items()]
    command = [sys.executable, *SAIL_TRAIN, "toy", "--data", str(data), "--out", str(out), "--device", "cpu"]
    return subprocess.run([*command, *options, "--override", *overrides], capture_output=True, text=True)


@pytest.mark.slow
def test_stages_one_after_the_other(tmp_path, data, alone):
    out = tmp_path/"run"
    r = on_command_line(data, out, "--stage", "1")
    assert r.returncode == 0, r.stderr
    assert (out/"stage1"/"state.json").exists()
    assert not (out/"model.safetensors").exists()
    assert len(log(out)) == UPDATES // 2
    assert on_command_line(data, out, "--resume").returncode == 0
    same_run(alone, out)
    r = on_command_line(data, out, "--resume", "--stage", "3")
    assert r.returncode == 2
    assert r.stderr.strip() == "sail_train: --stage 3: must be a whole number from 1 to 2"


def with_moment(change):
    "Harm that replaces a moment (name, tensor) of the captioner by what `change` gives for it."
    def harm(file):
        tensors = load_file(file)
        key = min(k for k in tensors if k.startswith("captioner.") and k.endswith(".exp_avg"))
        save_file(change(key, tensors.pop(key)) | tensors, file)
    return "optimizer.safetensors", harm


def with_state(text):
    "Harm that writes `text` as the position."
    return "state.json", lambda file: file.write_text(text)


MORE = '"epoch": 0, "update": 0, "bad": [], "best": null, "scaler": null}'
OTHERS = {      # file, harm, what is said of it
    "no file": ("optimizer.safetensors", HARMS["gone"], "optimizer.safetensors: no such file"),
    "cut": ("optimizer.safetensors", HARMS["cut"], "optimizer.safetensors: cannot be read"),
    "shape": (*with_moment(lambda k, v: {k: v.new_zeros(3, 5)}), "does not fit this model: captioner"),
    "keys": (*with_moment(lambda k, v: {"captioner.x": v}), "does not fit this model: captioner.x is"),
    "no moment": (*with_moment(lambda k, v: {}), "lacks exp_avg of captioner."),
    "not finite": (*with_moment(lambda k, v: {k: v * math.nan}), "holds a value that is not finite"),
    "a folder": ("model.safetensors", lambda f: (f.unlink(), f.mkdir()), "no file model.safetensors"),
    "a list": (*with_state("[]"), "state.json: must be"),
    "a text": (*with_state('{"stage": "two"}'), "state.json: stage: must be 1, 2 or 3"),
    "a field less": (*with_state('{"stage": 2}'), "state.json: epoch: field required"),
    "negative": (*with_state('{"stage": 2, "step": -6, ' + MORE), "state.json: step: must be greater"),
    "half": (*with_state('{"stage": 2, "step": 5.5, ' + MORE), "state.json: step: must be a valid integer")}


@pytest.mark.parametrize("name,harm,words", OTHERS.values(), ids=OTHERS)
def test_a_first_stage_of_another_form_is_named(tmp_path, data, alone, name, harm, words):
    "Both in the run's own folder and in one that is taken over."
    for stage1, out in ((None, tmp_path/"run"), (tmp_path/"run", tmp_path/"other")):
        if stage1 is None:
            shutil.copytree(alone, out)
            (out/"model.safetensors").unlink()
            harm(out/"stage1"/name)
        with pytest.raises(InputError, match=re.escape(words)) as error:
            train(tiny(), data, out, resume=True, stage1=stage1, **ON_CPU)
        assert "\n" not in str(error.value)


def recaptioned(data, folder):
    "A copy of which one caption is another."
    shutil.copytree(data, folder)
    rows = read_json(folder/"annotations"/"train.json")
    rows["v0"]["sentences"][0] += " again"
    write_json(folder/"annotations"/"train.json", rows)
    return folder


def test_a_run_goes_on_with_its_own_data_only(tmp_path, data, alone):
    interrupted(data, tmp_path/"run", 4)
    other = recaptioned(data, tmp_path/"data")
    with pytest.raises(InputError, match="run: was trained on other data: its captions changed since"):
        go_on(other, tmp_path/"run")
    with pytest.raises(InputError, match="run: was trained on other data: its captions changed since"):
        train(tiny("ilcacm"), other, tmp_path/"second", stage1=alone, **ON_CPU)
    tokens = train_tokenizer(["Other words."] * 9)
    with pytest.raises(InputError, match="its tokens changed since"):
        train(tiny(), data, tmp_path/"run", resume=True, tokenizer=tokens, **ON_CPU)
    go_on(data, tmp_path/"run")
    same_run(tmp_path/"run", alone)
    with pytest.raises(InputError, match="other data: its annotations/train.json changed since"):
        go_on(other, tmp_path/"run")


def test_texts_that_were_not_embedded_again_are_named(tmp_path, data):
    other = shutil.copytree(data, tmp_path/"data")
    videos = read_annotations(other/"annotations"/"train.json")
    store = open_store(other, "text")
    for v, o in videos.items(): store.add(v, store[v], digest([clean_caption(c) for c in o.captions]))
    sail_nbdev.train.load_training_data(other, tiny())
    changed = recaptioned(other, tmp_path/"changed")
    with pytest.raises(InputError, match="text: holds embeddings of other captions than .* v0 has now"):
        train(tiny(), changed, tmp_path/"run", **ON_CPU)


def test_videos_without_features_are_said(tmp_path, data, capsys):
    other = shutil.copytree(data, tmp_path/"data")
    files = sorted((other/"features"/"shards").iterdir())
    files[0].unlink()
    train(tiny(train__epochs_stage1=0, train__epochs_stage2=0), other, tmp_path/"run", **ON_CPU)
    line = capsys.readouterr().out.splitlines()[0]
    assert line == f"{other/'features'}: holds 5 of 6 training videos; there is nothing of v0"
    for file in files[1:4]: file.unlink()
    with pytest.raises(InputError, match="holds 2 of 6 training videos; .* sail_features makes them"):
        train(tiny(), other, tmp_path/"second", **ON_CPU)
    assert not (tmp_path/"second"/"config.json").exists()


HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1], timeout=0)
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_two_trainings_cannot_share_a_folder(tmp_path, data):
    "The lock of a process that was killed is none."
    out = tmp_path/"run"
    out.mkdir()
    p = subprocess.Popen([sys.executable, "-c", HOLD, str(out/".lock")], stdout=subprocess.PIPE)
    p.stdout.readline()
    with pytest.raises(InputError, match="run: another training is at work in this folder"): go_on(data, out)
    assert names(out) == [".lock"]
    p.kill()
    p.wait()
    train(tiny(train__epochs_stage1=0, train__epochs_stage2=0), data, out, **ON_CPU)


def test_weights_are_as_readable_as_other_files(tmp_path, data):
    before = os.umask(0o027)
    try: interrupted(data, tmp_path/"run", 8)
    finally: os.umask(before)
    files = [f for f in (tmp_path/"run").rglob("*") if f.is_file() and f.name != ".lock"]
    assert {"optimizer.safetensors", "model.safetensors", "log.jsonl"} <= {f.name for f in files}
    assert {oct(f.stat().st_mode) for f in files} == {"0o100640"}


# -- devices

def test_one_process_trains_in_two_precisions(tmp_path, data, alone):
    train(tiny(train__precision="bf16", train__epochs_stage2=0), data, tmp_path/"half", **ON_CPU)
    train(tiny(), data, tmp_path/"run", **ON_CPU)
    same_run(tmp_path/"run", alone)
    assert log(tmp_path/"half")[0] != log(alone)[0]


def set_device(device):
    "Refuses, as torch does, a device without a number."
    if torch.device(device).index is None: raise ValueError(f"expected an index, but got {device}")


def test_one_gpu_is_used_if_it_is_there(monkeypatch):
    "Two GPUs that are made up."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda on: None)
    assert str(_accelerator(tiny(), "cuda:1").device) == "cuda:1"
    assert [_accelerator(tiny(), name).device.type for name in ("cuda", None)] == ["cuda", "cuda"]
    assert str(_accelerator(tiny(), "cpu").device) == "cpu"
    with pytest.raises(InputError, match="'cuda:2' is not on this machine"): _accelerator(tiny(), "cuda:2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="cuda:1: each process takes a GPU of its own"):
        _accelerator(tiny(), "cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 3 needs a GPU of its own, and this machine has 2$"):
        _accelerator(tiny(), "cuda")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES= hides"): _accelerator(tiny(), "cpu")


def in_fp16(monkeypatch, scale):
    "fp16 computes in fp16 and scales its losses, on a CPU as on a GPU."
    make = sail_nbdev.train._accelerator
    def accelerator(*args, **options):
        acc = make(*args, **options)
        acc.native_amp = True
        acc.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
        return acc
    monkeypatch.setattr(sail_nbdev.train, "_accelerator", accelerator)


def test_overflows_are_skipped_and_the_scale_is_kept(tmp_path, data, monkeypatch):
    "Over a stop between the stages, and one within."
    in_fp16(monkeypatch, 2.**20)                                    # overflows until it has been halved often
    config = tiny(train__precision="fp16")
    train(config, data, tmp_path/"whole", **ON_CPU)
    rows = log(tmp_path/"whole")
    skipped = [r["step"] for r in rows if r.get("skipped")]
    assert 0 < len(skipped) < UPDATES // 2 and skipped[0] == 0
    assert all("total" in r for r in rows if not r.get("skipped"))
    train(config, data, tmp_path/"run", last_stage=1, **ON_CPU)
    assert read_json(tmp_path/"run"/"stage1"/"state.json")["scaler"]["scale"] < 2.**20
    interrupted(data, tmp_path/"run", 3, config)
    go_on(data, tmp_path/"run", config)
    same_run(tmp_path/"run", tmp_path/"whole")


def test_tf32_is_for_the_captioner_alone(data):
    "On the way there and back, in both stages; similarities and what follows the captioner are without."
    model = sail_nbdev.train._untrained(tiny(), sail_nbdev.train.load_training_data(data, tiny()), None)
    batch = sail_nbdev.train.load_training_data(data, tiny()).batch([0, 1])
    sail_nbdev.train._with_tf32(model.captioner)
    on = {}
    def note(name): return lambda *a: on.setdefault(name, set()).add(torch.backends.cuda.matmul.allow_tf32)
    for name, m in (("encoder", model.captioner.encoder.out), ("decoder", model.captioner.decoder.lm_head),
                    ("localizer", model.localizer.center_head)):
        m.register_forward_pre_hook(note(f"{name}, there"))
        m.weight.register_hook(note(f"{name}, back"))
    for stage in (1, 2):
        model(batch, stage=stage)["total"].backward()
        assert not torch.backends.cuda.matmul.allow_tf32
    parts = {"encoder": {True}, "decoder": {True}, "localizer": {False}}
    assert on == {f"{name}, {way}": value for name, value in parts.items() for way in ("there", "back")}


# -- what is shared

def captioner_of(folder):
    return {k: v for k, v in weights(folder).items() if k.startswith("captioner.")}


def localizer_of(model):
    return {k: v for k, v in model.state_dict().items() if k.startswith("localizer.")}


def fresh(config, folder):
    "The model that a run of `config` starts with, made with the tokens of the run in `folder`."
    tokenizer = Sail.from_pretrained(folder).captioner.tokenizer
    return sail_nbdev.train._untrained(config, None, tokenizer)


@pytest.mark.parametrize("first,second", [("uniform", "ilcacm"), ("sail", "uniform"), ("ilcacm", "sail")])
def test_a_first_stage_that_is_shared_is_as_good_as_ones_own(tmp_path, data, first, second):
    "Methods whose localizers differ: the captioner and its moments go on, the localizer is the seed's."
    train(tiny(first), data, tmp_path/"first", last_stage=1, **ON_CPU)
    config = tiny(second)
    model = train(config, data, tmp_path/"second", stage1=tmp_path/"first", **ON_CPU)
    train(config, data, tmp_path/"alone", **ON_CPU)
    assert log(tmp_path/"second") == log(tmp_path/"alone")[UPDATES // 2:]
    same_weights(tmp_path/"second", tmp_path/"alone")
    assert bool(localizer_of(model)) == (second != "uniform")
    same_weights(tmp_path/"second"/"stage1", tmp_path/"first"/"stage1")


def test_what_a_taken_over_stage_leaves_to_the_seed(tmp_path, data):
    train(tiny("uniform"), data, tmp_path/"first", last_stage=1, **ON_CPU)
    start = fresh(tiny(), tmp_path/"first"/"stage1")
    seeded = {k: v.clone() for k, v in localizer_of(start).items()}
    optimizer = sail_nbdev.train._adamw(start, tiny())
    position = sail_nbdev.train._load_stage1(tmp_path/"first"/"stage1", start, optimizer)
    assert (position.stage, position.epoch, position.step) == (2, 0, UPDATES // 2)
    assert all(torch.equal(v, seeded[k]) for k, v in localizer_of(start).items())
    taken = captioner_of(tmp_path/"first"/"stage1")
    assert all(torch.equal(start.state_dict()[k], v) for k, v in taken.items())
    names = [n for n, _ in start.named_parameters()]
    with_state = {names[i] for i in optimizer.state_dict()["state"]}
    assert with_state == {n for n in names if n.startswith("captioner.")}


def test_sail_plus_takes_over_its_localizer_too(tmp_path, data):
    "L_align trains it in stage 1, so a run that takes that stage over ends as one that trained it."
    train(tiny("sail_plus"), data, tmp_path/"whole", **ON_CPU)
    other = tiny("sail_plus", losses__sim_weight=0)
    train(other, data, tmp_path/"other", **ON_CPU)
    train(other, data, tmp_path/"taken", stage1=tmp_path/"whole", **ON_CPU)
    same_weights(tmp_path/"taken", tmp_path/"other")


def test_a_stopped_run_with_another_first_stage_ends_the_same(tmp_path, data):
    train(tiny("uniform"), data, tmp_path/"first", last_stage=1, **ON_CPU)
    train(tiny(), data, tmp_path/"whole", stage1=tmp_path/"first", **ON_CPU)
    interrupted(data, tmp_path/"run", 2, stage1=tmp_path/"first")
    go_on(data, tmp_path/"run")
    same_run(tmp_path/"run", tmp_path/"whole")


def test_a_first_stage_of_other_captions_is_refused(tmp_path, data):
    train(tiny(), data, tmp_path/"first", last_stage=1, **ON_CPU)
    other = shutil.copytree(data, tmp_path/"data")
    rows = read_json(other/"annotations"/"train.json")
    for row in rows.values(): row["sentences"] = [f"Quite something else {c}" for c in row["sentences"]]
    write_json(other/"annotations"/"train.json", rows)
    with pytest.raises(InputError, match="trained on other data"):
        train(tiny("ilcacm"), other, tmp_path/"second", stage1=tmp_path/"first", **ON_CPU)


def test_settings_follow_from_the_groups():
    assert stage1_settings(tiny()) == stage1_settings(tiny("ilcacm")) == stage1_settings(tiny("uniform"))
    assert stage1_settings(tiny("sail_plus")) != stage1_settings(tiny())
    more = [("seed", 3), ("train.epochs_stage2", 3), ("captioner.dropout", .5), ("data.n_frames", 8)]
    for name, value in more:
        assert stage1_settings(tiny().changed({name: value})) != stage1_settings(tiny()), name
    for name, value in (("localizer.tau", 1.), ("losses.sim_margin", .2), ("decode.beams", 7)):
        assert stage1_settings(tiny().changed({name: value})) == stage1_settings(tiny()), name
    plus = tiny("sail_plus")
    assert stage1_settings(plus.changed({"localizer.convs": 1})) != stage1_settings(plus)
    assert training_settings(tiny().changed({"decode.beams": 7})) == training_settings(tiny())
    assert training_settings(tiny().changed({"losses.sim_margin": .2})) != training_settings(tiny())


def test_a_run_is_taken_over_with_another_way_of_predicting(tmp_path, alone):
    config = tiny(decode__beams=1)
    write_json(alone/"counts_val.json", {})
    take_over(alone, tmp_path/"run", config)
    (alone/"counts_val.json").unlink()
    assert Sail.from_pretrained(tmp_path/"run").config == config
    assert read_json(tmp_path/"run"/"run.json")["taken_over"] == os.path.relpath(alone, tmp_path/"run")
    assert not (tmp_path/"run"/"counts_val.json").exists()
    same_weights(alone, tmp_path/"run")
    take_over(alone, tmp_path/"run", config)                        # it is there already
    with pytest.raises(InputError, match="another configuration"): take_over(alone, tmp_path/"run", tiny())


def test_a_run_says_what_it_was_made_of(alone, data):
    about = read_json(alone/"run.json")
    assert set(about) == {"versions", "device", "git", "seed", "command", "data", "data_sha256"}
    stores = {"features", "text", "synthetic_text"}
    made = {"captions", "tokens", "annotations/train.json", "synthetic.json"}
    assert set(about["data_sha256"]) == made | stores
    digest = hashlib.sha256((data/"synthetic.json").read_bytes()).hexdigest()
    assert about["data_sha256"]["synthetic.json"] == digest


def test_data_of_another_configuration_are_refused(tmp_path, data):
    loaded = sail_nbdev.train.load_training_data(data, tiny())
    with pytest.raises(InputError, match="loaded for another configuration"):
        train(tiny(train__lr=1.), loaded, tmp_path/"run", **ON_CPU)


def test_boundaries_teach_the_upper_bound_only(tmp_path):
    "They are read from truth/, and by nothing but losses.supervision='boundaries'."
    data = data_folder(tmp_path/"data", lambda n: None)
    rows = read_json(data/"annotations"/"train.json")
    for row in rows.values(): row["timestamps"] = [[5. * i, 5. * i + 4] for i in range(len(row["sentences"]))]
    write_json(data/"truth"/"train.json", rows)
    config = tiny("sail_plus", losses__supervision="boundaries")
    batch = sail_nbdev.train.load_training_data(data, config).batch([0])
    assert batch.segments[0].flatten().tolist() == pytest.approx([0, .2, .25, .45])
    assert sail_nbdev.train.load_training_data(data, tiny("sail_plus")).batch([0]).segments is None
    train(config, data, tmp_path/"run", **ON_CPU)


def test_stages_of_no_epochs(tmp_path, data):
    train(tiny(train__epochs_stage1=0), data, tmp_path/"second", **ON_CPU)
    assert {r["stage"] for r in log(tmp_path/"second")} == {2}
    train(tiny(train__epochs_stage1=0, train__epochs_stage2=0), data, tmp_path/"none", **ON_CPU)
    assert log(tmp_path/"none") == []


# -- not a number

def poisoned(monkeypatch, when):
    "The loss, or its gradient, is not finite at the calls that `when` names."
    forward = Sail.forward
    calls = []
    def bad(self, batch, **options):
        losses = forward(self, batch, **options)
        what = when(len(calls))
        calls.append(what)
        if what == "loss": return {**losses, "total": losses["total"] * math.nan}
        if what != "gradient": return losses
        root = (next(self.parameters()).flatten()[0] * 0).sqrt()        # its slope at 0 is infinite
        return {**losses, "total": losses["total"] + 0 * root}
    monkeypatch.setattr(Sail, "forward", bad)


def all_finite(path):
    return all(w.isfinite().all() for w in load_file(path).values())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_left_out(tmp_path, data, monkeypatch, what):
    poisoned(monkeypatch, lambda i: what if i in (2, 5, 6, 7) else None)
    train(tiny(), data, tmp_path/"run", **ON_CPU)
    rows = log(tmp_path/"run")
    assert len(rows) == UPDATES
    assert [i for i, r in enumerate(rows) if r.get("skipped")] == [2, 5, 6, 7]
    assert all(math.isfinite(r["total"]) for r in rows if not r.get("skipped"))
    assert all_finite(tmp_path/"run"/"model.safetensors")


def test_ten_in_a_row_stop_the_run(tmp_path, data, monkeypatch):
    out = tmp_path/"run"
    poisoned(monkeypatch, lambda i: "loss" if i >= 1 else None)
    with pytest.raises(FloatingPointError, match="10 updates in a row"):
        train(tiny(train__epochs_stage1=4), data, out, checkpoint_minutes=0, **ON_CPU)
    ids = read_json(out/"bad_batches.json")
    assert len(ids) == 10
    assert all(len(b) == 2 and set(b) <= {f"v{i}" for i in range(6)} for b in ids)
    for folder in (out/"checkpoints").iterdir():
        assert all_finite(folder/"model.safetensors")
        assert all_finite(folder/"optimizer.safetensors")


def test_bad_updates_in_a_row_are_counted_over_a_stop(tmp_path, data, monkeypatch):
    "Four before the stop and six after it are ten."
    out = tmp_path/"run"
    config = tiny(train__epochs_stage1=4)
    with monkeypatch.context() as m:
        poisoned(m, lambda i: "loss" if i >= 1 else None)
        interrupted(data, out, 5, config)
    with monkeypatch.context() as m:
        poisoned(m, lambda i: "loss")
        with pytest.raises(FloatingPointError): go_on(data, out, config)
    assert len(log(out)) == 1 + 9


# -- several processes

GO = """
import json, sys
from sail_nbdev.config import Config
from sail_nbdev.train import train
for config, data, out, last in json.load(open(sys.argv[1])):
    config = Config.load(config)
    try: train(config, data, out, device="cpu", progress=False, last_stage=last)
    except FloatingPointError: pass
"""
NO_DROPOUT = dict(captioner__dropout=0., localizer__dropout=0.)


def shared(method="sail", **changes):
    return tiny(method, **NO_DROPOUT, **changes)


FOUR = dict(train__batch_size=1, train__accumulate=4)
SHARED = {      # videos, configuration, updates
    "two batches": (6, shared(train__batch_size=1, train__accumulate=2), 3 * 4),
    "eleven, four an update": (11, shared(**FOUR), 3 * 4),
    "eleven, alternating": (11, shared(losses__update="alternate", **FOUR), 3 * 4),
    "three, two an update": (6, shared(train__accumulate=2), 2 * 4),
    "one event, a layout": ("one", shared("uniform", losses__update="alternate", train__accumulate=2), 2 * 4)}


def with_one_event(data, folder):
    "A copy in which four of the six videos have one caption."
    shutil.copytree(data, folder)
    rows = read_json(folder/"annotations"/"train.json")
    for v in list(rows)[:4]: rows[v]["sentences"] = rows[v]["sentences"][:1]
    write_json(folder/"annotations"/"train.json", rows)
    return folder


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory, data):
    "The folder of all runs of `SHARED`, and of two more, trained one after the other over gloo on a CPU."
    folder = tmp_path_factory.mktemp("two")
    folders = {6: data, 11: data_folder(folder/"eleven", lambda n: None, videos=11),
               "one": with_one_event(data, folder/"one")}
    jobs = [(name, config, folders[videos], 2) for name, (videos, config, _) in SHARED.items()]
    jobs += [("first stage", tiny(), data, 1)]
    for name, config, _, _ in jobs: config.save(folder/"configs"/f"{name}.json")
    listed = [(str(folder/"configs"/f"{name}.json"), str(where), str(folder/"runs"/name), last)
              for name, _, where, last in jobs]
    write_json(folder/"jobs.json", listed)
    (folder/"go.py").write_text(GO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(folder/"go.py"), str(folder/"jobs.json")]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    r = subprocess.run(command, capture_output=True, text=True, timeout=300, env=hidden)
    assert r.returncode == 0, r.stderr[-3000:]
    return folders, folder/"runs"


def difference(name, x, y):
    "The greatest, without biases of keys: softmax does not see them, and Adam makes steps of their rounding."
    d = (x - y).abs()
    if not name.endswith(("in_proj_bias", "c_attn.bias")): return d.max().item()
    query, _, value = d.chunk(3)
    return max(query.max().item(), value.max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_two_processes_are_one_that_takes_all_batches(tmp_path, in_two_processes, name):
    "Dropout off. Also where batches do not divide, and where an update has no negative caption."
    folders, runs = in_two_processes
    videos, config, updates = SHARED[name]
    train(config, folders[videos], tmp_path/"one", **ON_CPU)
    assert len(log(tmp_path/"one")) == len(log(runs/name)) == updates
    for x, y in zip(log(tmp_path/"one"), log(runs/name)):
        for k in x: assert x[k] == pytest.approx(y[k], abs=1e-6, rel=1e-6), (k, x, y)
    x = weights(tmp_path/"one")
    y = weights(runs/name)
    assert max(difference(k, x[k], y[k]) for k in x) < 1e-6


def test_another_number_of_processes_has_other_updates(tmp_path, in_two_processes, data):
    "One batch an update is none for two processes; what divides goes on."
    out = shutil.copytree(in_two_processes[1]/"first stage", tmp_path/"run")
    with pytest.raises(InputError, match="stage1: its updates had 2 batches, those of 1 process have 1"):
        go_on(data, out)
    state = read_json(out/"stage1"/"state.json")
    write_json(out/"stage1"/"state.json", {**state, "batches": 1})
    go_on(data, out)
    assert (out/"model.safetensors").exists()


def test_gradients_travel_once_an_update():
    "Of three batches the first two add up in each process."
    where = []
    @contextmanager
    def no_sync(model):
        where.append("apart")
        yield
    @contextmanager
    def autocast():
        where.append("batch")
        yield
    acc = SimpleNamespace(no_sync=no_sync, autocast=autocast, backward=lambda loss: None)
    model = lambda batch, **how: {"total": torch.ones(())}
    means = _backward(acc, model, iter("abc"), [(o, 3.) for o in "abc"], 2, ("pos",))
    assert where == ["apart", "batch", "apart", "batch", "batch"]
    assert means["total"].item() == pytest.approx(1)


MACHINE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
gpu_ids: all
use_cpu: false
num_machines: 1
num_processes: 2
machine_rank: 0
main_process_ip: 127.0.0.1
main_process_port: 0
mixed_precision: 'no'
"""


@pytest.mark.slow
def test_accelerate_launches_the_command(tmp_path, data):
    "The configuration file of a machine with two GPUs, here with `--device cpu`."
    (tmp_path/"two.yaml").write_text(MACHINE)
    tiny().save(tmp_path/"c.json")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path/"two.yaml")]
    call = [*SAIL_TRAIN, str(tmp_path/"c.json"), "--data", str(data)]
    where = ["--out", str(tmp_path/"run"), "--device", "cpu"]
    r = subprocess.run([*launch, *call, *where], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-3000:]
    assert len(log(tmp_path/"run")) == 2 * 4                        # three batches an epoch, two an update
    assert (tmp_path/"run"/"model.safetensors").exists()


# -- what is logged, kept and compiled

@pytest.fixture(scope="module")
def data_val(data, tmp_path_factory):
    'The data with a split "val" of four of the videos, whose time stamps are no numbers.'
    folder = tmp_path_factory.mktemp("with_val")/"data"
    shutil.copytree(data, folder)
    rows = read_json(data/"annotations"/"train.json")
    val = {v: {**rows[v], "timestamps": "nonsense"} for v in list(rows)[:4]}
    write_json(folder/"annotations"/"val.json", val)
    return folder


def test_validation_reads_captions_only_and_keeps_the_best(tmp_path, data_val, alone):
    out = tmp_path/"run"
    train(tiny(), data_val, out, validate=True, **ON_CPU)
    rows = log(out)
    assert [r for r in rows if "val" not in r] == log(alone)        # training is what it is without
    values = {s: [r["val"] for r in rows if r["stage"] == s and "val" in r] for s in (1, 2)}
    assert [len(v) for v in values.values()] == [2, 2]
    held_out = _load_validation(data_val, tiny(), "cpu")
    assert held_out.ids == [f"v{i}" for i in range(4)]
    best = validation_loss(Sail.from_pretrained(out/"best"), held_out, 2)
    last = validation_loss(Sail.from_pretrained(out), held_out, 2)
    assert best == pytest.approx(min(values[2]), abs=1e-6)
    assert last == pytest.approx(values[2][-1], abs=1e-6)


def nats(captioner, frames, text):
    "Cross-entropy of a text, summed over its tokens, as transformers scores labels; and their number."
    words = captioner.decoder.transformer.wte(torch.tensor([text]))
    x = torch.cat([captioner.encoder(frames[None]), words], 1)
    n = len(text) - 1                                               # all but the mode
    labels = torch.tensor([[-100] * (len(frames) + 1) + text[1:]])
    return n * captioner.decoder(inputs_embeds=x, labels=labels).loss.item(), n


def texts_of(model, held_out, i, stage):
    "Frames and tokens of the texts of video i."
    cap = model.captioner
    frames = held_out.batch([i]).frames[0]
    captions = held_out.captions[held_out.ids[i]]
    end = [cap.ids["<|endoftext|>"]]
    sentences = [cap.sentence_ids(c) for c in captions]
    if stage == 1:
        yield frames, cap.prompt_ids("<FULL>", len(captions)) + sum(sentences, [])[:-1] + end
        return
    masks = model.masks(*model.localize(frames[None], len(captions)))[0]
    for m, s in zip(masks, sentences): yield frames * m[:, None], cap.prompt_ids("<MASK>", 1) + s + end


@pytest.mark.parametrize("stage", [1, 2])
def test_validation_loss_is_the_mean_over_batches(data_val, alone, stage):
    "Each text by itself, with the labels that transformers scores."
    model = Sail.from_pretrained(alone)
    held_out = _load_validation(data_val, tiny(), "cpu")
    means = []
    for index in ([0, 1], [2, 3]):
        texts = [text for i in index for text in texts_of(model, held_out, i, stage)]
        losses = [nats(model.captioner, frames, text) for frames, text in texts]
        means.append(sum(a for a, _ in losses) / sum(n for _, n in losses))
    assert validation_loss(model, held_out, stage) == pytest.approx(sum(means) / 2, abs=1e-5)


def test_a_stopped_run_with_validation_ends_the_same(tmp_path, data_val):
    "Stopped in the last epoch, after the validation of the one before."
    whole = tmp_path/"whole"
    out = tmp_path/"run"
    train(tiny(), data_val, whole, validate=True, **ON_CPU)
    interrupted(data_val, out, UPDATES - 2, validate=True)
    train(tiny(), data_val, out, validate=True, resume=True, **ON_CPU)
    same_run(out, whole)
    same_weights(out/"best", whole/"best")


def test_validation_needs_a_split(tmp_path, data):
    with pytest.raises(InputError, match="val"): train(tiny(), data, tmp_path/"run", validate=True, **ON_CPU)
    assert not (tmp_path/"run"/"config.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_losses(tmp_path, data):
    config = tiny(**NO_DROPOUT)
    train(config, data, tmp_path/"plain", **ON_CPU)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    train(config, data, tmp_path/"compiled", compile=True, **ON_CPU)
    for a, b in zip(log(tmp_path/"plain"), log(tmp_path/"compiled")): assert a == pytest.approx(b, abs=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert Sail.from_pretrained(tmp_path/"compiled")


def test_curves_are_drawn(alone):
    with Image.open(alone/"curves.png") as im: assert im.width > im.height > 200


def test_drawing_curves_leaves_pyplot_alone(alone, tmp_path):
    "Whoever trains may be drawing."
    shutil.copy(alone/"log.jsonl", tmp_path)
    figures = plt.get_fignums()
    settings = dict(plt.rcParams)
    _draw_curves(tmp_path)
    assert (tmp_path/"curves.png").exists()
    assert plt.get_fignums() == figures
    assert dict(plt.rcParams) == settings


def test_trackers(tmp_path, data):
    pytest.importorskip("tensorboardX")                     # of [dev]; the lowest versions run without it
    train(tiny(), data, tmp_path/"run", track="tensorboard", **ON_CPU)
    assert list((tmp_path/"run").rglob("events.out.tfevents.*"))
    with pytest.raises(InputError, match="track=nothing: accelerate knows no such tracker"):
        train(tiny(), data, tmp_path/"no", track="nothing", **ON_CPU)
    assert not (tmp_path/"no"/"config.json").exists()


# -- what will it take

def estimate(preset, *overrides):
    command = [sys.executable, *SAIL_TRAIN, preset, "--estimate", "--device", "cpu", "--override", *overrides]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_an_estimate_needs_no_data():
    r = estimate("toy")
    assert r.returncode == 2
    assert "--estimate for toy: needs --data" in r.stderr
    small = [f"{k}={v}" for k, v in TINY.items() if "epochs" not in k]
    r = estimate("activitynet", *small, "captioner.vocab_size=300")
    assert r.returncode == 0, r.stderr
    assert r.stdout.startswith("activitynet, 10,009 videos, on cpu")
    assert "SAIL, 1 x A6000, as published: training 1.68 h, inference 7.0 min" in r.stdout
