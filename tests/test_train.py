"Training that is killed, torn, fed with what is not a number, split over processes, and stopped between its stages; and a run folder that can be repeated."
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_data import data_folder

import sail_nbdev.train
from sail_nbdev.core import Config, InputError, read_json, save_config, write_json
from sail_nbdev.model import Sail
from sail_nbdev.train import _load_validation, train, validation_loss

TINY = dict(feature_dim=12, d_model=16, n_heads=2, encoder_ffn=24, localizer_ffn=24, decoder_width=20, decoder_heads=2, n_frames=9, n_queries=4, max_captions=4, batch_size=2, accumulate=1, epochs_stage1=2, epochs_stage2=2)
UPDATES = 3 * 4         # six videos


@pytest.fixture(scope="module")
def data(tmp_path_factory): return data_folder(tmp_path_factory.mktemp("data"), lambda n: None)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    "A run that nothing happened to."
    out = tmp_path_factory.mktemp("alone")/"run"
    train(Config.preset("toy", **TINY), data, out, device="cpu", progress=False)
    return out


def same_run(a, b):
    x, y = (load_file(o/"model.safetensors") for o in (a, b))
    assert all(torch.equal(x[k], y[k]) for k in x)
    assert (a/"log.jsonl").read_text() == (b/"log.jsonl").read_text()


def log(out): return [json.loads(line) for line in (out/"log.jsonl").read_text().splitlines()]


# -- killed

SCRIPT = """
import sys, time; from sail_nbdev.core import load_config; from sail_nbdev import train as t
update = t._update
def slow(*a): time.sleep(.05); return update(*a)
t._update = slow
t.train(load_config(sys.argv[1]), sys.argv[2], sys.argv[3], resume=True, device="cpu", progress=False, checkpoint_minutes=0)
"""


def kill_and_continue(tmp_path, data, alone, kills):
    save_config(Config.preset("toy", **TINY), tmp_path/"c.json")
    rng, out, done = random.Random(kills), tmp_path/"run", 0
    def start(): return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path/"c.json"), str(data), str(out)], stderr=subprocess.PIPE)
    for _ in range(kills):
        p, begin, before = start(), time.time(), (out/"log.jsonl").stat().st_size if (out/"log.jsonl").exists() else 0
        while p.poll() is None and ((out/"log.jsonl").stat().st_size if (out/"log.jsonl").exists() else 0) <= before and time.time() - begin < 60: time.sleep(.002)
        time.sleep(rng.random() * .12)
        p.send_signal(signal.SIGKILL); p.wait(); done += p.returncode == -signal.SIGKILL
        if (out/"model.safetensors").exists(): break
    p = start(); assert p.wait() == 0, p.stderr.read()
    same_run(alone, out)
    return done


def test_killed_three_times_ends_in_the_same_weights(tmp_path, data, alone): assert kill_and_continue(tmp_path, data, alone, 3) == 3


@pytest.mark.skipif("SAIL_NIGHT" not in os.environ, reason="takes minutes; set SAIL_NIGHT=1 to run it")
def test_killed_twenty_times_ends_in_the_same_weights(tmp_path, data, alone): assert sum(kill_and_continue(tmp_path/str(i), data, alone, 5) for i in range(4)) >= 16


# -- checkpoints

def interrupted(data, out, after, **kwargs):
    "Train until `after` updates are done."
    from sail_nbdev import train as t
    update, count = t._update, [0]
    def stop(*a):
        if count[0] == after: raise KeyboardInterrupt
        count[0] += 1
        return update(*a)
    t._update = stop
    try: train(Config.preset("toy", **TINY), data, out, resume=True, device="cpu", progress=False, checkpoint_minutes=0, **kwargs)
    except KeyboardInterrupt: pass
    finally: t._update = update


@pytest.mark.parametrize("harm", [lambda f: f.write_bytes(f.read_bytes()[:-100]), lambda f: f.unlink(), lambda f: f.write_bytes(b"")])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_torn_checkpoint_is_said_and_the_one_before_is_used(tmp_path, data, alone, harm, name):
    interrupted(data, tmp_path/"run", 8)
    found = sorted((tmp_path/"run"/"checkpoints").iterdir())
    assert [p.name for p in found] == ["00000007", "00000008"]
    harm(found[1]/name)
    with pytest.warns(UserWarning, match="00000008: cannot be read .*going on from the one before"):
        train(Config.preset("toy", **TINY), data, tmp_path/"run", resume=True, device="cpu", progress=False)
    same_run(alone, tmp_path/"run")
    assert not (tmp_path/"run"/"checkpoints").exists()


def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path, data, alone):
    "Files may grow to 20 kB only: the first checkpoint cannot be written. Later there is room."
    code = SCRIPT.replace("import sys, time;", "import sys, time, resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);").replace("t.train(", "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\nt.train(")
    save_config(Config.preset("toy", **TINY), tmp_path/"c.json")
    interrupted(data, tmp_path/"run", 4)
    before = sorted(p.name for p in (tmp_path/"run"/"checkpoints").iterdir())
    r = subprocess.run([sys.executable, "-c", code, str(tmp_path/"c.json"), str(data), str(tmp_path/"run")], capture_output=True, text=True)
    assert "InputError" in r.stderr and "cannot be written" in r.stderr and "--resume goes on from them" in r.stderr, r.stderr[-1500:]
    assert sorted(p.name for p in (tmp_path/"run"/"checkpoints").iterdir()) == before == ["00000003", "00000004"]
    train(Config.preset("toy", **TINY), data, tmp_path/"run", resume=True, device="cpu", progress=False)
    same_run(alone, tmp_path/"run")


def test_a_torn_last_line_of_the_log_is_cut(tmp_path, data, alone):
    out = tmp_path/"run"
    interrupted(data, out, 4)
    with (out/"log.jsonl").open("a") as f: f.write('{"stage": 1, "epo')
    with pytest.warns(UserWarning, match="log.jsonl: the last line is torn and was cut"):
        train(Config.preset("toy", **TINY), data, out, resume=True, device="cpu", progress=False)
    same_run(alone, out)                                            # also the curves at the end read the log


def test_a_torn_line_in_the_middle_of_the_log_is_named(tmp_path, data):
    out = tmp_path/"run"
    interrupted(data, out, 4)
    lines = (out/"log.jsonl").read_text().splitlines()
    (out/"log.jsonl").write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]) + "\n")
    with pytest.raises(InputError, match="log.jsonl: line 2 is not JSON"):
        train(Config.preset("toy", **TINY), data, out, resume=True, device="cpu", progress=False)


def test_stages_one_after_the_other(tmp_path, data, alone):
    command = [str(Path(sys.executable).parent/"sail_train"), "toy", "--data", str(data), "--out", str(tmp_path/"run"), "--device", "cpu", "--override", *(f"{k}={v}" for k, v in TINY.items())]
    assert subprocess.run([*command, "--stage", "1"], capture_output=True).returncode == 0
    assert (tmp_path/"run"/"stage1"/"state.json").exists() and not (tmp_path/"run"/"model.safetensors").exists() and len(log(tmp_path/"run")) == UPDATES // 2
    assert subprocess.run([*command, "--resume"], capture_output=True).returncode == 0
    same_run(alone, tmp_path/"run")
    r = subprocess.run([*command, "--stage", "3"], capture_output=True, text=True)
    assert r.returncode == 2 and r.stderr.strip() == "sail_train: --stage 3: must be 1 or 2"


def test_a_run_says_what_it_was_made_of(alone, data):
    about = read_json(alone/"run.json")
    assert set(about) == {"versions", "git", "seed", "command", "data", "data_sha256"} and set(about["data_sha256"]) == {"annotations/train.json", "synthetic.json", "features/store.json", "text/store.json", "synthetic_text/store.json"}
    import hashlib
    assert about["data_sha256"]["synthetic.json"] == hashlib.sha256((data/"synthetic.json").read_bytes()).hexdigest()


# -- not a number

def poisoned(monkeypatch, when):
    "The loss, or its gradient, is not finite at the calls that `when` names."
    forward, calls = Sail.forward, [0]
    def bad(self, batch, **kwargs):
        out, how = forward(self, batch, **kwargs), when(calls[0])
        calls[0] += 1
        if how == "loss": return {**out, "total": out["total"] * math.nan}
        if how == "gradient": return {**out, "total": out["total"] + 0 * (next(self.parameters()).flatten()[0] * 0).sqrt()}     # 0 times the infinite slope of a root at 0
        return out
    monkeypatch.setattr(Sail, "forward", bad)


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_left_out(tmp_path, data, monkeypatch, how):
    poisoned(monkeypatch, lambda i: how if i in (2, 5, 6, 7) else None)
    train(Config.preset("toy", **TINY), data, tmp_path/"run", device="cpu", progress=False)
    rows = log(tmp_path/"run")
    assert [i for i, r in enumerate(rows) if r.get("skipped")] == [2, 5, 6, 7] and len(rows) == UPDATES
    assert all(math.isfinite(r["total"]) for i, r in enumerate(rows) if i not in (2, 5, 6, 7))
    assert all(w.isfinite().all() for w in load_file(tmp_path/"run"/"model.safetensors").values())


def test_ten_in_a_row_stop_the_run(tmp_path, data, monkeypatch, alone):
    with monkeypatch.context() as m:
        poisoned(m, lambda i: "loss" if i >= 1 else None)
        with pytest.raises(FloatingPointError, match="10 updates in a row"): train(Config.preset("toy", **{**TINY, "epochs_stage1": 4}), data, tmp_path/"run", device="cpu", progress=False, checkpoint_minutes=0)
    ids = read_json(tmp_path/"run"/"bad_batches.json")
    assert len(ids) == 10 and all(len(b) == 2 and set(b) <= {f"v{i}" for i in range(6)} for b in ids)
    for folder in (tmp_path/"run"/"checkpoints").iterdir():
        assert all(w.isfinite().all() for f in ("model", "optimizer") for w in load_file(folder/f"{f}.safetensors").values())


# -- several processes

GO = """
import sys; from sail_nbdev.core import load_config; from sail_nbdev.train import train
train(load_config(sys.argv[1]), sys.argv[2], sys.argv[3], device="cpu", progress=False)
"""


def in_two_processes(tmp_path, config, data, out):
    "Train over gloo on a CPU."
    save_config(config, tmp_path/"c.json")
    (tmp_path/"go.py").write_text(GO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, *map(str, (tmp_path/"go.py", tmp_path/"c.json", data, out))]
    r = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert r.returncode == 0, r.stderr[-3000:]


def same_to_rounding(a, b, updates):
    assert len(log(a)) == len(log(b)) == updates
    for x, y in zip(log(a), log(b)):
        for k in x: assert x[k] == pytest.approx(y[k], abs=1e-5), (k, x, y)
    x, y = (load_file(o/"model.safetensors") for o in (a, b))
    assert max(difference(k, x[k], y[k]) for k in x) < 1e-5


def difference(name, x, y):
    "The greatest, without the biases of keys: softmax does not see them, and Adam makes steps of their rounding."
    d = (x - y).abs()
    if name.endswith(("in_proj_bias", "c_attn.bias")): d = torch.cat([d.chunk(3)[0], d.chunk(3)[2]])
    return d.max().item()


def test_two_processes_are_one_with_twice_the_batches(tmp_path, data):
    "Dropout off: two batches an update, in one process or one in each of two."
    config = Config.preset("toy", **{**TINY, "batch_size": 1, "accumulate": 2}, dropout=0.)
    train(config, data, tmp_path/"one", device="cpu", progress=False)
    in_two_processes(tmp_path, config, data, tmp_path/"two")
    same_to_rounding(tmp_path/"one", tmp_path/"two", UPDATES)


@pytest.mark.parametrize("update", ["joint", "alternate"])
def test_batches_that_do_not_divide(tmp_path, update):
    "Eleven batches, four an update: of the last three one process takes two and the other one."
    eleven = data_folder(tmp_path/"data", lambda n: None, videos=11)
    config = Config.preset("toy", **{**TINY, "batch_size": 1, "accumulate": 4}, dropout=0., update=update)
    train(config, eleven, tmp_path/"one", device="cpu", progress=False)
    in_two_processes(tmp_path, config, eleven, tmp_path/"two")
    same_to_rounding(tmp_path/"one", tmp_path/"two", 3 * 4)


def test_accelerate_launches_the_command(tmp_path, data):
    "The configuration file of a machine with two GPUs and `-m sail_nbdev.train`, here with `--device cpu`."
    (tmp_path/"two.yaml").write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\ngpu_ids: all\nuse_cpu: false\nnum_machines: 1\nnum_processes: 2\nmachine_rank: 0\nmain_process_ip: 127.0.0.1\nmain_process_port: 0\nmixed_precision: 'no'\n")
    save_config(Config.preset("toy", **TINY), tmp_path/"c.json")
    r = subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path/"two.yaml"), "-m", "sail_nbdev.train", str(tmp_path/"c.json"), "--data", str(data), "--out", str(tmp_path/"run"), "--device", "cpu"], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-3000:]
    assert len(log(tmp_path/"run")) == 2 * 4 and (tmp_path/"run"/"model.safetensors").exists()       # three batches an epoch, two an update


# -- what is logged, kept and compiled

@pytest.fixture(scope="module")
def data_val(data, tmp_path_factory):
    "The data with a split \"val\" of four of the videos, whose time stamps are no numbers."
    folder = tmp_path_factory.mktemp("with_val")/"data"
    shutil.copytree(data, folder)
    rows = read_json(data/"annotations"/"train.json")
    write_json(folder/"annotations"/"val.json", {v: {**rows[v], "timestamps": "nonsense"} for v in list(rows)[:4]})
    return folder


def test_validation_reads_captions_only_and_keeps_the_best(tmp_path, data_val, alone):
    config, out = Config.preset("toy", **TINY), tmp_path/"run"
    train(config, data_val, out, device="cpu", progress=False, validate=True)
    rows = log(out)
    values = {s: [r["val"] for r in rows if r["stage"] == s and "val" in r] for s in (1, 2)}
    assert [len(v) for v in values.values()] == [2, 2] and [r for r in rows if "val" not in r] == log(alone)        # training is what it is without
    best, last, held_out = Sail.from_pretrained(out/"best"), Sail.from_pretrained(out), _load_validation(data_val, config, "cpu")
    assert held_out.ids == [f"v{i}" for i in range(4)]
    assert validation_loss(best, held_out, 2) == pytest.approx(min(values[2]), abs=1e-6)
    assert validation_loss(last, held_out, 2) == pytest.approx(values[2][-1], abs=1e-6)


@pytest.mark.parametrize("stage", [1, 2])
def test_validation_loss_is_the_mean_over_batches(data_val, alone, stage):
    "Each text by itself, with the labels that transformers scores."
    model, held_out = Sail.from_pretrained(alone), _load_validation(data_val, Config.preset("toy", **TINY), "cpu")
    cap, means = model.captioner, []
    def nats(frames, text):
        x = torch.cat([cap.encoder(frames[None]), cap.decoder.transformer.wte(torch.tensor([text]))], 1)
        n = len(text) - 1                                                                       # all but the mode
        return n * cap.decoder(inputs_embeds=x, labels=torch.tensor([[-100] * (len(frames) + 1) + text[1:]])).loss.item(), n
    for index in ([0, 1], [2, 3]):
        total = []
        for i in index:
            frames, captions = held_out.batch([i]).frames[0], held_out.captions[held_out.ids[i]]
            if stage == 1: total.append(nats(frames, cap.prompt_ids("<FULL>", len(captions)) + sum(map(cap.sentence_ids, captions), [])[:-1] + [cap.ids["<|endoftext|>"]]))
            else:
                masks = model.masks(*model.localize(frames[None], len(captions)))[0]
                total += [nats(frames * m[:, None], cap.prompt_ids("<MASK>", 1) + cap.sentence_ids(c) + [cap.ids["<|endoftext|>"]]) for m, c in zip(masks, captions)]
        means.append(sum(a for a, _ in total) / sum(n for _, n in total))
    assert validation_loss(model, held_out, stage) == pytest.approx(sum(means) / 2, abs=1e-5)


def test_a_stopped_run_with_validation_ends_the_same(tmp_path, data_val, monkeypatch):
    config, whole, out = Config.preset("toy", **TINY), tmp_path/"whole", tmp_path/"run"
    train(config, data_val, whole, device="cpu", progress=False, validate=True)
    calls, real = [0], sail_nbdev.train._update
    def cut(*args):
        calls[0] += 1
        if calls[0] == UPDATES - 1: raise KeyboardInterrupt                                     # in the last epoch, after the validation of the one before
        return real(*args)
    with monkeypatch.context() as m:
        m.setattr(sail_nbdev.train, "_update", cut)
        with pytest.raises(KeyboardInterrupt): train(config, data_val, out, device="cpu", progress=False, validate=True, checkpoint_minutes=0)
    train(config, data_val, out, device="cpu", progress=False, validate=True, resume=True)
    same_run(out, whole)
    x, y = (load_file(o/"best"/"model.safetensors") for o in (out, whole))
    assert all(torch.equal(x[k], y[k]) for k in x)


def test_validation_needs_a_split(tmp_path, data):
    with pytest.raises(InputError, match="val"): train(Config.preset("toy", **TINY), data, tmp_path/"run", device="cpu", progress=False, validate=True)
    assert not (tmp_path/"run"/"config.json").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_layers_give_the_same_losses(tmp_path, data):
    config = Config.preset("toy", **TINY, dropout=0.)
    train(config, data, tmp_path/"plain", device="cpu", progress=False)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    train(config, data, tmp_path/"compiled", device="cpu", progress=False, compile=True)
    for a, b in zip(log(tmp_path/"plain"), log(tmp_path/"compiled")): assert a == pytest.approx(b, abs=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before and Sail.from_pretrained(tmp_path/"compiled")


def test_curves_are_drawn(alone):
    from PIL import Image
    with Image.open(alone/"curves.png") as im: assert im.width > im.height > 200


def test_drawing_curves_leaves_pyplot_alone(alone, tmp_path):
    "A first figure inside a context of its own would switch off the figures of the notebook that trains."
    shutil.copy(alone/"log.jsonl", tmp_path)
    code = "import sys; from pathlib import Path; from sail_nbdev.train import _draw_curves; _draw_curves(Path(sys.argv[1])); assert 'matplotlib.pyplot' not in sys.modules"
    r = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert r.returncode == 0 and r.stderr == "" and (tmp_path/"curves.png").exists(), r.stderr[-2000:]


def test_trackers(tmp_path, data):
    train(Config.preset("toy", **TINY), data, tmp_path/"run", device="cpu", progress=False, track="tensorboard")
    assert list((tmp_path/"run").rglob("events.out.tfevents.*"))
    with pytest.raises(InputError, match="track=nothing: accelerate knows no such tracker"): train(Config.preset("toy", **TINY), data, tmp_path/"no", device="cpu", progress=False, track="nothing")
    assert not (tmp_path/"no"/"config.json").exists()


# -- what will it take

def test_an_estimate_needs_no_data():
    r = subprocess.run([str(Path(sys.executable).parent/"sail_train"), "toy", "--estimate", "--device", "cpu"], capture_output=True, text=True)
    assert r.returncode == 2 and "--estimate for toy: needs --data" in r.stderr
    r = subprocess.run([str(Path(sys.executable).parent/"sail_train"), "activitynet", "--estimate", "--device", "cpu", "--override", *(f"{k}={v}" for k, v in TINY.items() if not k.startswith("epochs")), "vocab_size=300"], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.startswith("activitynet, 10,009 videos, on cpu") and "SAIL, 1 x A6000, as published: training 1.68 h, inference 7.0 min" in r.stdout, r
