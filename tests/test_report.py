"The report, on a small folder of the shape that `sail_demo` writes."
import base64
import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import shell
from pages import EVIL, Page, check_escaped, check_self_contained, put_run

from sail_nbdev.core import InputError
from sail_nbdev.export import row_colors
from sail_nbdev.masks import event_masks
from sail_nbdev.report import (Material, findings, make_report, pick_videos, read_material,
                               report_html, score_missing, score_table)

SECTIONS = ["scores", "videos", "counts", "widths", "training", "synthetic", "config", "again"]
EXPECTED = Path(__file__).parent/"data"/"eval"/"expected"/"toy.json"


@pytest.fixture(scope="module")
def page(made_demo, tmp_path_factory):
    out = make_report(made_demo[0], tmp_path_factory.mktemp("report")/"report.html")
    return out.read_text(encoding="utf-8")


@pytest.fixture
def copy(made_demo, tmp_path):
    return shutil.copytree(made_demo[0], tmp_path/"demo")


@pytest.fixture
def quick(monkeypatch):
    "Only places are scored, so that METEOR's program need not start."
    from sail_nbdev.evaluate import evaluate_many
    def places(predictions, references, **kwargs):
        return evaluate_many(predictions, references, metrics=["localization"])
    monkeypatch.setattr("sail_nbdev.report.evaluate_many", places)


def sections(page):
    return [a["id"] for a in page.all("section")]


def test_report_is_one_page(page):
    p = check_self_contained(page)
    assert sections(p) == SECTIONS and {a["href"][1:] for a in p.all("a")} == set(SECTIONS)
    forms = tuple(f"data:image/{kind};base64," for kind in ("svg+xml", "png", "jpeg"))
    assert all(a["src"].startswith(forms) and a["alt"] for a in p.all("img"))


def test_report_plays_the_videos(page, made_demo):
    played = [base64.b64decode(a["src"].split(",", 1)[1]) for a in Page(page).all("video")]
    assert sorted(played) == sorted(p.read_bytes() for p in (made_demo[0]/"world"/"videos").iterdir())


def test_report_shows_each_row_for_each_video(page, made_demo):
    rows = [a["data-row"] for _, a in Page(page).elements if "data-row" in a]
    assert rows == ["truth", "uniform", "ilcacm", "sail"] * len(made_demo[1])


def test_report_escapes_everything(page):
    check_escaped(page)
    assert page.count("</script>") == 1
    assert "http" not in page.replace("http-equiv", "").replace("src=http://example.com/x&gt;", "")


def test_run_names_full_of_markup_are_text(copy, tmp_path, quick):
    name = EVIL.replace("/", "")
    (copy/"runs"/"sail").rename(copy/"runs"/name)
    page = make_report([copy/"runs"/name, copy/"runs"/"ilcacm"], tmp_path/"r.html").read_text()
    p = check_self_contained(page)
    assert not p.all("b", onclick="x()") and any(name in t for t in p.texts)


def test_report_says_what_the_numbers_say(page):
    text = " ".join(Page(page).texts)
    first = "SAIL's F1 (51.00) is 2.00 points below the uniform layout's (53.00)"
    assert f"{first} and 3.00 points above ILCACM's (48.00)." in text
    assert "do not place events better than a layout that looks at nothing" in text
    assert "is: rules, no language model." in text and "One seed was run" in text
    assert "It differs from the preset activitynet in" in text and "captioner.d_model" in text


def plain_mean_iou(predicted, times):
    "The best IoU of each true event with any predicted one, averaged; in plain numbers."
    total = 0
    for s, e in times:
        best = 0
        for p in predicted:
            inter = max(0, min(e, p.end) - max(s, p.start))
            best = max(best, inter / (e - s + p.end - p.start - inter))
        total += best
    return total / len(times)


def test_the_rule_that_picks(made_demo):
    m = read_material(made_demo[0])
    best = {v: plain_mean_iou(m.events["sail"][v], t.intervals) for v, t in m.truth.items()}
    picked = pick_videos(m)
    assert [v for v, *_ in picked] == sorted(best, key=lambda v: (-best[v], v))
    assert [x for *_, x in picked] == pytest.approx([best[v] for v, *_ in picked])


def test_report_is_the_same_twice(made_demo, tmp_path):
    pages = [make_report(made_demo[0], tmp_path/name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_report_of_runs(made_demo, tmp_path, quick):
    runs = [made_demo[0]/"runs"/name for name in ("sail", "ilcacm")]
    page = make_report(runs, tmp_path/"runs.html").read_text()
    p = check_self_contained(page)
    assert len(p.all("video")) == 3 and row_names(page) == ["uniform", "ilcacm", "sail"]
    assert "scored here against val.json" in p.texts


def row_names(page):
    "The names of the rows of the table of scores."
    table = re.search(r'<table class="scores">(.*?)</table>', page, re.S)[1]
    return [unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall('<th scope="row">(.*?)</th>', table)]


@pytest.mark.parametrize("mask", ["cauchy", "hard"])
def test_masks_are_of_the_run_s_own_family(copy, tmp_path, mask, monkeypatch):
    "The strip of the report is drawn with the family that the run was trained with."
    put_run(copy, "sail", mask)
    drawn = []
    def seen(events, localizer, *args, **kwargs):
        drawn.append((localizer.mask, event_masks(events, localizer, *args, **kwargs)))
        return drawn[-1][1]
    monkeypatch.setattr("sail_nbdev.plots.event_masks", seen)
    make_report(copy, tmp_path/"r.html")
    assert drawn and {family for family, _ in drawn} == {mask}
    values = np.concatenate([m.ravel() for _, m in drawn])
    assert (set(np.unique(values)) == {0., 1.}) == (mask == "hard")


def test_report_of_a_run_whose_data_is_gone(made_demo, tmp_path):
    moved = shutil.copytree(made_demo[0]/"runs"/"sail", tmp_path/"moved")
    run = json.loads((moved/"run.json").read_text()) | {"data": str(tmp_path/"nowhere")}
    (moved/"run.json").write_text(json.dumps(run))
    p = check_self_contained(make_report(moved, tmp_path/"r.html").read_text())
    assert sections(p) == ["scores", "training", "config", "again"]
    assert "There are no scores in this folder." in p.texts
    assert any("is not scored: there are no references" in t for t in p.texts)


def test_report_without_a_video_file(copy, tmp_path):
    (copy/"world"/"videos"/"val_0001.mp4").unlink()
    p = check_self_contained(make_report(copy, tmp_path/"r.html").read_text())
    assert len(p.all("video")) == 2 and "The file of this video is not in the folder." in p.texts


@pytest.mark.parametrize("broken, says", [
    ("scores.json", "scores.json: not JSON"), ("predictions/sail.json", "sail.json: not JSON"),
    ("runs/sail/log.jsonl", "log.jsonl: not JSON at line 1"),
    ("runs/sail/config.json", "config.json: not JSON")])
def test_damaged_files_are_named(copy, tmp_path, broken, says):
    (copy/broken).write_text('{"torn": ')
    with pytest.raises(InputError, match=re.escape(says)):
        make_report(copy, tmp_path/"r.html")
    assert not (tmp_path/"r.html").exists()


def test_wrong_places(made_demo, tmp_path):
    (tmp_path/"file").write_text("in the way")
    demo = made_demo[0]
    wrong = [(demo, tmp_path/"file"/"r.html", "cannot be written"), (demo, tmp_path, "is a folder"),
             (tmp_path/"nowhere", tmp_path/"r.html", "no such folder"),
             (tmp_path, tmp_path/"r.html", "neither a demo folder"),
             ([demo, demo/"runs"/"sail"], tmp_path/"r.html", "give it alone")]
    for folders, out, says in wrong:
        with pytest.raises(InputError, match=says):
            make_report(folders, out)


def test_scores_of_the_evaluator_fill_the_table():
    scores = json.loads(EXPECTED.read_text())
    row = score_table({"sail": scores}, "markdown").splitlines()[2]
    mean = scores["mean"]
    wanted = [mean["Recall"], mean["Precision"], scores["F1_harmonic_of_means"],
              *(mean[k] for k in ("F1", "METEOR", "CIDEr", "Rouge-L", "Bleu_4")), scores["soda_c"]]
    assert row == "| sail | " + " | ".join(f"{100 * v:.2f}" for v in wanted) + " |"


def test_findings_of_nothing():
    assert findings({}) == [] and findings({"sail": {}}) == []
    check_self_contained(report_html(Material()))


# -- predictions of other systems

@pytest.fixture
def world(made_demo):
    "The data folder of the demo, the names of its videos and their durations."
    return made_demo[0]/"world", {v: o["duration"] for v, o in made_demo[1].items()}


def write_csv(path, seconds, prefix="", suffix=".mp4", sentence="A ball rolls."):
    "Two events for each video, as a table."
    rows = [f"{prefix}{v}{suffix},{s * d:.2f},{(s + .5) * d:.2f},{sentence}"
            for v, d in seconds.items() for s in (0, .5)]
    path.write_text("\n".join(["video,start,end,sentence", *rows]))
    return path


@pytest.mark.slow
def test_a_table_of_others_stands_beside_a_run(made_demo, world, tmp_path):
    data, seconds = world
    table = write_csv(tmp_path/"qwen.csv", seconds)
    page = make_report([made_demo[0]/"runs"/"sail", table], tmp_path/"r.html", data=data).read_text()
    p = check_self_contained(page)
    assert row_names(page) == ["uniform", "sail", "qwen"]
    assert "read" in sections(p) and any("3 of 3" in t for t in p.texts)
    rows = [a["data-row"] for _, a in p.elements if "data-row" in a]
    assert rows == ["truth", "uniform", "sail", "qwen"] * 3
    styles = {a["data-row"]: a["style"].split(";")[0] for _, a in p.elements if "data-row" in a}
    assert len(set(styles.values())) == 4                           # nobody wears another's colour


def test_it_stands_beside_a_demo_too(made_demo, world, tmp_path, quick):
    table = write_csv(tmp_path/"qwen.csv", world[1])
    page = make_report([made_demo[0], table], tmp_path/"r.html").read_text()
    check_self_contained(page)
    assert row_names(page) == ["uniform", "ilcacm", "sail", "qwen"]


def test_a_run_without_scores_keeps_its_row(copy, tmp_path, quick):
    "Also where another run has its scores at hand, and where nothing can be scored."
    uniform = shutil.copytree(copy/"runs"/"ilcacm", copy/"runs"/"uniform")
    shutil.copy(copy/"predictions"/"uniform.json", uniform/"predictions.json")
    (copy/"runs"/"sail"/"scores.json").write_text(EXPECTED.read_text())
    runs = [copy/"runs"/"sail", uniform]
    page = make_report(runs, tmp_path/"r.html").read_text()
    p = check_self_contained(page)
    assert row_names(page) == ["uniform", "sail"]
    (uniform/"predictions.json").unlink()
    m = read_material(*runs)
    score_missing(m)
    assert list(m.unscored) == ["uniform"] and "sail_predict" in m.unscored["uniform"]
    page = report_html(m)
    p = check_self_contained(page)
    assert row_names(page)[:2] == ["uniform", "sail"]
    assert any("is not scored: it has no predictions" in t for t in p.texts)


def test_the_uniform_row_has_the_predicted_counts(made_demo, world, quick):
    m = read_material(made_demo[0]/"runs"/"sail")
    score_missing(m)
    assert {v: len(o) for v, o in m.events["uniform"].items()} == \
        {v: len(o) for v, o in m.events["sail"].items()}
    assert m.scores["uniform"]["mean"].keys() == {"Recall", "Precision", "F1"}


def test_two_annotators(copy, tmp_path, quick):
    "Both are scored against, and both are seen."
    notes = copy/"world"/"annotations"
    truth = json.loads((notes/"val.json").read_text())
    (notes/"val.json").rename(notes/"val_1.json")
    del truth["val_0001"]
    (notes/"val_2.json").write_text(json.dumps(truth))
    m = read_material(copy/"runs"/"sail", data=copy/"world")
    assert len(m.references) == 2 and set(m.second) == {"val_0002", "val_0003"} and len(m.truth) == 3
    page = make_report(copy/"runs"/"sail", tmp_path/"r.html", data=copy/"world").read_text()
    p = check_self_contained(page)
    assert len(p.all(**{"data-row": "truth 2"})) == 2
    assert "scored here against val_1.json and val_2.json" in p.texts


def test_videos_of_any_ending_and_spelling(copy, tmp_path, quick):
    videos = copy/"world"/"videos"
    (videos/"val_0001.mp4").rename(videos/"v_val_0001.mkv")
    (videos/"val_0002.mp4").rename(videos/"val_0002.webm")
    page = make_report(copy/"runs"/"sail", tmp_path/"r.html", data=copy/"world").read_text()
    assert len(check_self_contained(page).all("video")) == 3


def test_a_damaged_video_is_named(copy, tmp_path, quick):
    (copy/"world"/"videos"/"val_0001.mp4").write_text("no video")
    p = check_self_contained(make_report(copy, tmp_path/"r.html").read_text())
    assert any(t.startswith("Not shown:") and "val_0001.mp4" in t for t in p.texts)


def test_predictions_for_other_videos(made_demo, world, tmp_path, quick):
    data = world[0]
    other = write_csv(tmp_path/"other.csv", {"abc": 9., "def": 8.}, suffix="")
    m = read_material(made_demo[0]/"runs"/"sail", other, data=data)
    score_missing(m)
    assert list(m.unscored) == ["other"] and "other" not in m.events
    page = report_html(m)
    check_self_contained(page)
    assert row_names(page) == ["uniform", "sail", "other"]
    with pytest.raises(InputError):
        read_material(other, data=data)
    bad = run(made_demo[0]/"runs"/"sail", other, "--data", data, "--out", tmp_path/"x.html")
    assert bad.returncode == 1 and "other is not scored" in bad.stderr and (tmp_path/"x.html").exists()
    bad = run(other, "--data", data, "--out", tmp_path/"y.html")
    assert bad.returncode == 2 and len(bad.stderr.splitlines()) == 1 and not (tmp_path/"y.html").exists()


def test_foreign_markup_stays_text(world, tmp_path, quick):
    data, seconds = world
    rows = {v: [{"timestamp": [0, d / 2], "caption": EVIL}] for v, d in seconds.items()}
    name = EVIL.replace("/", "")
    (tmp_path/f"{name}.json").write_text(json.dumps(rows))
    page = make_report(tmp_path/f"{name}.json", tmp_path/"r.html", data=data).read_text()
    p = check_self_contained(page)
    check_escaped(page)
    assert row_names(page)[-1] == name and not p.all("b", onclick="x()")


def test_rows_over_different_videos_are_no_contest(world, tmp_path, quick):
    data, seconds = world
    half = write_csv(tmp_path/"half.csv", dict(list(seconds.items())[:1]))
    whole = write_csv(tmp_path/"whole.csv", seconds)
    page = make_report([whole, half], tmp_path/"r.html", data=data).read_text()
    assert "half has predictions for 1 of 3 videos" in page and "not over the same videos" in page


def test_names_are_told_apart(world, tmp_path):
    for place in ("a", "b"):
        (tmp_path/place).mkdir()
        write_csv(tmp_path/place/"qwen.csv", world[1])
    m = read_material(*(tmp_path/place/"qwen.csv" for place in ("a", "b")), data=world[0])
    assert list(m.events) == ["qwen", "b/qwen"] and m.main == "qwen"


def test_what_makes_no_page(made_demo, world, tmp_path):
    data, seconds = world
    table = write_csv(tmp_path/"qwen.csv", seconds)
    (tmp_path/"bad.json").write_text('{"torn": ')
    (tmp_path/"empty").mkdir()
    wrong = [([table], None, "give --data"), ([table], tmp_path/"nowhere", "no such data folder"),
             ([tmp_path/"nothing.csv"], data, "no such file"), ([tmp_path/"bad.json"], data, "not JSON"),
             ([table], tmp_path/"empty", "val.json: no such file"),
             ([made_demo[0], table], data, "has its own data")]
    for sources, folder, says in wrong:
        with pytest.raises(InputError, match=says):
            make_report(sources, tmp_path/"r.html", data=folder)
    assert not (tmp_path/"r.html").exists()


def test_no_colour_runs_out():
    names = [f"system {i}" for i in range(20)]
    colors = row_colors(["sail", *names])
    assert set(colors) == {"sail", *names} and len(set(colors.values())) == 9
    assert colors["sail"] not in {colors[n] for n in names}


def run(*args):
    return shell.run("sail_report", *args, MPLBACKEND="Agg")


@pytest.mark.slow
def test_command(made_demo, tmp_path):
    done = shell.run_process("sail_report", made_demo[0], "--out", tmp_path/"r.html")
    assert done.returncode == 0 and "r.html" in done.stdout, done.stderr
    check_self_contained((tmp_path/"r.html").read_text())
    bad = run(tmp_path/"nowhere", "--out", tmp_path/"x.html")
    assert bad.returncode == 2 and "no such folder" in bad.stderr and "Traceback" not in bad.stderr
