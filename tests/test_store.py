"The feature store: several processes, kills, other encoders, a cluster, features of others, and the command."
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import grey, noise, write_clip

from sail_nbdev.clip import Encoder
from sail_nbdev.core import InputError
from sail_nbdev.store import Encoded, FeatureStore, encode_captions, extract
from sail_nbdev.video import decode_video

torch.set_num_threads(1)
SIGNALS = signal.SIGKILL, signal.SIGINT, signal.SIGTERM


def command(*args):
    "`sail_features` as a process."
    return [sys.executable, "-m", "sail_nbdev.commands", "sail_features", *map(str, args)]


def run(*args, cwd=None, **env):
    return subprocess.run(command(*args), capture_output=True, text=True, cwd=cwd, env={**os.environ, **env})


# -- several processes

FILL = """
import sys, numpy as np
from sail_nbdev.store import FeatureStore
store = FeatureStore.create(sys.argv[1], dim=4)
for i in range(40): store.add(f"v{i}", np.full((200, 4), i, np.float32))
"""

WRITE_ON = """
import itertools, sys, numpy as np
from sail_nbdev.store import FeatureStore
store = FeatureStore.create(sys.argv[1], dim=512)
for k in itertools.count():
    store.add(f"v{k % 3}", np.full((4000, 512), k, np.float32))
    print(k, flush=True)
"""


@pytest.mark.slow
def test_several_writers_at_once(tmp_path):
    "Four processes fill one store, all of them write all ids; every file is whole."
    writers = [subprocess.Popen([sys.executable, "-c", FILL, tmp_path/"s"]) for _ in range(4)]
    assert [p.wait(300) for p in writers] == [0] * 4
    store = FeatureStore(tmp_path/"s")
    assert len(store) == 40 and store.verify() == []
    assert all(float(store[f"v{i}"].mean()) == i for i in range(40))


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_files(tmp_path):
    "A process that writes one id again and again is killed at five different moments."
    for i in range(5):
        p = subprocess.Popen([sys.executable, "-c", WRITE_ON, tmp_path/"s"], stdout=subprocess.PIPE)
        p.stdout.readline()
        time.sleep(.013 * i)
        os.kill(p.pid, signal.SIGKILL)
        p.wait()
        store = FeatureStore(tmp_path/"s")
        assert len(store) == len(store.ids()) >= 1 and store.verify() == []


def test_store_json_that_is_not_one(tmp_path):
    for text, says in (('{"a": 1}', "not the description of a feature store"), ('{"a', "not JSON")):
        (tmp_path/"store.json").write_text(text)
        with pytest.raises(InputError, match=says):
            FeatureStore(tmp_path)


# -- extraction

def test_captions_store_refuses_another_encoder(clip_folder, tmp_path):
    encoder = Encoder(str(clip_folder), device="cpu")
    store = FeatureStore.create(tmp_path/"t", **{**encoder.meta, "weights": "0" * 16})
    with pytest.raises(InputError, match="weights="):
        encode_captions({"v": ["A ball rolls."]}, store, encoder)


def test_extract_of_many_small_clips(clip_folder, tmp_path):
    "Forty clips of three sizes, two of them broken: every store entry equals a plain encode."
    encoder = Encoder(str(clip_folder), device="cpu")
    def clip(i): return write_clip(tmp_path/f"v{i}.mp4", noise(i, 10 + i, 32, 32 + 16 * (i % 3)))
    jobs = {f"v{i}": clip(i) for i in range(40)}
    jobs["v7"].write_bytes(b"broken")
    jobs["v23"].unlink()
    store = FeatureStore.create(tmp_path/"s", **encoder.meta, fps=4.0)
    result = extract(jobs, store, encoder, fps=4.0, workers=3, batch_size=16, progress=False)
    assert set(result["failed"]) == {"v7", "v23"} and len(store) == 38 and store.verify() == []
    logged = [json.loads(line) for line in (tmp_path/"s"/"failed.jsonl").read_text().splitlines()]
    assert {o["id"] for o in logged} == {"v7", "v23"}
    for i in set(jobs) - {"v7", "v23"}:
        assert torch.allclose(store[i], encoder.images(decode_video(jobs[i], 4.0)[0]), atol=1e-5)
    assert extract(jobs, store, encoder, fps=4.0, progress=False)["done"] == []


def test_another_video_of_a_name_that_is_taken(clip_folder, tmp_path):
    "train/ and val/ with one stem: both are named and nothing is replaced; a moved video is known again."
    encoder = Encoder(str(clip_folder), device="cpu")
    for folder in ("train", "val", "moved"): (tmp_path/folder).mkdir()
    train = write_clip(tmp_path/"train"/"v.mp4", grey(20))
    val = write_clip(tmp_path/"val"/"v.mp4", grey(30))
    store = FeatureStore.create(tmp_path/"s", **encoder.meta, fps=1.0)
    def do(path, expected):
        result = extract([path], store, encoder, progress=False)
        assert [k for k, v in result.items() if v] == [expected], result
        return result
    do(train, "done")
    shard = store._file("v")
    before = shard.read_bytes()
    why = do(val, "failed")["failed"]["v"]
    assert str(train) in why and str(val) in why and "rename one of them" in why
    same_size = tmp_path/"val"/"v.mkv"
    same_size.write_bytes(train.read_bytes()[:-1] + b"x")
    do(same_size, "failed")
    do(train.rename(tmp_path/"moved"/"v.mp4"), "skipped")
    assert "delete" in do(val, "failed")["failed"]["v"]
    assert shard.read_bytes() == before
    shard.unlink()
    do(val, "done")
    write_clip(val, grey(40))
    do(val, "done")                                     # it has changed at its place
    assert store.shape("v")[0] == 4


def test_stores_of_before_know_sizes_alone(clip_folder, tmp_path):
    encoder = Encoder(str(clip_folder), device="cpu")
    video = write_clip(tmp_path/"v.mp4", grey(20))
    store = FeatureStore.create(tmp_path/"s", **encoder.meta, fps=1.0)
    rows = np.ones((2, encoder.dim), np.float32)
    store.add("v", rows, f"{video.stat().st_size} bytes")
    assert extract([video], store, encoder, progress=False)["skipped"] == ["v"]
    store.add("v", rows, "12 bytes")
    assert extract([video], store, encoder, progress=False)["done"] == ["v"]


def test_a_shard_under_another_name_is_made_again(clip_folder, tmp_path):
    encoder = Encoder(str(clip_folder), device="cpu")
    jobs = [write_clip(tmp_path/f"{v}.mp4", noise(i, 30, 32, 32)) for i, v in enumerate("ab")]
    store = FeatureStore.create(tmp_path/"s", **encoder.meta, fps=1.0)
    extract(jobs, store, encoder, progress=False)
    a, b = (store._file(v) for v in "ab")
    right = b.read_bytes()
    b.write_bytes(a.read_bytes())
    with pytest.raises(InputError, match="holds the features of 'a'"): store.source("b")
    assert extract(jobs, store, encoder, progress=False)["done"] == ["b"]
    assert b.read_bytes() == right and store.verify() == []


def test_two_commands_at_once_do_not_take_each_other_s_names(tmp_path):
    "Both asked when neither had stored anything: the second to come is refused."
    store = FeatureStore.create(tmp_path/"s", dim=4)
    rows = np.ones((3, 4), np.float32)
    paths = tmp_path/"a.mp4", tmp_path/"b.mp4"
    for path in paths: path.write_bytes(b"x")
    store.take("v", Encoded(rows, 3., "1 bytes, a"), paths[0])
    with pytest.raises(InputError, match="a.mp4; rename one of them"):
        store.take("v", Encoded(2 * rows, 3., "1 bytes, b"), paths[1])
    assert float(store["v"].max()) == 1


def test_an_encoder_that_fails_stops_the_decoders(clip_folder, tmp_path):
    "An error of ours is not swallowed, and no thread is left behind it."
    encoder = Encoder(str(clip_folder), device="cpu")
    jobs = [write_clip(tmp_path/f"v{i}.mp4", grey(50)) for i in range(12)]
    store = FeatureStore.create(tmp_path/"s", **encoder.meta, fps=25.0)
    before = threading.active_count()
    def broken(*_): raise ZeroDivisionError
    encoder.encode_prepared = broken
    with pytest.raises(ZeroDivisionError):
        extract(jobs, store, encoder, fps=25.0, workers=2, batch_size=8, progress=False)
    assert threading.active_count() == before


# -- the command

@pytest.mark.slow
def test_command(clip_folder, tmp_path):
    videos = tmp_path/"videos"
    (videos/"more").mkdir(parents=True)
    for path in (*(videos/f"v{i}.mp4" for i in range(3)), videos/"more"/"w.mkv"):
        write_clip(path, grey(30))
    (videos/"bad.mp4").write_bytes(b"no")
    made = ("--out", "store", "--model", clip_folder, "--device", "cpu")
    r = run("videos", *made, "--pretrained", "none", cwd=tmp_path)
    assert r.returncode == 1 and "4 videos done" in r.stdout and "bad.mp4: not a video" in r.stdout, r
    assert FeatureStore(tmp_path/"store").ids() == ["v0", "v1", "v2", "w"]
    (videos/"bad.mp4").unlink()
    r = run("videos/*.mp4", "videos/more", *made, cwd=tmp_path)
    assert r.returncode == 0 and "0 videos done, 4 were there already" in r.stdout, r
    r = run("videos", *made, "--fps", 2, cwd=tmp_path)
    assert r.returncode == 2 and "fps=1.0, not 2.0" in r.stderr and "Traceback" not in r.stderr
    r = run("nowhere", "--out", "store", cwd=tmp_path)
    assert r.returncode == 2 and r.stderr.strip() == "sail_features: nowhere: no such file or folder"


def same_store(a, b):
    files = [{f.name: f.read_bytes() for f in (s/"shards").glob("*.safetensors")} for s in (a, b)]
    assert files[0] and files[0] == files[1]
    assert (a/"store.json").read_bytes() == (b/"store.json").read_bytes()


def killed_after(n, args, store, how=signal.SIGKILL):
    "The command, ended by a signal once the store has n more files than before."
    files = len(list(store.glob("shards/*.safetensors"))) + n
    p = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 60
    while p.poll() is None and time.time() < end and len(list(store.glob("shards/*.safetensors"))) < files:
        time.sleep(.002)
    p.send_signal(how)
    return p.wait()


@pytest.mark.slow
def test_killed_and_continued(clip_folder, tmp_path):
    "Killed, interrupted, told to end: what is stored is whole, and in the end the store of a run left alone."
    times = 10 if os.environ.get("SAIL_NIGHT") else 3
    for i in range(8 * times):
        write_clip(tmp_path/f"v{i:02}.mp4", noise(i, 300, 64, 64))
    made = ("--model", clip_folder, "--pretrained", "none", "--device", "cpu", "--workers", 1)
    args = command(f"{tmp_path}/v*.mp4", *made)
    subprocess.run([*args, "--out", tmp_path/"alone"], check=True, capture_output=True)
    store = tmp_path/"killed"
    counts = []
    for i in range(times):
        code = killed_after(3, [*args, "--out", store], store, SIGNALS[i % 3])
        assert code in (-signal.SIGKILL, 130, -signal.SIGTERM), code
        assert FeatureStore(store).verify() == []
        counts.append(len(FeatureStore(store)))
    assert counts == sorted(counts) and 3 <= counts[0] < counts[-1] < 8 * times
    subprocess.run([*args, "--out", store], check=True, capture_output=True)
    same_store(tmp_path/"alone", store)


# -- a cluster

@pytest.fixture
def cluster():
    "Two nodes on this machine."
    pytest.importorskip("ray", reason="Ray is not installed (extra scale)")
    from ray.cluster_utils import Cluster
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10 ** 8}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1, object_store_memory=10 ** 8)
    yield nodes
    nodes.shutdown()


@pytest.mark.slow
def test_ray_on_two_nodes_makes_the_same_store(clip_folder, tmp_path, cluster):
    "One process on each node, one bad video among twenty; a second call has nothing to do."
    for i in range(20):
        write_clip(tmp_path/f"v{i:02}.mp4", noise(i, 20 + 7 * i, 48, 64))
    (tmp_path/"v07.mp4").write_bytes(b"no video")
    model = ("--model", clip_folder, "--pretrained", "none", "--device", "cpu")
    made = (f"{tmp_path}/v*.mp4", *model, "--fps", 4)
    far = tmp_path/"far"
    asked = (*made, "--out", far, "--engine", "ray", "--workers", 2)
    first = run(*asked, RAY_ADDRESS=cluster.address)
    second = run(*asked, RAY_ADDRESS=cluster.address)
    near = run(*made, "--out", tmp_path/"near")
    assert near.returncode == first.returncode == 1, first
    assert "19 videos done, 0 were there already, 1 failed" in first.stdout, first
    assert "0 videos done, 19 were there already, 1 failed" in second.stdout
    same_store(tmp_path/"near", far)
    assert (tmp_path/"near"/"failed.jsonl").read_bytes() == (far/"failed.jsonl").read_bytes()


def test_a_cluster_machine_with_another_encoder_adds_nothing(clip_folder, tmp_path):
    "Its videos fail with the reason; what one process of the cluster does is looked at without the cluster."
    from sail_nbdev.store import _RayWorker
    path = write_clip(tmp_path/"v.mp4", grey(10))
    rows = {"id": np.array(["v"]), "path": np.array([str(path)])}
    settings = dict(fps=1.0, workers=1, batch_size=4, decode="cpu")
    encoder = Encoder(str(clip_folder), device="cpu")
    def worker(folder): return _RayWorker(str(folder), encoder.build, settings)
    other = FeatureStore.create(tmp_path/"s", **{**encoder.meta, "weights": "0" * 16}, fps=1.0)
    answer = worker(other.folder)(rows)
    reason = answer["reason"][0]
    assert answer["id"].tolist() == ["v"] and reason.startswith("on ") and "weights=" in reason
    assert len(other) == 0
    assert "is not a feature store" in worker(tmp_path/"nowhere")(rows)["reason"][0]
    good = FeatureStore.create(tmp_path/"g", **encoder.meta, fps=1.0)
    assert worker(good.folder)(rows)["reason"].tolist() == [""] and len(good) == 1


@pytest.mark.slow
def test_engines_that_are_not_there(clip_folder, tmp_path):
    video = write_clip(tmp_path/"v.mp4", grey(10))
    asked = (video, "--model", clip_folder, "--pretrained", "none", "--device", "cpu", "--out", tmp_path/"s")
    r = run(*asked, "--engine", "spark")
    assert r.returncode == 2 and not (tmp_path/"s").exists()
    assert r.stderr.strip() == "sail_features: --engine spark: is not one of local, ray"
    pytest.importorskip("ray", reason="Ray is not installed (extra scale)")
    r = run(*asked, "--engine", "ray", RAY_ADDRESS="127.0.0.1:9")
    assert r.returncode == 2 and "Traceback" not in r.stderr, r.stderr[-2000:]
    assert "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9" in r.stderr


# -- features that others made

@pytest.fixture
def arrays(tmp_path):
    "A folder of .npy, and the same in one HDF5 file, some nested, one with two data sets."
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    made = {f"v_{i}": rng.normal(size=(5 + i, 6)).astype(np.float32) for i in range(4)}
    (tmp_path/"npy").mkdir()
    for v, a in made.items():
        np.save(tmp_path/"npy"/f"{v}.npy", a)
    with h5py.File(tmp_path/"all.h5", "w") as f:
        for v in ("v_0", "v_1"):
            f[v] = made[v]
        f["v_2/c3d_features"] = made["v_2"]                 # as ActivityNet's C3D features were handed round
        f["v_3/a"] = made["v_3"]
        f["v_3/b"] = made["v_3"]
    return made


@pytest.mark.slow
def test_arrays_of_a_folder(tmp_path, arrays):
    r = run("--arrays", tmp_path/"npy", "--out", tmp_path/"one", "--model", "c3d")
    assert r.returncode == 0 and "4 videos done" in r.stdout, r.stderr
    store = FeatureStore(tmp_path/"one")
    assert store.meta == dict(model="c3d", pretrained=None, fps=1.0, dim=6, text_tower=False)
    assert store.verify() == []
    for v, a in arrays.items():
        np.testing.assert_array_equal(store[v].numpy(), a)
    r = run("--arrays", tmp_path/"npy", "--out", tmp_path/"one", "--model", "c3d", "--fps", 2)
    assert r.returncode == 2 and "made with fps=1.0, not 2.0" in r.stderr


def test_arrays_of_one_h5_file(tmp_path, arrays):
    r = run("--arrays", tmp_path/"all.h5", "--out", tmp_path/"two", "--model", "c3d")
    assert r.returncode == 1 and "v_3: holds 2 arrays (a, b)" in r.stdout, r.stdout + r.stderr
    for v in ("v_0", "v_1", "v_2"):
        np.testing.assert_array_equal(FeatureStore(tmp_path/"two")[v].numpy(), arrays[v])
    assert "v_3" in (tmp_path/"two"/"failed.jsonl").read_text()


@pytest.mark.slow
def test_arrays_that_are_none(tmp_path):
    (tmp_path/"empty").mkdir()
    for wrong, says in ((tmp_path/"nowhere", "neither a folder"), (tmp_path/"empty", "no .npy, .npz")):
        r = run("--arrays", wrong, "--out", tmp_path/"three")
        assert r.returncode == 2 and says in r.stderr and not (tmp_path/"three").exists()
    pytest.importorskip("h5py")
    (tmp_path/"bad.h5").write_bytes(b"not hdf5")
    assert "not an HDF5 file" in run("--arrays", tmp_path/"bad.h5", "--out", tmp_path/"three").stderr


def test_stored_by_the_installed_command(clip_folder, tmp_path):
    "The console script is there and does the same."
    video = write_clip(tmp_path/"v.mp4", grey(30))
    script = Path(sys.executable).parent/"sail_features"
    args = (video, "--model", clip_folder, "--pretrained", "none", "--device", "cpu", "--out", tmp_path/"s")
    done = subprocess.run([script, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0 and "1 videos done" in done.stdout, done
