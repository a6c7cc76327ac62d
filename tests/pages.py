"A small folder of the shape that `sail_demo` writes, and pages read as a browser reads them."
import contextlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip

from sail_nbdev.config import Config

EVIL = '</script><b onclick="x()">A ball & "it" rolls.</b><img src=http://example.com/x>'


# -- the folder: tiny real videos, invented predictions and scores

def write_video(path, seconds, color, fps=4):
    "A square that crosses a grey picture."
    frames = np.full((int(seconds * fps), 64, 96, 3), 100, np.uint8)
    for i, f in enumerate(frames):
        x = int(76 * i / len(frames))
        f[20:40, x:x + 20] = color
    write_clip(path, frames, rate=fps, crf="30", preset="veryfast")


def spans(rng, n, seconds, noise):
    "Times [start, end] of n events that do not overlap."
    edges = np.linspace(.02, .97, 2 * n) + rng.normal(0, noise / n, 2 * n)
    edges = np.sort(edges.clip(0, 1)) * seconds
    return [[round(float(a), 2), round(float(b), 2)] for a, b in zip(edges[::2], edges[1::2])]


def layout(n, seconds):
    return [[i * seconds / n, (i + 1) * seconds / n] for i in range(n)]


def results(truth, rng, noise, evil):
    "Predictions of a method; with noise None those of the uniform layout."
    found = {}
    for vid, v in truth.items():
        d = v["duration"]
        n = max(1, len(v["timestamps"]) + int(rng.integers(-1, 2)))
        times = layout(n, d) if noise is None else spans(rng, n, d, noise)
        colors = "red blue green yellow black white".split()
        captions = [f"A small {c} ball rolls to the left." for c in colors]
        if evil: captions[0] = EVIL
        found[vid] = [{"sentence": c, "timestamp": [round(s, 3), round(e, 3)],
                       "center": (s + e) / 2 / d, "width": (e - s) / d} for (s, e), c in zip(times, captions)]
    return {"results": found}


def scores(shift):
    mean = {"METEOR": .12, "CIDEr": .51, "Rouge-L": .22, "Bleu_1": .3, "Bleu_2": .2, "Bleu_3": .15,
            "Bleu_4": .08, "Recall": .5, "Precision": .52, "F1": .505}
    mean = {k: v + shift for k, v in mean.items()}
    per_tiou = {k: [v + .1, v, v, v - .05] for k, v in mean.items()}
    return {"per_tiou": per_tiou, "mean": mean, "F1_harmonic_of_means": .51 + shift, "soda_c": .07 + shift}


def log(sail):
    "Rows of three epochs of four steps in each stage."
    for k in range(24):
        stage, step = divmod(k, 12)
        row = {"stage": stage + 1, "epoch": step // 4, "step": k, "lr": 1e-3, "total": 4 / (1 + step / 4)}
        second = {"pos": 1., "neg": 2., "div": .1} | ({"sim": .2, "aug": .9} if sail else {})
        yield row | (second if stage else {"full": row["total"]})


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def put_run(folder, name, mask="gaussian"):
    "A run folder with predictions; its command holds markup."
    run = folder/"runs"/name
    config = Config.preset("toy", "sail" if name == "sail" else "ilcacm", {"localizer.mask": mask})
    put(run/"config.json", config.model_dump(mode="json"))
    put(run/"run.json", {"seed": 42, "command": ["sail_demo", "--out", EVIL], "versions": {"torch": "2.14.1"},
                         "data": str(folder/"world")})
    put(run/"predictions.json", json.loads((folder/"predictions"/f"{name}.json").read_text()))
    (run/"log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log(name == "sail")))


def make_demo(folder, n_videos=3, seed=0):
    "Write the folder; return its annotations."
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    (folder/"world"/"videos").mkdir(parents=True)
    truth = {}
    for i in range(n_videos):
        vid = f"val_{i + 1:04d}"
        n = 2 + i % 4
        color = ((220, 40, 40), (40, 80, 220), (40, 180, 60))[i % 3]
        write_video(folder/"world"/"videos"/f"{vid}.mp4", 8 + 2 * i, color)
        sentences = [f"A large {c} square enters." for c in "red blue green yellow black".split()[:n]]
        times = spans(rng, n, 8. + 2 * i, .1)
        truth[vid] = {"duration": 8. + 2 * i, "timestamps": times, "sentences": sentences}
    put(folder/"world"/"annotations"/"val.json", truth)
    put(folder/"world"/"world.json", {"seed": seed, "n_train": 600, "n_val": n_videos, "noise": .1})
    summary = {"provenance": "rules, no language model", "kept": 41, "dropped": 3}
    put(folder/"world"/"synthetic.summary.json", summary)
    put(folder/"scores.json", {"uniform": scores(.02), "ilcacm": scores(-.03), "sail": scores(0.)})
    for name, noise in {"uniform": None, "ilcacm": .35, "sail": .2}.items():
        put(folder/"predictions"/f"{name}.json", results(truth, rng, noise, name == "sail"))
    for name in ("sail", "ilcacm"):
        put_run(folder, name)
    return truth


# -- reading a page as a browser does

class Page(HTMLParser):
    "Collects elements with their attributes, and text outside of style and script."
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements = []
        self.texts = []
        self._inside = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self._inside): self.texts.append(data)

    def all(self, tag=None, **wanted):
        "The attributes of all elements of a tag that have these values."
        wanted = {k.rstrip("_"): v for k, v in wanted.items()}
        return [a for t, a in self.elements if tag in (None, t) and wanted.items() <= a.items()]


LINKS = ("src", "href", "srcset", "data", "poster", "action", "xlink:href")


def check_self_contained(text):
    "Nothing is asked of another place, and the only script is ours. Returns the `Page`."
    page = Page(text)
    for tag, attrs in page.elements:
        for k in LINKS:
            assert attrs.get(k, "#").startswith(("data:", "#")), (tag, k, attrs[k][:80])
        assert not [k for k in attrs if k.startswith("on")], (tag, attrs)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    css = "".join(re.findall(r"<style>(.*?)</style>", text, re.S))
    css += "".join(a.get("style") or "" for _, a in page.elements)
    assert "url(" not in css and "@import" not in css
    scripts = page.all("script")
    assert len(scripts) == 1 and "src" not in scripts[0]
    return page


def check_escaped(text):
    "The markup of `EVIL` is text."
    page = Page(text)
    assert not page.all("b", onclick="x()") and not page.all("img", src="http://example.com/x"), text[:200]
    values = [v or "" for _, attrs in page.elements for v in attrs.values()]
    assert any(EVIL in text for text in page.texts + values)
    return page


# -- a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def headless():
    "A headless Chromium, playwright's own or that of the machine; the tests are skipped where there is none."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    with sync_api.sync_playwright() as p:
        own = p.chromium.executable_path
        path = own if Path(own).is_file() else next(filter(None, map(shutil.which, BROWSERS)), None)
        if path is None: pytest.skip("no Chromium here; `playwright install chromium` brings one")
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
