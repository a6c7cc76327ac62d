"""All scores by `evaluate`, beside the scorers of pycocoevalcap as the published programs call them: the
tokenizer started for each scorer at each threshold, one video at a time, METEOR asked for one caption at
a time, and again for SODA. Forty made-up videos, or the cases in the folder that SAIL_EVAL_CASES names:
the 200 videos of one, or with `bench_evaluate.py full` all 4,885 (minutes)."""
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
from sail_nbdev.evaluate import evaluate, interval_iou, soda_table
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
    "Without what Java programs say of themselves."
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def tokens(sentences):
    asked = {i: [{"caption": s}] for i, s in enumerate(sentences)}
    with quiet():
        return [o[0] for o in PTBTokenizer().tokenize(asked).values()]


def plain_scorer(score, hyps, refs, rows):
    "The mean over videos of a scorer that is asked for one video at a time."
    hyps = tokens(hyps)
    refs = tokens(refs)
    by_video = {}
    for i, v in enumerate(rows):
        by_video.setdefault(v, []).append(i)
    def of(index): return score({i: [refs[i]] for i in index}, {i: [hyps[i]] for i in index})
    with contextlib.redirect_stdout(io.StringIO()):
        return np.mean([of(index) for index in by_video.values()])


def scorers(meteor):
    return {"METEOR": lambda gts, res: meteor.compute_score(gts, res)[0],
            "CIDEr": lambda gts, res: Cider().compute_score(gts, res)[0],
            "Rouge-L": lambda gts, res: Rouge().compute_score(gts, res)[0],
            "Bleu_4": lambda gts, res: Bleu(4).compute_score(gts, res)[0][3]}


def matched(predictions, references, tiou):
    "(video, predicted caption, annotated caption) of every pair that overlaps by the threshold."
    for v, events in predictions.items():
        known = [r[v] for r in references if v in r]
        for p in events:
            pairs = [(t, s) for o in known for t, s in zip(o["timestamps"], o["sentences"])]
            near = [s for t, s in pairs if interval_iou(p["timestamp"], t) >= tiou]
            for s in near or ["qwertyuiopasdf"]:
                yield v, p["sentence"], s


def plain_captions(predictions, references, meteor):
    "Means over videos and thresholds of METEOR, CIDEr, ROUGE-L and BLEU-4."
    means = {name: [] for name in scorers(meteor)}
    for tiou in TIOUS:
        rows, hyps, refs = zip(*matched(predictions, references, tiou))
        for name, score in scorers(meteor).items():
            means[name].append(plain_scorer(score, hyps, refs, rows))
    return {name: np.mean(values) for name, values in means.items()}


def tokenized(videos):
    "Lists of (time, sentence), one per video, with tokens for sentences, sorted by start."
    words = iter(tokens([s for rows in videos for _, s in rows]))
    return [sorted([(t, next(words)) for t, _ in rows], key=lambda o: o[0][0]) for rows in videos]


def plain_f(p, g, meteor):
    "SODA's F of one video and one annotator."
    if not p: return 0.
    def score(h, t): return meteor.compute_score({0: [h]}, {0: [t]})[0]
    s = np.array([[interval_iou(a, b) * score(h, t) for b, t in g] for a, h in p])
    best = soda_table(s)[-1, -1]
    precision = best / len(p)
    recall = best / len(g)
    return 2 * precision * recall / (precision + recall) if best else 0.


def plain_soda(predictions, references, meteor):
    "SODA_c, one call of METEOR for each pair of captions of a video."
    annotators = []
    for r in references:
        videos = [v for v in predictions if v in r]
        predicted = [[(o["timestamp"], o["sentence"]) for o in predictions[v]] for v in videos]
        annotated = [list(zip(r[v]["timestamps"], r[v]["sentences"])) for v in videos]
        rows = tokenized(predicted + annotated)
        pairs = zip(rows[:len(videos)], rows[len(videos):])
        annotators.append(np.mean([plain_f(p, g, meteor) for p, g in pairs]))
    return np.mean(annotators)


def main(full):
    java = find_java()
    if java is None: raise SystemExit("no Java on this machine")
    os.environ["PATH"] = f"{Path(java).parent}{os.pathsep}{os.environ['PATH']}"
    folder = os.environ.get("SAIL_EVAL_CASES")
    predictions, references = read_case(Path(folder), full) if folder else made_up()
    start = time.perf_counter()
    found = evaluate(predictions, references)
    fast = time.perf_counter() - start
    start = time.perf_counter()
    meteor = Meteor()
    wanted = plain_captions(predictions, references, meteor)
    soda = plain_soda(predictions, references, meteor)
    slow = time.perf_counter() - start
    # not closer: in one file a sentence can change how the next one's abbreviation is read
    for k, v in wanted.items():
        assert abs(found["mean"][k] - v) < 1e-5, (k, found["mean"][k], v)
    assert abs(found["soda_c"] - soda) < 1e-5, (found["soda_c"], soda)
    kind = "a scored case" if folder else "made up"
    print(f"all scores of {len(predictions)} videos ({kind}): one at a time {slow:.1f} s, "
          f"evaluate {fast:.1f} s, ratio {slow / fast:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:] == ["full"])
