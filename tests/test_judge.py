"Several systems in one table: forms, coverage, facts, intervals, and that one cannot stop the others."
import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from sail_nbdev.commands import sail_eval
from sail_nbdev.core import Event, InputError, read_json, write_json
from sail_nbdev.evaluate import evaluate, uniform_predictions
from sail_nbdev.judge import bootstrap, comparison_rows, judge, measure, scores_json, system_names
from sail_nbdev.text_scores import find_java, tokenize

needs_java = pytest.mark.skipif(find_java() is None, reason="no Java on this machine")

TRUTH = {
    "v_aaaaaaaaaa1": {"duration": 60, "timestamps": [[0, 20], [22, 40], [45, 60]],
                      "sentences": ["A man walks.", "He sits on a bench.", "He plays the guitar."]},
    "v_aaaaaaaaaa2": {"duration": 90, "timestamps": [[5, 30], [30, 80]],
                      "sentences": ["A woman cuts an onion.", "She fries it in a pan."]},
    "v_aaaaaaaaaa3": {"duration": 30, "timestamps": [[0, 12], [10, 30]],
                      "sentences": ["A dog runs.", "It swims after a stick."]},
}
OTHER = {"v_aaaaaaaaaa1": {"duration": 60, "timestamps": [[0, 60]], "sentences": ["A man in a park."]}}
ANSWERS = {"aaaaaaaaaa1.mp4": "0:00 - 0:20: A man walks. 0:22 - 0:40: a man walks",
           "aaaaaaaaaa2": "I do not know."}
ROWS = "video,start,end,caption\nv_aaaaaaaaaa1,0,19,A man walks.\nv_aaaaaaaaaa3,30,0,A dog runs in circles.\n"


@pytest.fixture
def files(tmp_path):
    "Predictions in three forms, and two annotators."
    write_json(tmp_path/"truth.json", TRUTH)
    write_json(tmp_path/"other.json", OTHER)
    write_json(tmp_path/"answers.json", ANSWERS)
    (tmp_path/"rows.csv").write_text(ROWS)
    layout = uniform_predictions(TRUTH, 3)
    results = {v: [{"sentence": "x", "timestamp": [e.start, e.end]} for e in o] for v, o in layout.items()}
    write_json(tmp_path/"uniform.json", {"results": results})
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def test_systems_of_any_form_in_one_table(files, tmp_path, capsys):
    systems = [files[k] for k in ("uniform", "answers", "rows")]
    how = dict(metrics="localization", out=str(tmp_path/"s.json"), per_video=str(tmp_path/"v.csv"))
    code = sail_eval([*systems, files["truth"]], **how)
    shown = capsys.readouterr()
    assert code == 1 and "answers: 1 videos have a text in which no event could be read" in shown.err
    assert "answers: scored 2 of 3 annotated videos (66.7 %); 1 of them without an event; form: answers" in (
        " ".join(shown.out.split()))
    scores = read_json(tmp_path/"s.json")
    assert list(scores) == ["uniform", "answers", "rows"]
    assert scores["rows"]["repaired"] == {"reversed times put in order": 1}
    assert scores["answers"]["facts"]["repetition"] == .5
    assert scores["answers"]["facts"]["count_error"] == 1.5
    rows = list(csv.DictReader((tmp_path/"v.csv").open()))
    assert [row["system"] for row in rows].count("uniform") == 3 and len(rows) == 7
    for name in scores:
        alone = evaluate(files[name], files["truth"], metrics="localization")
        assert alone["mean"] == scores[name]["mean"] and alone["F1_per_video"] == scores[name]["F1_per_video"]


def test_the_three_f1_are_what_they_are_called(files):
    s = evaluate(files["rows"], [files["truth"], files["other"]], metrics="localization", per_video=True)
    p, r = (np.array([o[k] for o in s["per_video"].values()]) for k in ("Precision", "Recall"))
    each = np.divide(2 * p * r, p + r, out=np.zeros_like(p), where=p + r > 0)
    assert s["F1_per_video"] == pytest.approx(each.mean())
    assert s["F1_harmonic_of_means"] == pytest.approx(2 * p.mean() * r.mean() / (p.mean() + r.mean()))
    assert len({round(x, 6) for x in (each.mean(), s["F1_harmonic_of_means"])}) == 2


def test_facts_of_a_made_up_answer():
    walk = [Event(0, 20, "A man walks."), Event(10, 30, "a man walks"), Event(50, 60, "")]
    answer = {"v_aaaaaaaaaa1": walk}
    facts = evaluate(answer, TRUTH, metrics="localization")["facts"]
    assert facts["events_per_video"] == 3 and facts["annotated_per_video"] == 3 and facts["count_error"] == 0
    assert facts["repetition"] == .5 and facts["covered"] == pytest.approx(40 / 60)
    assert evaluate(answer, {"v_aaaaaaaaaa1": {**TRUTH["v_aaaaaaaaaa1"], "duration": None}},
                    metrics="localization")["facts"]["covered"] is None


def test_events_beyond_the_end_are_counted():
    late = {"v_aaaaaaaaaa3": [Event(0, 12, "a"), Event(10, 40, "b"), Event(50, 60, "c")]}
    s = evaluate(late, TRUTH, metrics="localization")
    assert s["facts"]["beyond_end"] == 2 and measure(s, "beyond the end") == 2


def test_one_system_does_not_stop_the_others(files, tmp_path, capsys):
    (tmp_path/"torn.json").write_text("{")
    write_json(tmp_path/"zebra.json", {"zebra": [{"sentence": "a", "timestamp": [0, 1]}]})
    systems = [files["rows"], str(tmp_path/"torn.json"), str(tmp_path/"zebra.json")]
    assert sail_eval([*systems, files["truth"]], metrics="localization") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "torn: not scored" in line and "not JSON at line 1" in line]
    assert [line for line in lines if "zebra: not scored" in line and "none of zebra is a name of" in line]


@pytest.mark.parametrize("how, words", [
    (dict(metrics="METOR"), "metrics: 'METOR' is not one of METEOR, CIDEr, ROUGE_L, BLEU, localization"),
    (dict(metrics="METOR"), "did you mean METEOR?"),
    (dict(bootstrap=0), "--bootstrap 0: must be a whole number from 1"),
    (dict(format="Vid2Seq"), "form='Vid2Seq': is not one of ActivityNet"),
    (dict(features="nowhere"), "nowhere: is not a feature store"),
    (dict(out="/proc/none/s.json"), "/proc/none/s.json: cannot be written"),
])
def test_wrong_options_are_one_sentence(files, capsys, how, words):
    with pytest.raises(SystemExit) as e: sail_eval([files["rows"], files["truth"]], **how)
    message = capsys.readouterr().err.strip()
    assert e.value.code == 2 and words in message and "\n" not in message


def test_metrics_in_any_spelling(files):
    named = evaluate(files["rows"], files["truth"], metrics=["LOCALIZATION"])
    assert named["mean"] == evaluate(files["rows"], files["truth"], metrics="localization")["mean"]


def test_predictions_and_no_reference(files, capsys):
    with pytest.raises(SystemExit): sail_eval([files["rows"]])
    assert "give predictions, and then a reference" in capsys.readouterr().err
    with pytest.raises(InputError, match="is given twice"): system_names([files["rows"]] * 2)


# -- SODA with CIDEr

def slow_cider(hyp, ref, documents):
    "CIDEr of one pair, straight from its equation."
    def grams(text):
        words = text.split()
        return {n: [tuple(words[i:i + n]) for i in range(len(words) - n + 1)] for n in range(1, 5)}
    df = {}
    for text in documents:
        for g in {g for row in grams(text).values() for g in row}: df[g] = df.get(g, 0) + 1
    def vector(text, n):
        row = grams(text)[n]
        def idf(g): return math.log(len(documents)) - math.log(max(1, df.get(g, 0)))
        return {g: row.count(g) * idf(g) for g in set(row)}
    total = 0.
    for n in range(1, 5):
        a, b = vector(hyp, n), vector(ref, n)
        norm = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
        dot = sum(min(a[g], b[g]) * b[g] for g in a if g in b)
        total += dot / norm if norm else 0.
    delta = max(0, len(hyp.split()) - 1) - max(0, len(ref.split()) - 1)
    return 10 * total / 4 * math.exp(-delta**2 / 72)


@needs_java
def test_soda_with_cider_against_its_equation():
    told = ["A man walks.", "He fries it in a pan."]
    answer = {v: [Event(*t, c) for t, c in zip(o["timestamps"], told)] for v, o in TRUTH.items()}
    found = evaluate(answer, TRUTH, metrics="soda-cider", per_video=True)
    texts = [c for o in TRUTH.values() for c in o["sentences"]] + told
    plain = dict(zip(texts, tokenize(texts)))
    documents = [plain[c] for o in TRUTH.values() for c in o["sentences"]]
    for v, o in TRUTH.items():
        refs = list(zip(o["timestamps"], o["sentences"]))
        best = np.zeros((len(answer[v]) + 1, len(refs) + 1))
        for i, e in enumerate(answer[v]):
            for j, ((s, t), c) in enumerate(refs):
                inter = max(0, min(e.end, t) - max(e.start, s))
                iou = inter / (min(max(e.end, t) - min(e.start, s), e.duration + t - s) + 1e-8)
                gain = iou * slow_cider(plain[e.caption], plain[c], documents)
                best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + gain)
        p = best[-1, -1] / len(answer[v])
        r = best[-1, -1] / len(refs)
        expected = 2 * p * r / (p + r) if p + r else 0
        assert found["per_video"][v]["soda_cider"] == pytest.approx(expected, abs=1e-9)


# -- intervals

def made_up(seed, V=300, shift=0.):
    rng = np.random.default_rng(seed)
    return {f"v{i}": {"Precision": p, "Recall": r, "F1": 0., "METEOR": m + shift}
            for i, (p, r, m) in enumerate(rng.uniform(0, 1, (V, 3)))}


def test_intervals_are_those_of_the_normal_law():
    rows = made_up(0)
    x = np.array([o["METEOR"] for o in rows.values()])
    low, high = bootstrap({"a": {"per_video": rows}}, 4000)["intervals"]["a"]["METEOR"]
    normal = x.mean() + 1.96 * x.std() / math.sqrt(300) * np.array([-1, 1])
    assert [low, high] == pytest.approx(normal, abs=2e-3)


def test_differences_are_paired():
    "A constant gain has no width, however different the videos are; F1 is the one of means."
    results = {"a": {"per_video": made_up(0)}, "b": {"per_video": made_up(0, shift=.1)}}
    found = bootstrap(results, 200, seed=5)
    assert found["differences"]["b"]["METEOR"] == pytest.approx([.1, .1, .1])
    assert found["differences"]["b"]["F1"] == [0., 0., 0.]
    assert found == bootstrap(results, 200, seed=5) and found["seed"] == 5
    assert found["intervals"] != bootstrap(results, 200, seed=6)["intervals"]


def test_systems_without_a_common_video():
    results = {"a": {"per_video": made_up(0, 5)}, "b": {"per_video": {"w": made_up(0, 1)["v0"]}}}
    assert bootstrap(results, 20)["differences"] == {"b": {}}


def test_intervals_are_printed_and_kept(files, tmp_path, capsys):
    how = dict(metrics="localization", bootstrap=50, out=str(tmp_path/"s.json"))
    assert sail_eval([files["uniform"], files["rows"], files["truth"]], **how) == 0
    assert "minus uniform" in capsys.readouterr().out
    scores = json.loads((tmp_path/"s.json").read_text())
    assert scores["rows"]["bootstrap"]["n"] == 50 and len(scores["rows"]["difference_to_first"]["F1"]) == 3
    assert scores["uniform"]["difference_to_first"] is None


# -- frames

def test_frames_are_looked_at(tmp_path, files):
    "CLIPScore against its equation, with an encoder of two directions."
    import torch

    from sail_nbdev.store import FeatureStore
    store = FeatureStore.create(tmp_path/"features", model="tiny", dim=2, fps=1.0)
    frames = np.tile(np.array([[1., 0.]], np.float32), (60, 1))
    frames[30:] = [.6, .8]
    store.add("v_aaaaaaaaaa1", frames)
    class Towers:
        def texts(self, sentences, batch_size=32): return torch.tensor([[1., 0.]] * len(sentences))
    write_json(tmp_path/"p.json", {"v_aaaaaaaaaa1": [{"start": 0, "end": 28, "text": "a"},
                                                     {"start": 32, "end": 60, "text": "b"}]})
    looks = (store, Towers())
    scores = judge({"p": str(tmp_path/"p.json")}, [files["truth"]], {}, "localization", looks=looks)
    assert scores["p"]["semantic"]["clip_score"] == pytest.approx(2.5 * (1 + .6) / 2, abs=1e-3)
    assert comparison_rows(scores)["CLIPScore"][0] == pytest.approx(2., abs=1e-3)
    assert scores_json(scores)["semantic"]["matched"] > 0


def test_scores_of_words_load_no_encoder():
    "Libraries of encoders and language models take seconds; without --features nobody needs them."
    program = "import sail_nbdev.judge, sys; print({'transformers', 'open_clip'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_features_without_a_text_tower_are_refused(tmp_path, files, capsys):
    from sail_nbdev.store import FeatureStore
    FeatureStore.create(tmp_path/"features", model="c3d", dim=2, fps=1.0, text_tower=False)
    asked = [files["rows"], files["truth"]]
    with pytest.raises(SystemExit): sail_eval(asked, features=str(tmp_path/"features"))
    assert "was made by c3d, which has no text tower" in capsys.readouterr().err


def test_an_annotator_among_the_systems_is_named(files, capsys):
    sail_eval([files["rows"], files["other"], files["truth"]], metrics="localization")
    assert "other: is an annotation file, and was scored as a system; further annotators go behind --ref" in (
        capsys.readouterr().err)
