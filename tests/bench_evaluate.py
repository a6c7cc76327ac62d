"""All scores by `evaluate`, beside the scorers of pycocoevalcap as the published programs call them: the tokenizer started for each scorer at each threshold,
one video at a time, METEOR asked for one caption at a time, and again for SODA. The 200 videos of the reference case, or `bench_evaluate.py full` for all 4,885 (minutes)."""
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
from sail_nbdev.evaluate import evaluate, find_java, interval_iou, soda_table

TIOUS = (.3, .5, .7, .9)
CASE = Path(__file__).resolve().parents[2]/"shared"/"data"/"eval"


def made_up(n=40):
    "A few videos where the reference case is not at hand."
    rng, words = random.Random(0), "a man woman dog runs sits jumps plays in on the park room guitar ball while another watches".split()
    def say(): return " ".join(rng.choices(words, k=rng.randint(6, 14))).capitalize() + "."
    def spans(k): return [sorted((rng.uniform(0, 100), rng.uniform(0, 100))) for _ in range(k)]
    def annotate(): return {f"v{i}": {"duration": 100, "timestamps": spans(4), "sentences": [say() for _ in range(4)]} for i in range(n)}
    return {f"v{i}": [{"sentence": say(), "timestamp": t} for t in spans(4)] for i in range(n)}, [annotate(), annotate()]


@contextlib.contextmanager
def quiet():
    "Without what Java programs say of themselves."
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere: os.dup2(nowhere.fileno(), 2)
    try: yield
    finally: os.dup2(kept, 2); os.close(kept)


def tokens(sentences):
    with quiet(): return [o[0] for o in PTBTokenizer().tokenize({i: [{"caption": s}] for i, s in enumerate(sentences)}).values()]


def plain_scorer(score, hyps, refs, rows):
    hyps, refs, by_video = tokens(hyps), tokens(refs), {}
    for i, v in enumerate(rows): by_video.setdefault(v, []).append(i)
    with contextlib.redirect_stdout(io.StringIO()):
        return np.mean([score({i: [refs[i]] for i in index}, {i: [hyps[i]] for i in index}) for index in by_video.values()])


SCORERS = (lambda gts, res: METEOR.compute_score(gts, res)[0], lambda gts, res: Cider().compute_score(gts, res)[0],
           lambda gts, res: Rouge().compute_score(gts, res)[0], lambda gts, res: Bleu(4).compute_score(gts, res)[0][3])


def plain_captions(predictions, references):
    "Means over videos and thresholds of METEOR, CIDEr, ROUGE-L and BLEU-4."
    by_tiou = []
    for t in TIOUS:
        hyps, refs, rows = [], [], []
        for v, events in predictions.items():
            for p in events:
                near = [s for r in references if v in r for span, s in zip(r[v]["timestamps"], r[v]["sentences"]) if interval_iou(p["timestamp"], span) >= t]
                for s in near or ["qwertyuiopasdf"]:
                    hyps.append(p["sentence"]); refs.append(s); rows.append(v)
        by_tiou.append([plain_scorer(score, hyps, refs, rows) for score in SCORERS])
    return np.mean(by_tiou, 0)


def plain_soda(predictions, references):
    "SODA_c, one call of METEOR for each pair of captions of a video."
    annotators = []
    for r in references:
        videos, per_video = [v for v in predictions if v in r], []
        said = [[(o["timestamp"], o["sentence"]) for o in predictions[v]] for v in videos]
        told = [list(zip(r[v]["timestamps"], r[v]["sentences"])) for v in videos]
        words = iter(tokens([s for rows in said + told for _, s in rows]))
        said, told = [[sorted([(t, next(words)) for t, _ in rows], key=lambda o: o[0][0]) for rows in side] for side in (said, told)]
        for p, g in zip(said, told):
            if not p: per_video.append(0.); continue
            s = np.array([[interval_iou(a, b) * METEOR.compute_score({0: [h]}, {0: [t]})[0] for b, t in g] for a, h in p])
            best = soda_table(s)[-1, -1]
            precision, recall = best / len(p), best / len(g)
            per_video.append(2 * precision * recall / (precision + recall) if best else 0.)
        annotators.append(np.mean(per_video))
    return np.mean(annotators)


if __name__ == "__main__":
    java = find_java()
    if java is None: raise SystemExit("no Java on this machine")
    os.environ["PATH"] = f"{Path(java).parent}{os.pathsep}{os.environ['PATH']}"
    name = "anetfull" if sys.argv[1:] == ["full"] else "anet200"
    refs = [CASE.parent/"annotations"/f"anet_val_{k}.json" for k in (1, 2)] if name == "anetfull" else [CASE/f"anet200_ref{k}.json" for k in (1, 2)]
    predictions, references = (read_json(CASE/f"{name}_pred.json"), [read_json(r) for r in refs]) if CASE.exists() else made_up()
    predictions = predictions.get("results", predictions)
    start = time.perf_counter()
    found = evaluate(predictions, references)
    fast = time.perf_counter() - start
    start = time.perf_counter()
    METEOR = Meteor()
    wanted = dict(zip(("METEOR", "CIDEr", "Rouge-L", "Bleu_4"), plain_captions(predictions, references)))
    soda = plain_soda(predictions, references)
    slow = time.perf_counter() - start
    for k, v in wanted.items(): assert abs(found["mean"][k] - v) < 1e-5, (k, found["mean"][k], v)         # in one file a sentence can change how the next one's abbreviation is read
    assert abs(found["soda_c"] - soda) < 1e-5, (found["soda_c"], soda)
    print(f"all scores of {len(predictions)} videos{f' ({name})' if CASE.exists() else ', made up'}: one at a time {slow:.1f} s, evaluate {fast:.1f} s, ratio {slow / fast:.1f}")
