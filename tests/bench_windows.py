"""Long recordings: held-out videos of a demo folder behind each other, six at a time, captioned whole and in
windows of the run's own length; beside both the uniform layout with as many events as the windows found.
`python tests/bench_windows.py DEMO`, default demo/."""
import sys
import time
from pathlib import Path

import torch

from sail_nbdev.core import Event
from sail_nbdev.data import read_annotations
from sail_nbdev.evaluate import evaluate
from sail_nbdev.localizer import uniform_layout
from sail_nbdev.masks import to_intervals
from sail_nbdev.run import Run, caption_frames
from sail_nbdev.store import open_store


def recording(store, videos):
    "Frames, length and events of videos behind each other."
    start = 0.
    events = []
    for o in videos:
        events += [Event(start + e.start, start + e.end, e.caption) for e in o.events]
        start += o.duration
    return torch.cat([store[o.id] for o in videos]), start, events


def recordings(demo, together=6):
    "`(frames, seconds, events)` of each recording."
    store = open_store(demo/"world", "features")
    truth = list(read_annotations(demo/"world"/"annotations"/"val.json", intervals=True).values())
    starts = range(0, len(truth) - together + 1, together)
    return [recording(store, truth[i:i + together]) for i in starts]


def uniform(n, duration):
    "n equal parts."
    times = to_intervals(*uniform_layout(n), duration).tolist()
    return [Event(start, end, "None.") for start, end in times]


def in_common_form(events, duration):
    stamps = [[e.start, e.end] for e in events]
    return dict(duration=duration, timestamps=stamps, sentences=[e.caption for e in events])


def f1_and_soda(predictions, references, metrics):
    scores = evaluate(predictions, [references], metrics=metrics)
    return 100 * scores["F1_harmonic_of_means"], 100 * scores.get("soda_c", float("nan"))


def ratio(a, b): return f"{a / b:.2f}" if b else "infinite"


def main(demo):
    if not (demo/"runs"/"sail"/"model.safetensors").exists():
        sys.exit(print(f"skipped: {demo} is no demo folder; make demo, or name one"))
    run = Run.load(demo, "cpu")
    made = recordings(demo)
    videos = [(frames, seconds) for frames, seconds, _ in made]
    references = {f"r{i}": in_common_form(events, seconds) for i, (_, seconds, events) in enumerate(made)}
    predictions = {}
    for name, window in (("whole", None), ("windows", run.window)):
        start = time.perf_counter()
        predictions[name] = caption_frames(videos, run.model, run.counter, window=window)
        print(f"{name:8s} {time.perf_counter() - start:.1f} s")
    rows = zip(predictions["windows"], videos)
    predictions["uniform"] = [uniform(len(events), seconds) for events, (_, seconds) in rows]
    n_true = sum(len(events) for *_, events in made)
    f1 = {}
    for name, found in predictions.items():
        metrics = ["localization"] if name == "uniform" else ["localization", "SODA_c"]
        f1[name], soda = f1_and_soda(dict(zip(references, found)), references, metrics)
        print(f"{name:8s} {sum(map(len, found)):4d} events of {n_true}, F1 {f1[name]:.2f}, SODA_c {soda:.2f}")
    mean = sum(seconds for _, seconds in videos) / len(videos)
    print(f"windows of {run.window:.0f} s against whole recordings of {mean:.0f} s: "
          f"F1 ratio {ratio(f1['windows'], f1['whole'])}, "
          f"against the uniform layout {ratio(f1['windows'], f1['uniform'])}")


if __name__ == "__main__": main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
