"""What runs on the CPU runs on a GPU: each method trains, writes and predicts there as here, and waits as
seldom as on the second device in Python; runs of every precision, compiled or not, are gone on with; videos
are decoded and frames encoded. Without a CUDA device all of it is skipped."""
import numpy as np
import pytest
import torch
from clips import grey, noise, write_clip
from counting import waits_of
from run_elsewhere import CAPTIONS, CASES, SMALL, Run, farthest
from test_data import data_folder
from test_train import log, tiny

from sail_nbdev.captioner import train_tokenizer
from sail_nbdev.clip import Encoder
from sail_nbdev.config import METHODS, Config
from sail_nbdev.core import InputError, read_json
from sail_nbdev.model import Sail
from sail_nbdev.train import load_training_data, train
from sail_nbdev.video import iter_frames

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
QUIET = dict(device="cuda", progress=False)


class GpuRun(Run):
    "The same, with torch's own count of waits."
    def counted(self, name, f):
        result, self.waits[name] = waits_of(f)
        return result


@pytest.fixture(scope="module")
def tokenizer(): return train_tokenizer(sum(CAPTIONS, []) * 3, 400)


@pytest.fixture(scope="module")
def data(tmp_path_factory): return data_folder(tmp_path_factory.mktemp("data"), lambda n: None)


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_computes_what_the_cpu_computes_and_seldom_waits(tokenizer, case):
    method, changes = CASES[case]
    config = Config.preset("toy", method, SMALL | changes)
    here = Run("cpu", config, tokenizer)
    there = GpuRun("cuda", config, tokenizer)
    losses, weights = here.updates()
    losses_there, weights_there = there.updates()
    assert max(abs(a[k] - b[k]) for a, b in zip(losses, losses_there) for k in a) < 1e-4
    assert farthest(weights, weights_there) < 1e-5
    texts, _ = here.texts()
    texts_there, tokens = there.texts()
    assert texts_there == texts
    for row, row_there in zip(here.predictions()[0], there.predictions()[0]):
        assert [e[0] for e in row_there] == [e[0] for e in row]
        np.testing.assert_allclose([e[1:] for e in row_there], [e[1:] for e in row], atol=.0101)
    assert there.waits["stage 1"] <= 1 and there.waits["stage 2"] <= 1
    assert 8 * there.waits["generation"] <= tokens
    assert there.waits["prediction"] <= 2 + 4 and there.waits["counting"] <= 4


def test_torch_counts_waits():
    x = torch.ones(3, device="cuda")
    assert waits_of(lambda: x.sum().item())[1] == 1
    assert waits_of(lambda: x * 2 + 1)[1] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_that_of_the_cpu(data, tmp_path, method):
    found = {}
    for name, device in (("here", "cpu"), ("there", "cuda")):
        config = tiny(method, captioner__dropout=0., localizer__dropout=0.)
        model = train(config, data, tmp_path/name, device=device, progress=False)
        found[name] = log(tmp_path/name)
        assert next(model.parameters()).device.type == device
    assert read_json(tmp_path/"there"/"run.json")["device"] == torch.cuda.get_device_name()
    for a, b in zip(found["here"], found["there"], strict=True):
        assert b["total"] == pytest.approx(a["total"], rel=2e-3)
    frames = torch.randn(3, 9, 12)
    with torch.no_grad():
        here, there = (Sail.from_pretrained(tmp_path/"there").to(d).eval() for d in ("cpu", "cuda"))
        valid = torch.ones(3, 2, dtype=torch.bool)
        for a, b in zip(here.place(frames, valid), there.place(frames.cuda(), valid.cuda())):
            torch.testing.assert_close(b.cpu(), a, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision,near", [("no", 1e-3), ("bf16", .1), ("fp16", .02)])
def test_every_precision_is_gone_on_with(data, tmp_path, precision, near):
    "Stage 1, then stage 2 from the checkpoint; the losses are about those of one go in fp32."
    plain = tiny("sail_plus", captioner__dropout=0., localizer__dropout=0., train__precision="no")
    train(plain, data, tmp_path/"plain", **QUIET)
    config = plain.changed({"train.precision": precision})
    train(config, data, tmp_path/"run", last_stage=1, **QUIET)
    train(config, data, tmp_path/"run", resume=True, **QUIET)
    rows = [row for row in log(tmp_path/"run") if "total" in row]
    wanted = {row["step"]: row["total"] for row in log(tmp_path/"plain")}
    assert len(rows) >= len(wanted) - 2          # fp16 may skip updates while it finds its scale
    for row in rows: assert row["total"] == pytest.approx(wanted[row["step"]], rel=near)


def test_compiled_layers_compute_the_same(data, tmp_path):
    config = tiny(captioner__dropout=0., localizer__dropout=0.)
    for compile in (False, True): train(config, data, tmp_path/str(compile), compile=compile, **QUIET)
    for a, b in zip(log(tmp_path/"False"), log(tmp_path/"True"), strict=True):
        assert b["total"] == pytest.approx(a["total"], rel=1e-3)


def test_data_in_memory_go_where_training_is(data, tmp_path):
    config = tiny(captioner__dropout=0., localizer__dropout=0.)
    train(config, data, tmp_path/"folder", **QUIET)
    here = load_training_data(data, config, "cpu")
    train(config, here, tmp_path/"memory", **QUIET)
    assert here.frames.device.type == "cpu"
    for a, b in zip(log(tmp_path/"folder"), log(tmp_path/"memory"), strict=True):
        assert b["total"] == pytest.approx(a["total"], rel=1e-3)


def test_more_processes_than_gpus_is_one_sentence(data, tmp_path, monkeypatch):
    for name, value in {"WORLD_SIZE": "64", "LOCAL_RANK": "63"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="needs a GPU of its own"):
        train(tiny(), data, tmp_path/"run", **QUIET)


def test_frames_are_encoded_as_on_the_cpu(clip_folder):
    frames = noise(0, 5, 60, 80)
    here, there = (Encoder(str(clip_folder), device=d) for d in ("cpu", "cuda"))
    torch.testing.assert_close(there.images(frames).cpu(), here.images(frames), atol=1e-4, rtol=0)
    words = ["A ball rolls.", "It stops."]
    torch.testing.assert_close(there.texts(words).cpu(), here.texts(words), atol=1e-4, rtol=0)


def test_videos_are_decoded_as_on_the_cpu(clip_folder, tmp_path):
    path = write_clip(tmp_path/"v.mp4", grey(30, 144, 256))
    try: there = list(iter_frames(path, 2., "cuda"))
    except InputError as e:
        if "needs torchcodec" not in str(e): raise
        pytest.skip(str(e))
    here = list(iter_frames(path, 2.))
    assert [t for t, _ in there] == [t for t, _ in here]
    assert all(frame.is_cuda and frame.dtype == torch.uint8 for _, frame in there)
    for (_, a), (_, b) in zip(here, there): assert np.abs(a - b.cpu().numpy().astype(float)).max() < 4
    encoder = Encoder(str(clip_folder), device="cuda")
    rows = encoder.images(torch.stack([frame for _, frame in there]))
    cosines = torch.cosine_similarity(rows, encoder.images(np.stack([frame for _, frame in here])))
    assert cosines.min() > .99
