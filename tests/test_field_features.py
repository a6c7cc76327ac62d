"""Feature files as people of the field have them: every form is read, every bad one is refused in a sentence,
ids are matched, and a data folder is checked. All files are made here."""
import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import grey, write_clip

from sail_nbdev.clip import Encoder
from sail_nbdev.commands import sail_check, sail_features
from sail_nbdev.core import InputError, write_json
from sail_nbdev.arrays import find_arrays, import_arrays, made_by
from sail_nbdev.check import check_data
from sail_nbdev.store import FeatureStore, encode_texts, made_with, open_store

IDS = ["v_aaaaaaaaaa1", "v_bbbbbbbbbb2", "v_cccccccccc3"]
RNG = np.random.default_rng(0)
ROWS = {id: RNG.normal(size=(10 + 2 * i, 6)).astype(np.float32) for i, id in enumerate(IDS)}


def call(command, *args, **kwargs):
    "Exit code, and what a command prints on both channels."
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = command(*args, **kwargs)
        except SystemExit as e: code = e.code
    return code, out.getvalue(), err.getvalue()


def take_over(source, out, **options):
    return call(sail_features, [], arrays=str(source), out=str(out), **options)


def taken(tmp_path, source, **how):
    "The store that a source becomes, and the result."
    found = find_arrays(source, **how)
    store = FeatureStore.create(tmp_path/"taken", dim=found.width)
    return store, import_arrays(found, store, progress=False), found


def same(store, rows=ROWS, tolerance=0.):
    assert sorted(store.ids()) == sorted(rows)
    for id, a in rows.items(): np.testing.assert_allclose(store[id].numpy(), a, atol=tolerance, rtol=0)


def annotations(folder, rows=ROWS, seconds=1.):
    "A data folder whose videos last as many seconds as they have rows."
    def record(a): return {"duration": len(a) * seconds, "sentences": ["A man runs.", "He stops."],
                           "timestamps": [[0, 2], [2, 5]]}
    write_json(folder/"annotations"/"train.json", {v: record(a) for v, a in rows.items()})
    return folder


# -- one file for all videos

@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_common_pth(tmp_path, kind):
    "A dictionary of torch.save in any floating type, mapped into memory; the type is named."
    torch.save({v: torch.from_numpy(a).to(kind) for v, a in ROWS.items()}, tmp_path/"clip.pth")
    store, result, found = taken(tmp_path, tmp_path/"clip.pth")
    same(store, tolerance=.02 if kind in (torch.float16, torch.bfloat16) else 0)
    assert found.dtype == str(kind)[6:] and str(kind)[6:] in found.lines(1.)[0]
    assert "one file of torch.save, a dictionary" in found.lines(1.)[0] and result["failed"] == {}


def test_an_old_pth(tmp_path):
    "Files of torch.save before 1.6 cannot be mapped, and are read all the same."
    videos = {v: torch.from_numpy(a) for v, a in ROWS.items()}
    torch.save(videos, tmp_path/"old.pth", _use_new_zipfile_serialization=False)
    same(taken(tmp_path, tmp_path/"old.pth")[0])


def test_a_pth_with_groups(tmp_path):
    videos = {v: {"rgb": torch.from_numpy(a), "flow": torch.from_numpy(a[:-1])} for v, a in ROWS.items()}
    torch.save(videos, tmp_path/"i3d.pth")
    with pytest.raises(InputError, match=r"holds 2 arrays \(rgb, flow\); say which with --key"):
        find_arrays(tmp_path/"i3d.pth")
    store, result, _ = taken(tmp_path, tmp_path/"i3d.pth", key="rgb,flow")
    same(store, {v: np.hstack([a, a])[:-1] for v, a in ROWS.items()})
    assert result["cut"] == IDS


def test_an_npz_of_all_videos(tmp_path):
    np.savez(tmp_path/"all.npz", **ROWS)
    same(taken(tmp_path, tmp_path/"all.npz")[0])


# -- HDF5

@pytest.fixture
def h5():
    return pytest.importorskip("h5py").File


def test_flat_h5_with_a_stride(tmp_path, h5):
    with h5(tmp_path/"five.h5", "w") as f:
        for v, a in ROWS.items(): f[v] = np.repeat(a, 5, axis=0)
    data = annotations(tmp_path/"data")
    found = find_arrays(tmp_path/"five.h5", ids=data)
    assert found.rate_note(1.) == "rows say 5.0 a second, --fps 1 was given (--stride 5 leaves 1)"
    store, _, found = taken(tmp_path, tmp_path/"five.h5", ids=data, stride=5)
    same(store)
    assert found.rate_note(1.) is None and "stride 5" in found.lines(1.)[0]
    again = find_arrays(tmp_path/"five.h5", ids=data, stride=2)
    assert import_arrays(again, store, progress=False)["skipped"] == []     # another stride, other rows


def test_nested_h5(tmp_path, h5):
    with h5(tmp_path/"i3d.h5", "w") as f:
        for v, a in ROWS.items():
            f[f"{v}/i3d_features/rgb"] = a
            f[f"{v}/i3d_features/flow"] = a[:-1] + 1
    with pytest.raises(InputError, match=r"\(i3d_features/flow, i3d_features/rgb\); say which with --key"):
        find_arrays(tmp_path/"i3d.h5")
    with pytest.raises(InputError, match="holds no 'c3d' .there is i3d_features/flow, i3d_features/rgb"):
        find_arrays(tmp_path/"i3d.h5", key="c3d")
    same(taken(tmp_path, tmp_path/"i3d.h5", key="i3d_features/rgb")[0])
    store, result, _ = taken(tmp_path/"both", tmp_path/"i3d.h5", key="i3d_features/rgb,i3d_features/flow")
    same(store, {v: np.hstack([a[:-1], a[:-1] + 1]) for v, a in ROWS.items()})
    assert len(result["cut"]) == 3


def test_parallel_arrays_of_h5(tmp_path, h5):
    rows = np.concatenate(list(ROWS.values()))
    padded = np.zeros((3, 14, 6), np.float32)
    for p, a in zip(padded, ROWS.values()): p[:len(a)] = a
    with h5(tmp_path/"coot.h5", "w") as f:
        f.update(key=IDS, clip_emb=rows, clip_num=[len(a) for a in ROWS.values()], vid_emb=np.ones((3, 6)))
        f.update(frame_emb=padded, frame_num=[len(a) for a in ROWS.values()])
    with pytest.raises(InputError, match="say with --key which .* 3 videos: clip_emb, frame_emb"):
        find_arrays(tmp_path/"coot.h5")
    same(taken(tmp_path/"flat", tmp_path/"coot.h5", key="clip_emb")[0])
    same(taken(tmp_path/"padded", tmp_path/"coot.h5", key="frame_emb")[0])
    with pytest.raises(InputError, match="parallel arrays"): find_arrays(tmp_path/"coot.h5", key="vid_emb")


def test_h5_that_points_elsewhere(tmp_path, h5):
    "Links, external storage and virtual data sets are not followed; the other video is taken."
    h5py = pytest.importorskip("h5py")
    secret = tmp_path/"secret.bin"
    secret.write_bytes(np.ones((4, 6), np.float32).tobytes())
    with h5(tmp_path/"other.h5", "w") as f: f["x"] = np.ones((4, 6), np.float32)
    with h5(tmp_path/"all.h5", "w") as f:
        f[IDS[0]] = ROWS[IDS[0]]
        f["linked"] = h5py.ExternalLink("other.h5", "x")
        f["soft"] = h5py.SoftLink("/linked")
        f.create_dataset("stored", (4, 6), "f4", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
        layout = h5py.VirtualLayout((4, 6), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (4, 6))
        f.create_virtual_dataset("virtual", layout)
    store, result, _ = taken(tmp_path, tmp_path/"all.h5")
    assert store.ids() == IDS[:1] and sorted(result["failed"]) == ["linked", "soft", "stored", "virtual"]
    assert "another file" in result["failed"]["stored"] and "not followed" in result["failed"]["linked"]


# -- one file a video

def save(path, a):
    "Write an array in the form of the file's ending."
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix
    if kind == ".npy": np.save(path, a)
    elif kind == ".npz": np.savez(path, features=a, fps=np.array(.5))
    elif kind == ".csv": np.savetxt(path, a, delimiter=",", fmt="%.9g")
    elif kind == ".named":
        np.savetxt(path.with_suffix(".csv"), a, delimiter=",", fmt="%.9g", header="a,b", comments="")
    else: torch.save(torch.from_numpy(a)[None], path)


@pytest.mark.parametrize("name", [
    "{v}.npy", "{v}.mp4.npy", "{v}_clip.npy", "{v}.npz", "{v}.pt", "{v}.pth", "{v}.csv", "{v}.named",
    "train/{v}.npy", "{v}_rgb.npy"])
def test_a_folder_with_a_file_a_video(tmp_path, name):
    "Whatever the ending, the id without annotations is the bare name."
    for v, a in ROWS.items(): save(tmp_path/"f"/name.format(v=v), a)
    same(taken(tmp_path, tmp_path/"f")[0], tolerance=1e-6)


@pytest.mark.parametrize("first,second", [("_resnet", "_bn"), ("_rgb", "_flow")])
def test_two_files_a_video(tmp_path, first, second):
    "They are joined in this order; one row too many is cut, two are a failure, a missing one is named."
    for v, a in ROWS.items():
        save(tmp_path/"f"/f"{v}{first}.npy", a)
        save(tmp_path/"f"/f"{v}{second}.npy", a[:, :2])
    save(tmp_path/"f"/f"{IDS[1]}{second}.npy", ROWS[IDS[1]][:-1, :2])
    save(tmp_path/"f"/f"short{first}.npy", ROWS[IDS[0]])
    save(tmp_path/"f"/f"short{second}.npy", ROWS[IDS[0]][:-2, :2])
    save(tmp_path/"f"/f"alone{second}.npy", ROWS[IDS[0]][:, :2])
    store, result, found = taken(tmp_path, tmp_path/"f")
    same(store, {v: np.hstack([a, a[:, :2]])[:len(a) - (v == IDS[1])] for v, a in ROWS.items()})
    assert result["cut"] == [IDS[1]] and found.form.endswith("two a video")
    assert "its parts have 10 and 8 rows" in result["failed"]["short"]
    assert f"alone{first}: is not there, but its partner is" in result["failed"]["alone"]


@pytest.mark.parametrize("shape", [(1, 10, 6), (10, 1, 6), (10, 6, 1, 1), (1, 1, 10, 6)])
def test_axes_of_one(tmp_path, shape):
    save(tmp_path/"f"/"v.npy", ROWS[IDS[0]].reshape(shape))
    same(taken(tmp_path, tmp_path/"f")[0], {"v": ROWS[IDS[0]]})


# -- what is refused

class Touch:
    "An object that makes a file when it is unpickled."
    def __init__(self, path): self.path = path

    def __reduce__(self): return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "old", "folder", "pickle as pth"])
def test_a_pth_with_code_in_it(tmp_path, form):
    "The code in it does not run; the message holds the line that converts the file."
    mark = tmp_path/"RAN"
    bad = {"v_1": Touch(mark)}
    path = tmp_path/"f"/"bad.pth"
    path.parent.mkdir()
    if form == "pickle as pth": path.write_bytes(pickle.dumps(bad))
    else: torch.save(bad, path, _use_new_zipfile_serialization=form == "zip")
    source = path.parent if form == "folder" else path
    code, _, err = take_over(source, tmp_path/"s")
    assert code == 2 and "holds more than tensors" in err
    assert "only if you trust" in err and "python -c" in err
    assert err.count("\n") == 1 and not mark.exists() and not (tmp_path/"s").exists()
    pickle.loads(pickle.dumps(Touch(mark)))                     # the trap is a real one
    assert mark.exists()


@pytest.mark.parametrize("what", ["numpy in pth", "old pth", "pickle as pth", "defaultdict", "pkl", "one pt",
                                  "one pkl"])
def test_the_conversion_does_convert(tmp_path, what):
    "The line that a refusal gives is run as it stands, and what it writes is read."
    folder = tmp_path/"it's mine"
    folder.mkdir()
    a = ROWS[IDS[0]]
    many = {"numpy in pth": (".pth", dict(ROWS)), "old pth": (".pth", dict(ROWS)),
            "pickle as pth": (".pth", dict(ROWS)), "pkl": (".pkl", dict(ROWS)),
            "defaultdict": (".pth", defaultdict(list, {v: torch.from_numpy(o) for v, o in ROWS.items()})),
            "one pt": (".pt", a), "one pkl": (".pkl", a)}
    ending, value = many[what]
    path = folder/f"v{ending}"
    if "pickle" in what or "pkl" in what: path.write_bytes(pickle.dumps(value))
    else: torch.save(value, path, _use_new_zipfile_serialization=what != "old pth")
    source = folder if what.startswith("one") else path
    with pytest.raises(InputError, match="convert it first") as e: find_arrays(source)
    line = re.search(r"python -c .*", str(e.value))[0]
    subprocess.run(line.replace("python", sys.executable, 1), shell=True, check=True)
    if what.startswith("one"): same(taken(tmp_path, folder)[0], {"v": a})
    else: same(taken(tmp_path, folder/"v_tensors.pth")[0])


@pytest.mark.parametrize("value,says", [
    (torch.ones(3, 6), "must hold a dictionary of videos, not Tensor"),
    ({}, "must hold a dictionary"),
    ({"v": torch.ones(3)}, r"must be a matrix \[S,D\]"),
    ({"v": torch.ones(0, 6)}, "S > 0"),
    ({"v": torch.ones(2, 10, 6)}, r"not of shape \[2, 10, 6\]"),
    ({"v": torch.ones(3, 6).long()}, "must be floats, not int64"),
    ({"v": "text"}, "must be floats"),
    ({f"v{i}": torch.ones(500, 20 + i) for i in range(4)}, r"they look turned"),
])
def test_pth_of_wrong_shapes(tmp_path, value, says):
    torch.save(value, tmp_path/"x.pth")
    with pytest.raises(InputError, match=says): find_arrays(tmp_path/"x.pth")


def test_the_folder_instead_of_the_file(tmp_path):
    (tmp_path/"f").mkdir()
    torch.save({v: torch.from_numpy(a) for v, a in ROWS.items()}, tmp_path/"f"/"clip.pth")
    with pytest.raises(InputError, match="give this file and not its folder"): find_arrays(tmp_path/"f")
    (tmp_path/"g").mkdir()
    (tmp_path/"g"/"all.h5").write_bytes(b"")
    with pytest.raises(InputError, match="all.h5 in it is a source of its own"): find_arrays(tmp_path/"g")


def test_options_that_belong_to_arrays(tmp_path):
    for wrong in (dict(ids="x.json"), dict(key="rgb"), dict(stride=5)):
        code, _, err = call(sail_features, ["videos"], out=str(tmp_path/"s"), **wrong)
        assert code == 2 and "belongs to --arrays" in err


def test_one_bad_video_among_good_ones(tmp_path):
    "Exit code 1, the bad ones are named, the rest is done."
    good = {v: torch.from_numpy(a) for v, a in ROWS.items()}
    bad = dict(empty=torch.ones(0, 6), holes=torch.full((2, 6), torch.nan), whole=torch.ones(2, 6).int(),
               wide=torch.ones(2, 7), flat=torch.ones(6), huge=torch.full((2, 6), 1e300, dtype=torch.float64))
    torch.save({**good, **bad}, tmp_path/"x.pth")
    code, out, _ = take_over(tmp_path/"x.pth", tmp_path/"s", model="tsn")
    assert code == 1 and "3 videos done" in out and out.count("  failed: ") == len(bad)
    assert "widths differ: 6 (" in out and "no text tower: uniform and ilcacm can be trained" in out
    same(FeatureStore(tmp_path/"s"))
    rows = [json.loads(o) for o in (tmp_path/"s"/"failed.jsonl").read_text().splitlines()]
    assert sorted(o["id"] for o in rows) == sorted(bad)


@pytest.mark.parametrize("name,content,says", [
    ("x.pth", b"hello world" * 9, "is no file of torch.save"),
    ("x.pth", b"PK\3\4" + b"torn" * 99, "is damaged"),
    ("x.h5", b"no", "not an HDF5 file"),
    ("x.npz", b"PK\3\4", "is damaged"),
    ("x.mat", b"no", "neither a folder"),
    ("x.npy", b"no", "give the folder it is in"),
    ("x.pkl", pickle.dumps({}), "is a pickle, which is not read"),
])
def test_files_that_are_none(tmp_path, name, content, says):
    if name.endswith(".h5"): pytest.importorskip("h5py")
    (tmp_path/name).write_bytes(content)
    with pytest.raises(InputError, match=says) as e: find_arrays(tmp_path/name)
    assert "\n" not in str(e.value)


# -- ids

def test_ids_of_a_data_folder(tmp_path):
    "A store inside a data folder takes the annotations' ids by itself, and says how it matched them."
    data = annotations(tmp_path/"data")
    spelled = [f"{IDS[0][2:]}.mp4", f"0_{IDS[1]}", f"{IDS[2]}_clip"]
    torch.save({n: torch.from_numpy(a) for n, a in zip(spelled, ROWS.values())} | {"other": torch.ones(4, 6)},
               tmp_path/"x.pth")
    code, out, _ = take_over(tmp_path/"x.pth", data/"features", model="c3d")
    assert code == 0 and "3 of 4 names matched" in out and "not matched: other" in out
    same(FeatureStore(data/"features"))


def test_ids_that_do_not_match(tmp_path):
    data = annotations(tmp_path/"data")
    torch.save({"x1": torch.ones(4, 6), "x2": torch.ones(4, 6)}, tmp_path/"x.pth")
    code, _, err = take_over(tmp_path/"x.pth", data/"features", model="c3d")
    assert code == 2 and "none of x1, x2" in err and not (data/"features").exists()
    code, _, err = take_over(tmp_path/"x.pth", tmp_path/"s", ids=str(tmp_path/"nowhere.json"))
    assert code == 2 and "--ids" in err and "neither an annotation file nor a data folder" in err


def test_two_files_of_one_id(tmp_path):
    data = annotations(tmp_path/"data")
    for name in ("train/v.npy", "val/v.npy"): save(tmp_path/"sub"/name, ROWS[IDS[0]])
    with pytest.raises(InputError, match="two files of the name v"): find_arrays(tmp_path/"sub")
    for name in (f"{IDS[0]}.mp4.npy", f"{IDS[0]}_clip.npy"): save(tmp_path/"two"/name, ROWS[IDS[0]])
    with pytest.raises(InputError, match=f"would both be stored as '{IDS[0]}'"): find_arrays(tmp_path/"two")
    with pytest.raises(InputError, match="would both be"): find_arrays(tmp_path/"two", ids=data)


# -- rate, width and encoder

def test_rates(tmp_path):
    "Rows of videos of one length each; a fixed number of rows; too few a second."
    data = annotations(tmp_path/"data", seconds=2.)
    np.savez(tmp_path/"half.npz", **ROWS)
    found = find_arrays(tmp_path/"half.npz", ids=data)
    assert found.rate_note(.5) is None
    assert found.rate_note(1.) == "rows say 0.50 a second, --fps 1 was given"
    np.savez(tmp_path/"fixed.npz", **{v: np.ones((100, 6)) for v in ROWS})
    assert "100 rows, whatever its length" in find_arrays(tmp_path/"fixed.npz", ids=data).rate_note(1.)


@pytest.mark.parametrize("width,hint", [
    (500, "--model c3d"), (512, "--model ViT-B-32"), (1024, "--model i3d"), (2048, "resnet"), (3072, "tsn"),
    (4096, "C3D"), (333, "--model NAME")])
def test_a_width_that_is_not_the_models(tmp_path, width, hint):
    torch.save({"v": torch.ones(3, width)}, tmp_path/"x.pth")
    code, _, err = take_over(tmp_path/"x.pth", tmp_path/"s")
    assert code == 2 and f"{width} wide, those of ViT-L-14 768" in err and hint in err
    assert not (tmp_path/"s").exists()


def test_names_of_models(tmp_path, clip_folder):
    torch.save({"v": torch.ones(3, 512)}, tmp_path/"x.pth")
    found = find_arrays(tmp_path/"x.pth")
    about = dict(model="ViT-B-32", pretrained="openai", fps=1.0, dim=512)
    assert made_by(found, "ViT-B-32", "openai") == about
    assert made_by(found, "ViT-B-32", "none", fps=.5)["pretrained"] is None
    assert made_by(found, "tsp") == dict(model="tsp", pretrained=None, fps=1.0, dim=512, text_tower=False)
    near = "did you mean ViT-B-32"
    for wrong, says in (("ViT-B/32", near), ("ViT-B32", near), ("a/b", "neither")):
        with pytest.raises(InputError, match=says): made_by(found, wrong)
    with pytest.raises(InputError, match="neither a file nor weights of ViT-B-32"):
        made_by(found, "ViT-B-32", "no")
    with pytest.raises(InputError, match="its rows are 512 wide"): made_by(found, str(clip_folder))
    with pytest.raises(InputError, match="--fps 0"): made_by(found, "tsp", fps=0)
    with pytest.raises(InputError, match="--stride 0"): find_arrays(tmp_path/"x.pth", stride=0)


def test_features_without_a_text_tower(tmp_path, clip_folder):
    "Everything that would embed text says in one sentence that it cannot."
    data = annotations(tmp_path/"data")
    np.savez(tmp_path/"x.npz", **ROWS)
    assert take_over(tmp_path/"x.npz", data/"features", model="i3d")[0] == 0
    encoder = Encoder(str(clip_folder), device="cpu")
    for attempt, *args in ((made_with, data), (encode_texts, data, encoder), (open_store, data, "text")):
        with pytest.raises(InputError, match="made by i3d, which has no text tower"): attempt(*args)
    code, _, err = call(sail_features, [], texts=str(data))
    assert code == 2 and "train with --method ilcacm or uniform" in err
    code, out, _ = call(sail_check, str(data))
    assert code == 1 and "i3d has no text tower" in out and "ready for ilcacm, uniform" in out
    assert call(sail_check, str(data), method="ilcacm")[0] == 0
    assert "sail_features --texts" not in out and "sail_augment" not in out


# -- is a data folder ready?

@pytest.fixture
def ready(tmp_path, clip_folder):
    "A data folder with everything, of a small CLIP."
    data = tmp_path/"data"
    for i in range(3): write_clip(data_file(data, i), grey(20))
    record = dict(duration=4., sentences=["A man runs.", "He stops."], timestamps=[[0, 2], [1, 4]])
    annotated = {f"v{i}": record for i in range(3)}
    write_json(data/"annotations"/"train.json", {v: annotated[v] for v in ("v0", "v1")})
    write_json(data/"annotations"/"val.json", {"v2": annotated["v2"]})
    write_json(data/"synthetic.json", {"v0": ["He jumps."], "v1": [None]})
    made = dict(model=str(clip_folder), pretrained="none", device="cpu")
    assert call(sail_features, [str(data/"videos")], out=str(data/"features"), **made)[0] == 0
    assert call(sail_features, [], texts=str(data), **made)[0] == 0
    return data


def data_file(data, i):
    (data/"videos").mkdir(parents=True, exist_ok=True)
    return data/"videos"/f"v{i}.mp4"


def states(data):
    return {p.name: p.state for p in check_data(data).parts}


def test_a_folder_that_is_ready(ready):
    code, out, _ = call(sail_check, str(ready))
    assert code == 0 and set(states(ready).values()) == {"found"}
    assert "ready for sail, ilcacm, uniform, sail_plus" in out and "2 of 2 of train, 1 of 1 of val" in out
    uses = check_data(ready).commands
    assert {uses[c] for c in ("sail_predict", "sail_eval", "sail_report")} == {"ready"}
    assert "sail_train plain --data" in out and len(out.splitlines()) < 30


def test_a_folder_that_is_none(tmp_path):
    assert call(sail_check, str(tmp_path/"nowhere"))[0] == 2
    assert call(sail_check, str(tmp_path), method="best")[0] == 2
    code, out, _ = call(sail_check, str(tmp_path))
    assert code == 1 and "sail_train" in out and "not ready" in out


def test_captions_that_have_changed(ready):
    path = ready/"annotations"/"train.json"
    value = json.loads(path.read_text())
    value["v1"]["sentences"][0] = "A dog runs."
    path.write_text(json.dumps(value))
    report = check_data(ready)
    assert states(ready)["text"] == "wrong" and not report.ready() and report.ready("ilcacm")
    assert any("captions of 1 videos have changed since (v1)" in line for line in report.lines())
    assert any(f"sail_features --texts {ready}" in line for line in report.lines())


def test_parts_that_do_not_fit(ready):
    FeatureStore.create(ready/"other", model="ViT-L-14", dim=768)
    (ready/"text").rename(ready/"old")
    (ready/"other").rename(ready/"text")
    write_json(ready/"synthetic.json", {"v0": ["He jumps.", "He lands."]})
    words = {p.name: p.words for p in check_data(ready).parts}
    assert "dim is 768, that of the features" in words["text"]
    assert "not as many gaps as captions have: v0" in words["synthetic.json"]


def test_ids_in_another_spelling(ready):
    path = ready/"annotations"/"train.json"
    path.write_text(json.dumps({f"v_{v}": o for v, o in json.loads(path.read_text()).items()}))
    words = {p.name: p.words for p in check_data(ready).parts}
    assert "0 of 2 of train (without: v_v0, v_v1)" in words["features"]
    assert "2 would match in another spelling" in words["features"] and not check_data(ready).ready("uniform")


def test_damaged_and_disordered(ready):
    (ready/"annotations"/"val.json").write_text("{")
    path = ready/"annotations"/"train.json"
    value = json.loads(path.read_text())
    value["v0"]["timestamps"] = [[3, 4], [0, 1]]
    path.write_text(json.dumps(value))
    next((ready/"text"/"shards").iterdir()).write_bytes(b"torn")
    (ready/"synthetic.json").write_text("[]")
    report = check_data(ready)
    words = {p.name: p.words for p in report.parts}
    wrong = [name for name, state in states(ready).items() if state == "wrong"]
    assert wrong == ["annotations/val.json", "synthetic.json", "text"]
    assert "1 videos with captions out of order" in words["annotations/train.json"]


def test_untimed_annotations(ready):
    "Captions alone are enough to train on."
    for split in ("train", "val"):
        path = ready/"annotations"/f"{split}.json"
        value = {v: {"sentences": o["sentences"]} for v, o in json.loads(path.read_text()).items()}
        path.write_text(json.dumps(value))
    report = check_data(ready)
    assert report.ready() and report.commands["sail_eval"] == "needs val with time stamps"
    assert report.commands["sail_predict"] == "ready"                           # rows tell the durations


@pytest.mark.slow
def test_the_command_as_a_process(tmp_path):
    "Under python -m, with a missing folder."
    args = [sys.executable, "-m", "sail_nbdev.commands", "sail_check", str(tmp_path/"no")]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 2 and "no such folder" in done.stderr and "Traceback" not in done.stderr
    assert Path(args[0]).exists()
