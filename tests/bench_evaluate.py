"""All scores by `evaluate`, beside the scorers of pycocoevalcap as the published programs call them. The
evaluator of ActivityNet: for each scorer at each threshold the tokenizer is started for the predicted
captions of all pairs and again for the annotated ones, scores are asked for one video at a time, METEOR for
one caption at a time. SODA, for each annotator: METEOR and twice the tokenizer are started, then every pair
is scored. Forty made-up videos, or the cases in the folder that SAIL_EVAL_CASES names: the 200 videos of one,
or with `bench_evaluate.py full` all 4,885 (minutes). Beside seconds on the clock, which other work on the
machine lengthens, the seconds of processors are told: of this process and of the Java programs it starts."""
import contextlib
import io
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from sail_nbdev.core import read_json
from sail_nbdev.evaluate import evaluate
from sail_nbdev.text_scores import find_java

TIOUS = (.3, .5, .7, .9)
WORDS = ("a man woman dog runs sits jumps plays in on the park room guitar ball while another "
         "watches").split()


def made_up(n=40):
    "Videos with four events each, their predictions and two annotators."
    rng = random.Random(0)
    def sentence(): return " ".join(rng.choices(WORDS, k=rng.randint(6, 14))).capitalize() + " here."
    def times(): return [sorted((rng.uniform(0, 100), rng.uniform(0, 100))) for _ in range(4)]
    def video(): return {"duration": 100, "timestamps": times(), "sentences": [sentence() for _ in range(4)]}
    predictions = {f"v{i}": [{"sentence": sentence(), "timestamp": t} for t in times()] for i in range(n)}
    return predictions, [{f"v{i}": video() for i in range(n)} for _ in range(2)]


def read_case(folder, full):
    "Predictions and both annotators of a scored case."
    name = "anetfull" if full else "anet200"
    small = [folder/"eval"/f"{name}_ref{k}.json" for k in (1, 2)]
    large = [folder/"annotations"/f"anet_val_{k}.json" for k in (1, 2)]
    predictions = read_json(folder/"eval"/f"{name}_pred.json")
    return predictions.get("results", predictions), [read_json(p) for p in (large if full else small)]


@contextlib.contextmanager
def quiet():
    "Without what scorers print and what Java programs say of themselves."
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(io.StringIO()):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def overlap(a, b):
    "Temporal IoU of two intervals, in plain Python as the published programs compute it."
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return inter / (min(hull, a[1] - a[0] + b[1] - b[0]) + 1e-8)


def plain_localization(predictions, references, tiou):
    "Means over videos of precision and recall, each of the better annotator."
    rows = []
    for v, events in predictions.items():
        found = []
        for r in references:
            if v not in r: continue
            times = r[v]["timestamps"]
            hits = [(i, j) for i, p in enumerate(events) for j, t in enumerate(times)
                    if overlap(p["timestamp"], t) > tiou]
            shares = [len(set(side)) / n for side, n in zip(zip(*hits), (len(events), len(times)))]
            found.append(shares or [0, 0])
        rows.append([max(side) for side in zip(*found)])
    return np.mean(rows, 0)


def matched(predictions, references, tiou):
    "(video, predicted caption, annotated caption) of every pair that overlaps by the threshold."
    for v, events in predictions.items():
        known = [r[v] for r in references if v in r]
        for p in events:
            near = [s for o in known for t, s in zip(o["timestamps"], o["sentences"])
                    if overlap(p["timestamp"], t) >= tiou]
            for s in near or ["qwertyuiopasdf"]:
                yield v, p["sentence"], s


def tokens(sentences):
    "One start of the tokenizer: the tokens of each sentence as the scorers take them."
    return PTBTokenizer().tokenize({i: [{"caption": s}] for i, s in enumerate(sentences)})


def plain_scorer(score, hyps, refs, rows):
    "The mean over videos of a scorer that is asked for one video at a time."
    hyps = tokens(hyps)
    refs = tokens(refs)
    by_video = {}
    for i, v in enumerate(rows): by_video.setdefault(v, []).append(i)
    def of(index): return score({i: refs[i] for i in index}, {i: hyps[i] for i in index})
    return np.mean([of(index) for index in by_video.values()])


def plain_captions(predictions, references):
    "Means over videos and thresholds of METEOR, CIDEr, ROUGE-L, BLEU-4, recall and precision."
    meteor = Meteor()
    scorers = {"METEOR": lambda gts, res: meteor.compute_score(gts, res)[0],
               "CIDEr": lambda gts, res: Cider().compute_score(gts, res)[0],
               "Rouge-L": lambda gts, res: Rouge().compute_score(gts, res)[0],
               "Bleu_4": lambda gts, res: Bleu(4).compute_score(gts, res)[0][3]}
    means = {name: [] for name in (*scorers, "Precision", "Recall")}
    for tiou in TIOUS:
        rows, hyps, refs = zip(*matched(predictions, references, tiou))
        for name, score in scorers.items(): means[name].append(plain_scorer(score, hyps, refs, rows))
        for name, x in zip(("Precision", "Recall"), plain_localization(predictions, references, tiou)):
            means[name].append(x)
    return {name: np.mean(values) for name, values in means.items()}


def by_start(times, sentences): return sorted(zip(times, sentences), key=lambda o: o[0][0])


def tokenized(videos):
    "Lists of (time, sentence), one per video, with tokens for sentences; one start of the tokenizer."
    words = iter(tokens([s for rows in videos for _, s in rows]).values())
    return [[(t, next(words)) for t, _ in rows] for rows in videos]


def best_total(scores):
    "The total of the best order-preserving matching, cell by cell."
    above = [0.] * (len(scores[0]) + 1)
    for row in scores:
        best = [0.]
        for j, s in enumerate(row): best.append(max(above[j + 1], best[j], above[j] + s))
        above = best
    return above[-1]


def plain_f(p, g, meteor):
    "SODA's F of one video and one annotator: METEOR is asked for each annotated caption with all predicted."
    if not p: return 0.
    texts = {i: h for i, (_, h) in enumerate(p)}
    meteors = [meteor.compute_score(texts, {i: t for i in texts})[1] for _, t in g]
    best = best_total([[overlap(a, b) * m for (a, _), m in zip(p, row)] for (b, _), row in zip(g, meteors)])
    precision = best / len(p)
    recall = best / len(g)
    return 2 * precision * recall / (precision + recall) if best else 0.


def plain_soda(predictions, reference):
    "SODA_c against one annotator, with a METEOR and two starts of the tokenizer of its own."
    meteor = Meteor()
    videos = [v for v in predictions if v in reference]
    predicted = [by_start(*zip(*((o["timestamp"], o["sentence"]) for o in predictions[v])))
                 if predictions[v] else [] for v in videos]
    annotated = [by_start(reference[v]["timestamps"], reference[v]["sentences"]) for v in videos]
    return np.mean([plain_f(p, g, meteor) for p, g in zip(tokenized(predicted), tokenized(annotated))])


def plain(predictions, references):
    "All scores as the published programs come to them."
    with quiet():
        means = plain_captions(predictions, references)
        return means | {"soda_c": np.mean([plain_soda(predictions, r) for r in references])}


def timed(work, *args):
    "What `work` returns, its seconds on the clock, and those of processors, ended child processes included."
    start = time.perf_counter()
    before = sum(os.times()[:4])
    found = work(*args)
    return found, time.perf_counter() - start, sum(os.times()[:4]) - before


def main(full):
    java = find_java()
    if java is None: raise SystemExit("no Java on this machine")
    os.environ["PATH"] = f"{Path(java).parent}{os.pathsep}{os.environ['PATH']}"
    folder = os.environ.get("SAIL_EVAL_CASES")
    predictions, references = read_case(Path(folder), full) if folder else made_up()
    found, fast, fast_cpu = timed(evaluate, predictions, references)
    wanted, slow, slow_cpu = timed(plain, predictions, references)
    # not closer: in one file a sentence can change how the next one's abbreviation is read
    for k, v in wanted.items():
        ours = found["soda_c"] if k == "soda_c" else found["mean"][k]
        assert abs(ours - v) < 1e-5, (k, ours, v)
    kind = "a scored case" if folder else "made up"
    print(f"all scores of {len(predictions)} videos ({kind}): published way {slow:.1f} s, "
          f"evaluate {fast:.1f} s, ratio {slow / fast:.1f}; "
          f"seconds of processors {slow_cpu:.1f} and {fast_cpu:.1f}, ratio {slow_cpu / fast_cpu:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:] == ["full"])
