"""Long recordings: held-out videos of a demo folder behind each other, six at a time, captioned whole and in windows of the run's own length; beside both the uniform layout with as many events as the windows found.
`python tests/bench_windows.py DEMO`, default demo/."""
import sys
import time
from pathlib import Path

import torch

from sail_nbdev.core import read_json
from sail_nbdev.data import read_annotations
from sail_nbdev.evaluate import evaluate
from sail_nbdev.features import FeatureStore
from sail_nbdev.masks import to_intervals, uniform_layout
from sail_nbdev.predict import caption_frames, load_run


def recordings(demo, together=6):
    "Frames and length of each recording, and what is true of it."
    store, truth = FeatureStore(demo/"world"/"features"), read_annotations(demo/"world"/"annotations"/"val.json", intervals=True)
    ids, videos, references = list(truth), [], {}
    for g in range(0, len(ids) - together + 1, together):
        some, start, rows = [truth[v] for v in ids[g:g + together]], 0., []
        for o in some:
            rows += [([s + start, e + start], c) for (s, e), c in zip(o.intervals, o.captions)]
            start += o.duration
        videos.append((torch.cat([torch.as_tensor(store[o.id]) for o in some]), start))
        references[f"r{g}"] = dict(duration=start, timestamps=[t for t, _ in rows], sentences=[c for _, c in rows])
    return videos, references


def uniform(n, duration): return [dict(sentence="None.", timestamp=t) for t in to_intervals(*uniform_layout(n), duration).tolist()]


if __name__ == "__main__":
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    if not (demo/"runs"/"sail"/"model.safetensors").exists(): sys.exit(print(f"skipped: {demo} is no demo folder; make demo, or name one"))
    (model, counter, _), window = load_run(demo, "cpu"), read_json(demo/"runs"/"sail"/"encoder.json").get("window")
    if not window: sys.exit(print(f"skipped: {demo} was made before runs knew how long their videos were; make it again"))
    videos, references = recordings(demo)
    found, took = {}, {}
    for name, w in (("whole", None), ("windows", window)):
        start = time.perf_counter()
        found[name] = caption_frames(videos, model, counter, window=w)
        took[name] = time.perf_counter() - start
    found["uniform"] = [uniform(len(rows), d) for rows, (_, d) in zip(found["windows"], videos)]
    n_true = sum(len(r["sentences"]) for r in references.values())
    f1 = {}
    for name, rows in found.items():
        metrics = ["localization"] if name == "uniform" else ["localization", "SODA_c"]
        s = evaluate({"results": dict(zip(references, rows))}, [references], metrics=metrics)
        f1[name] = 100 * s["F1_harmonic_of_means"]
        print(f"{name:8s} {sum(map(len, rows)):4d} events of {n_true}, F1 {f1[name]:.2f}" + (f", SODA_c {100 * s['soda_c']:.2f}, {took[name]:.1f} s" if name in took else ""))
    print(f"windows of {window:.0f} s against whole recordings of {sum(d for _, d in videos) / len(videos):.0f} s: F1 ratio {f1['windows'] / f1['whole']:.2f}, against the uniform layout {f1['windows'] / f1['uniform']:.2f}")
