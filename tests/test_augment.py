"The command `sail_augment`: wrong input, the estimate, and the way from files to captions that are seen."
from pathlib import Path

import pytest
import shell
from test_writers import ANSWERS, blip, walls  # noqa: F401

from sail_nbdev.core import read_json, write_json
from sail_nbdev.gaps import AnswerCache

ANNOTATIONS = Path(__file__).parents[2]/"shared"/"data"/"annotations"


def run(*args, how=shell.run):
    "The command, without a hub."
    return how("sail_augment", *args, HF_HUB_OFFLINE=1)


WRONG = [
    (["--tries", 0], "--tries 0: must be a whole number from 1"),
    (["--share", 2], "--share 2.0: must be a number from 0 to 1"),
    (["--backend", "gpt"], "not one of transformers, openai, file, rules"),
    (["--backend", "file"], "--backend file needs --file"),
    (["--out", "/proc/x/s.json"], "cannot be written"),
    (["--backend", "file", "--file", "nowhere.json"], "nowhere.json: no such file"),
    (["--concurrency", -1], "--concurrency -1: must be")]


@pytest.mark.parametrize("args, message", WRONG)
def test_wrong_input_is_one_sentence(tmp_path, args, message):
    two = ["A man lifts a box.", "He leaves."]
    sizes = {"one": 1, "none": 0, "v": 2}
    write_json(tmp_path/"train.json", {v: {"sentences": two[:n]} for v, n in sizes.items()})
    right = [tmp_path/"train.json", "--backend", "rules", "--out", tmp_path/"s.json"]
    r = run(*right, *args)
    assert r.returncode == 2 and message in r.stderr and r.stderr.startswith("sail_augment: "), r
    assert "Traceback" not in r.stderr and not (tmp_path/"s.json").exists()
    assert run(*right).returncode == 0                                              # what is right is right
    assert read_json(tmp_path/"s.json") == {"one": [], "none": [], "v": ["A man goes and he comes."]}


@pytest.mark.slow
@pytest.mark.parametrize("name, gaps", [("anet_train", "27,412"), ("yc2_train", "9,004")])
def test_dry_run(name, gaps):
    if not ANNOTATIONS.exists(): pytest.skip("the annotation files are not beside this checkout")
    r = run(ANNOTATIONS/f"{name}.json", "--dry_run", "--price_in", "1", how=shell.run_process)
    assert r.returncode == 0 and r.stdout.startswith(f"{gaps} gaps; about "), r
    for words in ("captions per second", "about $", "nothing was asked"): assert words in r.stdout


def see(walls, model, *more):  # noqa: F811
    "The command with a model that sees, and what it wrote."
    out = walls/"synthetic.json"
    r = run(walls/"annotations"/"train.json", "--out", out, "--backend", "vision", "--model", model,
            "--device", "cpu", *more)
    return r, read_json(out) if out.exists() else None


def test_the_command_sees(walls, blip):  # noqa: F811
    r, captions = see(walls, blip, "--data", walls)
    assert r.returncode == 0 and "3 captions for 3 gaps" in r.stdout and captions == ANSWERS, r
    assert read_json(walls/"synthetic.summary.json")["provenance"]["backend"] == "vision"


def test_videos_that_cannot_be_seen_are_listed_and_asked_again(walls, blip, tmp_path):  # noqa: F811
    elsewhere = tmp_path/"elsewhere"
    (walls/"videos").rename(elsewhere)
    whole = (elsewhere/"v_two.mp4").read_bytes()
    (elsewhere/"v_two.mp4").write_bytes(whole[:300])
    (elsewhere/"v_one.mp4").rename(elsewhere/"other.mp4")
    r, captions = see(walls, blip, "--data", walls, "--videos", elsewhere)
    assert r.returncode == 1 and captions == {"v_one": [None] * 2, "v_two": [None]}, r
    assert r.stdout.count("no answer: video ") == 3 and "Traceback" not in r.stderr
    for words in ("video v_one, gap 2: no file of this name in ", "video v_two, gap 1: ", "v_two.mp4: "):
        assert words in r.stdout
    (elsewhere/"v_two.mp4").write_bytes(whole)
    (elsewhere/"other.mp4").rename(elsewhere/"v_one.mp4")
    r, captions = see(walls, blip, "--data", walls, "--videos", elsewhere)
    assert r.returncode == 0 and captions == ANSWERS, r
    assert len(AnswerCache(walls/"synthetic.sqlite").rows) == 3


def test_what_the_command_needs_to_see(walls, tmp_path):  # noqa: F811
    "One sentence each, before a model is loaded."
    path = walls/"annotations"/"train.json"
    train = read_json(path)
    def wrong(message, *args):
        r, captions = see(walls, "none", *args)
        assert r.returncode == 2 and message in r.stderr and r.stderr.count("\n") == 1 and captions is None, r
    wrong("--backend vision needs --data")
    wrong("nowhere: no such file or folder", "--data", walls, "--videos", tmp_path/"nowhere")
    wrong("no video in this folder", "--data", walls, "--videos", walls/"annotations")
    (walls/"text").rename(walls/"hidden")
    wrong("sail_features --texts", "--data", walls)
    (walls/"hidden").rename(walls/"text")
    write_json(path, {v: {k: o for k, o in r.items() if k != "duration"} for v, r in train.items()})
    wrong("train.json: video v_one: has no duration", "--data", walls)
    write_json(path, {v: {**r, "sentences": r["sentences"] + ["A dog barks."]} for v, r in train.items()})
    wrong("video v_one: 3 embeddings for 4 captions; make them anew", "--data", walls)
    r, _ = see(walls, "none", "--dry_run")
    assert r.returncode == 0 and r.stdout.startswith("5 gaps, each seen in its frames; about "), r
    assert "tokens" not in r.stdout
