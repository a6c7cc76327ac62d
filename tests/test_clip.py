"The encoder: its preprocessing, published architectures, half precision, weights that cannot be had."
import time

import numpy as np
import pytest
import torch
from clips import noise

from sail_nbdev.clip import Encoder
from sail_nbdev.core import InputError

torch.set_num_threads(1)


@pytest.mark.parametrize("size", [(240, 320), (91, 57), (32, 32), (20, 300)])
def test_preprocessing_is_the_model_s_own(clip_folder, size):
    "Within three grey levels of open_clip's own, and a tenth of one in the mean."
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image
    encoder = Encoder(str(clip_folder), device="cpu")
    settings = encoder.model.visual.preprocess_cfg
    own = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    frames = noise(1, 3, *size)
    std = torch.tensor(settings["std"]).view(3, 1, 1)
    wanted = torch.stack([own(Image.fromarray(f)) for f in frames])
    levels = (encoder.prepare(frames) - wanted).abs() * std * 255
    assert levels.max() < 3.01 and levels.mean() < .1


def test_true_architecture_with_random_weights():
    "A published architecture, no download: two builds give the same weights, and the meta says so."
    a = Encoder("ViT-S-32-alt", "none", device="cpu")
    b = Encoder("ViT-S-32-alt", None, device="cpu")
    assert a.meta == b.meta and a.meta["pretrained"] is None and a.dim == 256
    frames = noise(0, 2, 60, 80)
    assert torch.equal(a.images(frames), b.images(frames)) and a.images(frames).shape == (2, 256)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
def test_half_precision(clip_folder, dtype):
    "The towers in half precision give nearly the same directions, in fp32, and say what they are."
    frames = noise(0, 5, 60, 80)
    words = ["A ball rolls.", "It stops."]
    whole = Encoder(str(clip_folder), device="cpu")
    half = Encoder(str(clip_folder), device="cpu", dtype=dtype)
    for a, b in ((whole.images(frames), half.images(frames)), (whole.texts(words), half.texts(words))):
        assert a.dtype == b.dtype == torch.float32 and not torch.equal(a, b)
        assert torch.cosine_similarity(a, b).min() > .999
    assert half.meta["precision"] == ("fp16" if dtype == "float16" else "bf16")
    assert half.build["dtype"] == str(dtype)


def test_openai_weights_get_their_activation(monkeypatch):
    "open_clip only warns that OpenAI's weights need QuickGELU; here the model is built with it."
    import open_clip
    seen = {}
    def create(name, **options):
        seen.update(options, name=name)
        raise RuntimeError("enough seen")
    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for tag, quick in (("openai", True), ("laion2b_s32b_b82k", False)):
        with pytest.raises(InputError):
            Encoder("ViT-L-14", tag, device="cpu")
        assert seen["force_quick_gelu"] is quick


def test_no_hub_is_one_sentence_and_quick(monkeypatch, tmp_path):
    import huggingface_hub.constants as hub
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    begin = time.time()
    with pytest.raises(InputError, match="neither in the local cache nor can be fetched.*--pretrained FILE"):
        Encoder("ViT-B-32", "openai", device="cpu")
    assert time.time() - begin < 20 and hub.HF_HUB_OFFLINE is False


def test_bad_weights_file(tmp_path):
    (tmp_path/"w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be loaded"):
        Encoder("ViT-B-32", str(tmp_path/"w.safetensors"), device="cpu")


def test_wrong_frames_are_named(clip_folder):
    encoder = Encoder(str(clip_folder), device="cpu")
    with pytest.raises(InputError, match="frames"):
        encoder.images(np.zeros((2, 3, 8, 8), np.float32))
