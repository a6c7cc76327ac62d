"""The tutorial on ActivityNet and YouCook2, from the field's own files to scores, on a made-up miniature:
one `.pth` of fp16 rows whose ids have no `v_`, two annotators, a video that is gone, one not annotated."""
import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from fastcore.script import anno_parser

from sail_nbdev import commands
from sail_nbdev.core import write_json
from sail_nbdev.data import read_predictions
from sail_nbdev.store import open_store

TOY = ["data.feature_dim=8", "data.n_frames=16",
       "captioner.pretrained=none", "captioner.vocab_size=260", "captioner.d_model=16", "captioner.n_heads=2",
       "captioner.encoder_layers=1", "captioner.encoder_ffn=32", "captioner.decoder_width=16",
       "captioner.decoder_layers=1", "captioner.decoder_heads=2",
       "localizer.d_model=16", "localizer.n_heads=2", "localizer.ffn=32",
       "train.accumulate=1", "train.epochs_stage1=2", "train.epochs_stage2=2",
       "decode.beams=1", "decode.paragraph_tokens=4,60", "decode.caption_tokens=2,16"]
SENTENCES = ["A man walks in.", "He opens a red box.", " He takes out a guitar.", "He plays it and smiles."]
TRAIN = [f"v_train{i:06d}" for i in range(8)]
VAL = [f"v_valid{i:06d}" for i in range(4)]
WIDTH = 8                                                   # of the tiny CLIP that stands for ViT-L/14


def told(name, *words):
    "A command as it is typed: its exit code, and what it prints on both channels."
    func = getattr(commands, name)
    options = vars(anno_parser(func).parse_args(list(map(str, words))))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try: code = func(**{k: v for k, v in options.items() if k not in ("pdb", "xtra")})
        except SystemExit as e: code = e.code
    return code or 0, out.getvalue()


def annotated(videos, late=0.):
    "Videos of the common form: two to four sentences, as long as their features."
    def record(i):
        n = 2 + i % 3
        seconds = 20. + i
        times = [[k * seconds / n, min(seconds, (k + .9) * seconds / n + late)] for k in range(n)]
        return {"duration": seconds, "timestamps": times, "sentences": SENTENCES[:n]}
    return {v: record(i) for i, v in enumerate(videos)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "What is downloaded: annotations as PDVC hands them round, and the field's common feature file."
    folder = tmp_path_factory.mktemp("downloads")
    write_json(folder/"train_modified.json", annotated(TRAIN))
    write_json(folder/"val_1.json", annotated(VAL))
    write_json(folder/"val_2.json", annotated(VAL[:3], late=1.))
    g = torch.Generator().manual_seed(0)
    def rows(v): return (3 * torch.randn(20 + [*TRAIN, *VAL].index(v) % 8, WIDTH, generator=g)).half()
    videos = {v.removeprefix("v_"): rows(v) for v in [*TRAIN, *VAL[:-1]]}       # the last video is gone
    torch.save(videos | {"unannotate1": rows(TRAIN[0])}, folder/"clipvitl14.pth")
    return folder


@pytest.fixture(scope="module")
def data(files, clip_folder, tmp_path_factory):
    """Step 1: one folder, with the annotations under the names that commands look for.
    A tiny CLIP stands in it in place of ViT-L/14."""
    folder = tmp_path_factory.mktemp("tutorial")/"anet"
    (folder/"annotations").mkdir(parents=True)
    names = {"train_modified.json": "train.json", "val_1.json": "val_1.json", "val_2.json": "val_2.json"}
    for name, new in names.items(): (folder/"annotations"/new).write_bytes((files/name).read_bytes())
    shutil.copytree(clip_folder, folder/"clip")
    return folder


def test_from_the_field_s_files_to_scores(files, data, tmp_path):
    code, text = told("sail_check", data)
    assert code == 1 and "annotations/train" in text and "missing" in text and "sail_features" in text

    # features: the ids have no v_, one video is gone, one is nobody's
    made = ("--out", data/"features", "--ids", data, "--model", data/"clip")
    code, text = told("sail_features", "--arrays", files/"clipvitl14.pth", *made)
    assert code == 0 and "11 of 12 names matched" in text, text
    assert "unannotate1" in text and "float16" in text, text
    store = open_store(data, "features")
    assert set(store.ids()) == {*TRAIN, *VAL[:-1]}
    original = torch.load(files/"clipvitl14.pth", weights_only=True)
    np.testing.assert_array_equal(store[TRAIN[2]], original[TRAIN[2].removeprefix("v_")].float())
    code, text = told("sail_check", data)
    assert code == 1 and "sail_augment" in text and "--texts" in text

    # captions for the gaps, then both kinds of captions in the space of the frames
    train = data/"annotations"/"train.json"
    code, text = told("sail_augment", train, "--out", data/"synthetic.json", "--backend", "rules")
    assert code == 0, text
    assert {v: len(o) for v, o in json.loads((data/"synthetic.json").read_text()).items()} == \
        {v: len(o["sentences"]) - 1 for v, o in json.loads(train.read_text()).items()}
    code, text = told("sail_features", "--texts", data, "--device", "cpu")
    assert code == 0 and "8 videos with captions done" in text, text
    code, text = told("sail_check", data)
    assert code == 0 and "sail_train" in text, text

    # training, prediction, scores against both annotators, a page
    run = tmp_path/"run"
    asked = ("--data", data, "--out", run, "--device", "cpu")
    code, text = told("sail_train", "activitynet", *asked, "--override", *TOY)
    assert code == 0 and (run/"model.safetensors").exists(), text
    code, text = told("sail_predict", run, "--data", data, "--device", "cpu")
    found = read_predictions(run/"predictions_val.json")
    assert code == 0 and set(found) == set(VAL[:-1]), text
    first, second = (data/"annotations"/f"val_{i}.json" for i in (1, 2))
    asked = ("--ref", second, "--out", run/"scores.json")
    code, text = told("sail_eval", run/"predictions_val.json", first, *asked)
    assert code == 0 and "3 of 4" in text, text
    code, text = told("sail_report", run, "--data", data, "--out", tmp_path/"r.html")
    assert code == 0 and (tmp_path/"r.html").exists(), text
