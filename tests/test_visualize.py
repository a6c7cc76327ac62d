"The exports, the player and the report, on a small folder of the shape that `sail_demo` writes: tiny real videos, invented predictions and scores."
import base64, json, os, re, subprocess, sys, time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sail_nbdev.core import Config, Event, InputError
from sail_nbdev.predict import events_subtitles, html_page, player_fragment, player_html, read_events, video_source, write_events
from sail_nbdev.visualize import EventExplorer, Material, findings, make_report, pick_videos, read_material, report_html, score_table

EVIL = '</script><b onclick="x()">A ball & "it" rolls.</b><img src=http://example.com/x>'
EXPECTED = Path(__file__).parents[2]/"shared"/"data"/"eval"/"expected"/"anet200.json"


# -- the folder

def write_video(path, seconds, color, fps=4):
    import av
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=fps, options={"crf": "30", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        n = int(seconds * fps)
        for i in range(n):
            frame = np.full((64, 96, 3), 100, np.uint8)
            x = int(76 * i / n)
            frame[20:40, x:x + 20] = color
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())

def spans(rng, n, seconds, noise):
    edges = np.linspace(.02, .97, 2 * n) + rng.normal(0, noise / n, 2 * n)
    edges = np.sort(edges.clip(0, 1)) * seconds
    return [[round(float(a), 2), round(float(b), 2)] for a, b in zip(edges[::2], edges[1::2])]

def results(truth, rng, noise, evil):
    out = {}
    for vid, v in truth.items():
        d, n = v["duration"], max(1, len(v["timestamps"]) + int(rng.integers(-1, 2)))
        where = [[i * d / n, (i + 1) * d / n] for i in range(n)] if noise is None else spans(rng, n, d, noise)
        out[vid] = [{"sentence": EVIL if evil and i == 0 else f"A small {c} ball rolls to the left.", "timestamp": [round(s, 3), round(e, 3)], "center": (s + e) / 2 / d, "width": (e - s) / d}
                    for i, ((s, e), c) in enumerate(zip(where, "red blue green yellow black white".split()))]
    return {"results": out}

def scores(shift):
    mean = {k: v + shift for k, v in {"METEOR": .12, "CIDEr": .51, "Rouge-L": .22, "Bleu_1": .3, "Bleu_2": .2, "Bleu_3": .15, "Bleu_4": .08, "Recall": .5, "Precision": .52, "F1": .505}.items()}
    return {"per_tiou": {k: [v + .1, v, v, v - .05] for k, v in mean.items()}, "mean": mean, "F1_harmonic_of_means": .51 + shift, "soda_c": .07 + shift}

def log(sail):
    for stage in (1, 2):
        for e in range(3):
            for s in range(4):
                row = {"stage": stage, "epoch": e, "step": 12 * (stage - 1) + 4 * e + s, "lr": 1e-3, "total": 4 / (1 + e + s / 4)}
                yield row | ({"full": row["total"]} if stage == 1 else {"pos": 1., "neg": 2., "div": .1} | ({"sim": .2, "aug": .9} if sail else {}))

def make_demo(folder, n_videos=3, seed=0):
    "Write the folder; return its annotations."
    from dataclasses import asdict
    folder, rng, truth = Path(folder), np.random.default_rng(seed), {}
    def put(path, value):
        (folder/path).parent.mkdir(parents=True, exist_ok=True)
        (folder/path).write_text(json.dumps(value))
    (folder/"world"/"videos").mkdir(parents=True)
    for i in range(n_videos):
        vid, d, n = f"val_{i + 1:04d}", 8. + 2 * i, 2 + i % 4
        write_video(folder/"world"/"videos"/f"{vid}.mp4", d, ((220, 40, 40), (40, 80, 220), (40, 180, 60))[i % 3])
        truth[vid] = {"duration": d, "timestamps": spans(rng, n, d, .1), "sentences": [f"A large {c} square enters." for c in "red blue green yellow black".split()[:n]]}
    put("world/annotations/val.json", truth)
    put("world/world.json", {"seed": seed, "n_train": 600, "n_val": n_videos, "noise": .1})
    put("world/synthetic.summary.json", {"provenance": "rules, no language model", "kept": 41, "dropped": 3})
    put("scores.json", {"uniform": scores(.02), "ilcacm": scores(-.03), "sail": scores(0.)})
    for name, noise in {"uniform": None, "ilcacm": .35, "sail": .2}.items(): put(f"predictions/{name}.json", results(truth, rng, noise, name == "sail"))
    for name in ("sail", "ilcacm"):
        put(f"runs/{name}/config.json", asdict(Config.preset("toy", method=name)))
        put(f"runs/{name}/run.json", {"seed": 42, "command": ["sail_demo", "--out", EVIL], "versions": {"torch": "2.14.1"}, "data": str(folder/"world")})
        put(f"runs/{name}/predictions.json", json.loads((folder/f"predictions/{name}.json").read_text()))
        (folder/f"runs/{name}/log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log(name == "sail")))
    return truth

@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")/"demo"
    return folder, make_demo(folder)

@pytest.fixture(scope="module")
def page(demo):
    out = make_report(demo[0], demo[0].parent/"report.html")
    return out.read_text(encoding="utf-8")


# -- reading a page as a browser does

class Page(HTMLParser):
    "Collects elements with their attributes, and text outside of style and script."
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self._inside = [], [], []
        self.feed(text); self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag: pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self._inside): self.texts.append(data)

    def all(self, tag=None, **want):
        return [a for t, a in self.elements if tag in (None, t) and all(a.get(k.rstrip("_")) == v for k, v in want.items())]

def check_self_contained(text):
    p = Page(text)
    for tag, attrs in p.elements:
        for k in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            assert attrs.get(k, "#").startswith(("data:", "#")), (tag, k, attrs[k][:80])
        assert not [k for k in attrs if k.startswith("on")], (tag, attrs)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    css = "".join(re.findall(r"<style>(.*?)</style>", text, re.S)) + "".join(a.get("style") or "" for _, a in p.elements)
    assert "url(" not in css and "@import" not in css
    assert len(p.all("script")) == 1 and not {"src"} & p.all("script")[0].keys()
    return p


# -- exports

EVENTS = [Event(0, 2.0004, "A ball rolls."), Event(1.9996, 3.5, "It stops & waits."), Event(3661.2345, 3700, EVIL)]

@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_come_back(tmp_path, form):
    import pysubs2
    write_events(list(reversed(EVENTS)), tmp_path/f"v.{form}")
    back = pysubs2.load(str(tmp_path/f"v.{form}"))
    assert [(o.start, o.end) for o in back] == [(round(e.start * 1000), round(e.end * 1000)) for e in EVENTS]
    assert back[0].plaintext == "A ball rolls."

def test_vtt_is_escaped():
    text = events_subtitles(EVENTS, "vtt")
    assert text.startswith("WEBVTT") and "&lt;/script&gt;&lt;b" in text and "It stops &amp; waits." in text and "<b" not in text

@pytest.mark.parametrize("caption", ["line\n\nbreak", "1 --> 2", "00:00:01,000 --> 00:00:02,000", "{\\an8} up", r"back\Nslash", "", "7", "中文 — ü"])
@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_strange_captions_keep_their_cue(form, caption):
    import pysubs2
    back = pysubs2.SSAFile.from_string(events_subtitles([Event(0, 1, caption), Event(2, 3, "The last.")], form), form, keep_html_tags=True)
    assert [(o.start, o.end) for o in back] == [(0, 1000), (2000, 3000)]
    assert back[1].plaintext == "The last."
    shown = back[0].text.replace("\u200c", "").replace("&gt;", ">").replace("&amp;", "&")
    assert shown == " ".join(caption.split()).replace("-->", "→") or (caption == "7" and shown == "7")

def test_json_comes_back(tmp_path):
    many = {"a": EVENTS, "b": []}
    write_events(many, tmp_path/"p.json", durations={"a": 3700.5, "b": 1})
    assert read_events(tmp_path/"p.json") == many
    assert json.loads((tmp_path/"p.json").read_text())["durations"] == {"a": 3700.5, "b": 1.0}

@pytest.mark.parametrize("rows, says", [
    ([], "'results' must be an object"), ({"results": {"v": 3}}, "results['v'] must be a list"), ({"results": {"v": [{"timestamp": [0, 1]}]}}, "results['v'][0]: 'sentence'"),
    ({"results": {"v": [{"sentence": "a.", "timestamp": [0]}]}}, "not [0]"), ({"results": {"v": [{"sentence": "a.", "timestamp": [0, "1"]}]}}, "must be [start, end] in seconds")])
def test_damaged_results_are_named(tmp_path, rows, says):
    (tmp_path/"p.json").write_text(json.dumps(rows))
    with pytest.raises(InputError) as e: read_events(tmp_path/"p.json")
    assert says in str(e.value) and "p.json" in str(e.value)

@pytest.mark.parametrize("name", ["p.json", "v.srt", "v.vtt", "v.html"])
def test_unwritable_places(tmp_path, name):
    (tmp_path/"file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"): write_events(EVENTS, tmp_path/"file"/name)


# -- the player

def test_player_has_a_row_for_each_name(demo):
    rows = {"truth": EVENTS[:2], EVIL: EVENTS[1:2], "sail": []}
    p = check_self_contained(player_html(rows, demo[0]/"world"/"videos"/"val_0001.mp4", 8., title=EVIL))
    assert [a["data-row"] for _, a in p.elements if "data-row" in a] == list(rows)
    assert len(p.all(class_="sv-event")) == 3
    assert not p.all("b", onclick="x()") and EVIL in p.texts

def test_video_data_is_the_video(demo):
    path = demo[0]/"world"/"videos"/"val_0002.mp4"
    [v] = Page(player_html(EVENTS[:2], path, 10.)).all("video")
    kind, data = v["src"].split(",", 1)
    assert kind == "data:video/mp4;base64" and base64.b64decode(data) == path.read_bytes()

def test_linked_video(demo, tmp_path):
    path = demo[0]/"world"/"videos"/"val_0001.mp4"
    (tmp_path/"my #1 clip.mp4").write_bytes(path.read_bytes())
    assert video_source(tmp_path/"my #1 clip.mp4", embed=False) == "my%20%231%20clip.mp4"
    (tmp_path/"pages").mkdir()
    assert video_source(tmp_path/"my #1 clip.mp4", False, tmp_path/"pages") == "../my%20%231%20clip.mp4"

def test_many_players_share_one_script(demo):
    parts = "".join(player_fragment({"truth": EVENTS[:2]}, 8., title=str(i)) for i in range(4))
    p = check_self_contained(html_page("four", parts))
    assert len(p.all("figure")) == 4

def test_policy_allows_this_script_and_no_other():
    import hashlib
    text = html_page("t", "")
    policy = Page(text).all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy and policy.startswith("default-src 'none'")


# -- the report

def test_report_is_one_page(page):
    p = check_self_contained(page)
    assert [a["id"] for a in p.all("section")] == ["scores", "videos", "counts", "widths", "training", "synthetic", "config", "again"]
    assert {a["href"][1:] for a in p.all("a")} == {a["id"] for a in p.all("section")}
    assert all(a["src"].startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) and a["alt"] for a in p.all("img"))

def test_report_plays_the_videos(page, demo):
    played = [base64.b64decode(a["src"].split(",", 1)[1]) for a in Page(page).all("video")]
    assert sorted(played) == sorted(p.read_bytes() for p in (demo[0]/"world"/"videos").iterdir())

def test_report_shows_each_row_for_each_video(page, demo):
    rows = [a["data-row"] for _, a in Page(page).elements if "data-row" in a]
    assert rows == ["truth", "uniform", "ilcacm", "sail"] * len(demo[1])

def test_report_escapes_everything(page):
    p = Page(page)
    assert not p.all("b", onclick="x()") and EVIL in p.texts and page.count("</script>") == 1
    assert "http" not in page.replace("http-equiv", "").replace("src=http://example.com/x&gt;", "")

def test_report_says_what_the_numbers_say(page, demo):
    text = " ".join(Page(page).texts)
    assert "SAIL's F1 (51.00) is 2.00 points below the uniform layout's (53.00) and 3.00 points above ILCACM's (48.00)." in text
    assert "do not place events better than a layout that looks at nothing" in text
    assert "is: rules, no language model." in text and "One seed was run" in text
    assert "It differs from the preset activitynet in" in text and "sim_weight" in text

def test_the_rule_that_picks(demo):
    m, best = read_material(demo[0]), {}
    for vid, t in m.truth.items():
        total = 0
        for s, e in t.intervals:
            top = 0
            for p in m.events["sail"][vid]:
                inter = max(0, min(e, p.end) - max(s, p.start))
                top = max(top, inter / (e - s + p.end - p.start - inter))
            total += top
        best[vid] = total / len(t.intervals)
    picked = pick_videos(m)
    assert [v for v, *_ in picked] == sorted(best, key=lambda v: (-best[v], v))
    assert [x for *_, x in picked] == pytest.approx([best[v] for v, *_ in picked])

def test_report_is_the_same_twice(demo, tmp_path):
    make_report(demo[0], tmp_path/"a.html"); make_report(demo[0], tmp_path/"b.html")
    assert (tmp_path/"a.html").read_bytes() == (tmp_path/"b.html").read_bytes()

def test_report_of_runs(demo, tmp_path):
    out = make_report([demo[0]/"runs"/"sail", demo[0]/"runs"/"ilcacm"], tmp_path/"runs.html")
    p = check_self_contained(out.read_text())
    assert len(p.all("video")) == 3 and "There are no scores in this folder." in p.texts

def test_report_of_a_run_whose_data_is_gone(demo, tmp_path):
    import shutil
    shutil.copytree(demo[0]/"runs"/"sail", tmp_path/"moved")
    run = json.loads((tmp_path/"moved"/"run.json").read_text()) | {"data": str(tmp_path/"nowhere")}
    (tmp_path/"moved"/"run.json").write_text(json.dumps(run))
    p = check_self_contained(make_report(tmp_path/"moved", tmp_path/"r.html").read_text())
    assert [a["id"] for a in p.all("section")] == ["scores", "training", "config", "again"]

def test_report_without_a_video_file(demo, tmp_path):
    import shutil
    shutil.copytree(demo[0], tmp_path/"demo")
    (tmp_path/"demo"/"world"/"videos"/"val_0001.mp4").unlink()
    p = check_self_contained(make_report(tmp_path/"demo", tmp_path/"r.html").read_text())
    assert len(p.all("video")) == 2 and "The file of this video is not in the folder." in p.texts

@pytest.mark.parametrize("broken, says", [("scores.json", "scores.json: not JSON"), ("predictions/sail.json", "sail.json: not JSON"), ("runs/sail/log.jsonl", "line 1 is not JSON"), ("runs/sail/config.json", "config.json: not JSON")])
def test_damaged_files_are_named(demo, tmp_path, broken, says):
    import shutil
    shutil.copytree(demo[0], tmp_path/"demo")
    (tmp_path/"demo"/broken).write_text('{"torn": ')
    with pytest.raises(InputError, match=re.escape(says)): make_report(tmp_path/"demo", tmp_path/"r.html")
    assert not (tmp_path/"r.html").exists()

def test_wrong_places(demo, tmp_path):
    (tmp_path/"file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"): make_report(demo[0], tmp_path/"file"/"r.html")
    with pytest.raises(InputError, match="is a folder"): make_report(demo[0], tmp_path)
    with pytest.raises(InputError, match="no such folder"): make_report(tmp_path/"nowhere", tmp_path/"r.html")
    with pytest.raises(InputError, match="neither a demo folder"): make_report(tmp_path, tmp_path/"r.html")
    with pytest.raises(InputError, match="give it alone"): make_report([demo[0], demo[0]/"runs"/"sail"], tmp_path/"r.html")

def test_scores_of_the_evaluator_fill_the_table():
    if not EXPECTED.exists(): pytest.skip(f"{EXPECTED.name} of the reference scores is not there")
    ref = json.loads(EXPECTED.read_text())
    row = score_table({"sail": ref}, "markdown").splitlines()[2]
    mean = ref["mean"]
    want = [mean["Recall"], mean["Precision"], ref["F1_harmonic_of_means"], mean["F1"], mean["METEOR"], mean["CIDEr"], mean["Rouge-L"], mean["Bleu_4"], ref["soda_c"]]
    assert row == "| sail | " + " | ".join(f"{100 * v:.2f}" for v in want) + " |"

def test_findings_of_nothing():
    assert findings({}) == [] and findings({"sail": {}}) == []
    check_self_contained(report_html(Material()))


# -- explorer and command

def test_explorer(demo):
    explorer = EventExplorer(demo[0])
    explorer.widget()
    p = explorer._parts
    first = p["picture"].value
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    p["width"].value = .9
    second = p["picture"].value
    p["video"].value = "val_0003"
    assert len({first, second, p["picture"].value}) == 3
    assert len(p["event"].options) == len(explorer.material.events["sail"]["val_0003"])
    p["method"].value = "uniform"
    assert explorer.method == "uniform" and "image/png" in explorer._repr_mimebundle_()
    with pytest.raises(InputError, match="is not one of the 3 held-out videos"): EventExplorer(demo[0], video="val_9999")
    assert EventExplorer(demo[0]/"runs"/"sail").video == "val_0001"

def run(*args, **kwargs):
    return subprocess.run([str(Path(sys.executable).parent/"sail_report"), *map(str, args)], capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "Agg"}, **kwargs)

def test_command(demo, tmp_path):
    done = run(demo[0], "--out", tmp_path/"r.html")
    assert done.returncode == 0 and "r.html" in done.stdout, done.stderr
    check_self_contained((tmp_path/"r.html").read_text())
    bad = run(tmp_path/"nowhere", "--out", tmp_path/"x.html")
    assert bad.returncode == 2 and "no such folder" in bad.stderr and "Traceback" not in bad.stderr

def test_import_is_light():
    heavy = "torch transformers matplotlib av open_clip accelerate ipywidgets".split()
    code = f"import sys, sail_nbdev.visualize; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    start = time.perf_counter()
    assert run("--help").returncode == 0
    assert time.perf_counter() - start < 10
