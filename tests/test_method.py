"The method against oracles: plain loops written from the equations, AdamW by hand, the published sizes, and what a wrong setting is told."
import functools
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sail_nbdev.captioner import EOS, FULL, MASK, PAD, train_tokenizer
from sail_nbdev.core import Config, InputError, Video, load_config, save_config
from sail_nbdev.data import Batch, DeviceData, derive_settings, read_annotations
from sail_nbdev.masks import cauchy_mask, gaussian_mask, hard_mask, uniform_layout
from sail_nbdev.model import Sail, load_weights
from sail_nbdev.train import lr_factor, train

ROOT = Path(__file__).resolve().parents[1]
ANNOTATIONS = ROOT.parent/"shared"/"data"/"annotations"
CAPTIONS = [["A man walks in.", "He sits down at a table.", "He plays the guitar."], ["A cat sleeps."], ["A ball rolls.", "It stops."],
            ["One.", "Two men.", "Three men run.", "Four of them fall.", "They get up again."]]
SMALL = dict(feature_dim=12, d_model=16, n_heads=2, encoder_ffn=24, localizer_ffn=24, decoder_width=20, decoder_heads=2, n_frames=9, n_queries=6, max_captions=6)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(sum(CAPTIONS, []), 400)


def ragged(config, seed=0):
    "A batch of 3, 1, 2 and 5 captions, some gaps without a synthetic caption, in fp64."
    g = torch.Generator().manual_seed(seed)
    B, N, T, D = len(CAPTIONS), max(map(len, CAPTIONS)), config.n_frames, config.feature_dim
    valid = torch.arange(N) < torch.tensor([len(c) for c in CAPTIONS])[:, None]
    has = valid[:, 1:].clone()
    has[0, 1] = has[2, 0] = False
    def draw(*shape): return torch.randn(*shape, D, generator=g, dtype=torch.float64)
    return Batch(list("abcd"), CAPTIONS, draw(B, T), valid, draw(B, N), draw(B, N - 1), has)


def model_for(tokenizer, method="sail", **settings):
    torch.manual_seed(1)
    return Sail(Config.preset("toy", method, **SMALL, **settings), tokenizer).double().eval()


# -- plain loops, one video and one event at a time, numbers instead of tensors

def bell(r, c, w, tau=2.):
    return math.exp(-(r - c)**2 / (2 * (w / tau)**2))


def mask_row(c, w, T, family="gaussian", tau=2.):
    r = [i / (T - 1) for i in range(T)]
    if family == "gaussian": return [bell(x, c, w, tau) for x in r]
    if family == "hard":
        nearest = min(abs(x - c) for x in r)
        return [1. if abs(x - c) < w / 2 or abs(x - c) == nearest else 0. for x in r]
    s = w / tau
    m = [s / (math.pi * ((x - c)**2 + s**2)) for x in r]
    return [x / max(m) for x in m]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def pooled(frames, mask):
    return [sum(m * f[d] for m, f in zip(mask, frames)) / len(frames) for d in range(len(frames[0]))]


def loop_guides(model, batch, negatives=False):
    "L_div, L_sim and L_aug from the equations."
    c, out = model.config, dict(div=0., sim=0., aug=0.)
    centers, widths = model.localizer(batch.frames, batch.valid)
    for b, captions in enumerate(batch.captions):
        n, B = len(captions), len(batch.captions)
        frames, texts, synthetic = (x[b].tolist() for x in (batch.frames, batch.texts, batch.synthetic_texts))
        at = list(zip(centers[b].tolist(), widths[b].tolist()))[:n]
        masks = [mask_row(*p, c.n_frames, c.mask) for p in at]
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
        if pairs: out["div"] += sum(max(0., cosine(masks[i], masks[j]) - c.div_gamma) for i, j in pairs) / len(pairs) / B
        extra = [synthetic[i] for i in range(n - 1) if batch.inter_valid[b, i]]
        for i in range(n if n > 1 else 0):
            others = [texts[j] for j in range(n) if j != i] + (extra if negatives else [])
            v = pooled(frames, masks[i])
            out["sim"] += max(0., c.sim_margin - cosine(v, texts[i]) + max(cosine(v, o) for o in others)) / n / B
        for i in range(n - 1):
            if not batch.inter_valid[b, i]: continue
            m = mask_row((at[i][0] + at[i + 1][0]) / 2, c.inter_width, c.n_frames, c.mask)
            out["aug"] += (1 - cosine(pooled(frames, m), synthetic[i])) / len(extra) / B
    return out


def loop_captions(model, frames, mode, sentences):
    "Sum of -log p and number of tokens of one text, one token at a time from the logits of the whole sequence."
    cap, tok = model.captioner, model.captioner.tokenizer
    body = [t for s in sentences for t in tok.encode(s + " ").ids]
    text = [cap.ids[mode], *tok.encode(f"{len(sentences)} events: ").ids, *(body[:-1] if mode == FULL else body), cap.ids[EOS]]
    video = cap.encoder(frames[None])
    logits = cap.decoder(inputs_embeds=torch.cat([video, cap.decoder.transformer.wte(torch.tensor([text]))], 1)).logits[0]
    T = frames.shape[0]
    return sum(-torch.log_softmax(logits[T + k - 1], -1)[text[k]].item() for k in range(1, len(text))), len(text) - 1


def loop_caption_losses(model, batch):
    "L_full, L_pos and L_neg: token means over every text of the batch."
    sums = {k: np.zeros(2) for k in ("full", "pos", "neg")}
    centers, widths = model.localizer(batch.frames, batch.valid)
    for b, captions in enumerate(batch.captions):
        sums["full"] += loop_captions(model, batch.frames[b], FULL, captions)
        for i in range(len(captions)):
            m = torch.tensor(mask_row(centers[b, i].item(), widths[b, i].item(), model.config.n_frames, model.config.mask), dtype=torch.float64)[:, None]
            sums["pos"] += loop_captions(model, batch.frames[b] * m, MASK, [captions[i]])
            if len(captions) > 1: sums["neg"] += loop_captions(model, batch.frames[b] * (1 - m), MASK, captions[:i] + captions[i + 1:])
    return {k: nll / n for k, (nll, n) in sums.items()}


# -- losses

@torch.no_grad()
@pytest.mark.parametrize("family", ["gaussian", "cauchy", "hard"])
def test_every_loss_is_its_equation(tokenizer, family):
    model = model_for(tokenizer, mask=family)
    batch = ragged(model.config)
    wanted = loop_caption_losses(model, batch) | loop_guides(model, batch)
    found = model(batch) | {"full": model(batch, stage=1)["full"]}
    assert all(wanted[k] > 0 for k in wanted), wanted
    for k, v in wanted.items(): assert found[k].item() == pytest.approx(v, abs=1e-6), k
    total = wanted["pos"] + wanted["neg"] + 2 * wanted["div"] + wanted["sim"] + .25 * wanted["aug"]
    assert found["total"].item() == pytest.approx(total, abs=1e-6)


@torch.no_grad()
def test_hard_negatives_are_the_equation_with_more_captions(tokenizer):
    model = model_for(tokenizer, hard_negatives=True)
    batch = ragged(model.config)
    near = batch.frames.mean(1, keepdim=True)                                  # synthetic captions that fit the video well
    batch = replace(batch, synthetic_texts=near + .3 * batch.synthetic_texts)
    wanted, without = (loop_guides(model, batch, negatives=h)["sim"] for h in (True, False))
    assert model(batch)["sim"].item() == pytest.approx(wanted, abs=1e-6)
    assert wanted > without + 1e-3


@torch.no_grad()
@pytest.mark.parametrize("mask", [gaussian_mask, cauchy_mask, hard_mask])
def test_masks_are_their_equations(mask):
    c, w = torch.rand(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64) + .02
    wanted = [[mask_row(a.item(), b.item(), 17, mask.__name__[:-5]) for a, b in zip(*rows)] for rows in zip(c, w)]
    torch.testing.assert_close(mask(c, w, 17), torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=0)


def test_masks_are_fp32_in_autocast_and_have_numerical_gradients():
    c, w = (torch.rand(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for mask in (gaussian_mask, cauchy_mask): assert torch.autograd.gradcheck(functools.partial(mask, n_frames=11), (c, w))
    with torch.autocast("cpu", torch.bfloat16):
        for mask in (gaussian_mask, cauchy_mask, hard_mask):
            low = mask(c.bfloat16(), w.bfloat16(), 11)
            assert low.dtype == torch.float32
            torch.testing.assert_close(low, mask(c.bfloat16().float(), w.bfloat16().float(), 11))
    for mask in (gaussian_mask, cauchy_mask, hard_mask):
        with pytest.raises(InputError, match="widths must not be negative, not -0.2"): mask(torch.tensor([.5]), torch.tensor([-.2]), 11)


def test_guides_do_not_change_in_half_precision_surroundings(tokenizer):
    model = model_for(tokenizer).float()
    batch = ragged(model.config).to("cpu", torch.float32)
    with torch.no_grad():
        centers, widths = model.place(batch.frames, batch.valid)
        plain = model.guide_losses(batch, centers, widths, model.masks(centers, widths))
        with torch.autocast("cpu", torch.bfloat16): low = model.guide_losses(batch, centers, widths, model.masks(centers, widths))
    for k in plain: assert low[k].item() == plain[k].item(), k


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("precision,atol", [(None, 1e-4), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_losses_on_a_gpu_are_those_of_the_cpu(tokenizer, precision, atol):
    model = model_for(tokenizer).float()
    batch = ragged(model.config).to("cpu", torch.float32)
    wanted = {k: v.item() for k, v in model(batch).items()}
    model, batch = model.cuda(), batch.to("cuda")
    with torch.autocast("cuda", precision, enabled=precision is not None): found = model(batch)
    found["total"].backward()
    for k, v in wanted.items(): assert found[k].item() == pytest.approx(v, abs=atol), k
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_what_is_padded_reaches_nothing(tokenizer):
    model = model_for(tokenizer)
    batch = ragged(model.config)
    rest = ~batch.valid[..., None]
    other = replace(batch, texts=batch.texts.masked_fill(rest, 7.), synthetic_texts=batch.synthetic_texts.masked_fill(~batch.inter_valid[..., None], 7.))
    for k, v in model(batch).items(): assert model(other)[k].item() == pytest.approx(v.item(), abs=1e-12), k


@pytest.mark.parametrize("captions", [[["A cat sleeps."]], [["Same."] * 3, ["Same."] * 2], CAPTIONS])
def test_edges_have_finite_losses_and_gradients(tokenizer, captions):
    for settings in ({}, {"mask": "hard"}, {"mask": "cauchy"}, {"update": "alternate", "div_weight": 0., "sim_weight": 0., "aug_weight": 0.}):
        model = model_for(tokenizer, **settings)
        N = max(map(len, captions))
        valid = torch.arange(N) < torch.tensor([len(c) for c in captions])[:, None]
        g = torch.zeros(len(captions), N, 12, dtype=torch.float64)
        batch = Batch(["v"] * len(captions), captions, torch.zeros(len(captions), 9, 12, dtype=torch.float64), valid, g, g[:, 1:], torch.zeros_like(valid[:, 1:]))
        for terms in (("pos", "neg"), ("pos",), ("neg",)):
            model.zero_grad()
            out = model(batch, terms=terms)
            out["total"].backward()
            assert all(v.isfinite() for v in out.values())
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_more_captions_than_queries_is_one_sentence(tokenizer):
    model = model_for(tokenizer)
    captions = [["One."] * 7]
    z = torch.zeros(1, 7, 12, dtype=torch.float64)
    with pytest.raises(InputError, match="7 events were asked for, the model has n_queries=6"):
        model(Batch(["v"], captions, torch.zeros(1, 9, 12, dtype=torch.float64), torch.ones(1, 7, dtype=bool), z, z[:, 1:], torch.ones(1, 6, dtype=bool)))


# -- texts and labels

def test_labels_are_everything_but_the_mode_token(tokenizer):
    "The loss is the mean over 'N events: ', sentences and end; changing the mode token's own prediction changes nothing."
    model = model_for(tokenizer)
    cap, frames = model.captioner, torch.randn(1, 9, 12, dtype=torch.float64)
    valid = torch.ones(1, 2, dtype=bool)
    x = cap.sequences(FULL, cap.sentences([CAPTIONS[0][:2]], valid), valid)
    pieces = tokenizer.decode(x[0].tolist(), skip_special_tokens=False)
    assert pieces == f"{FULL}2 events: A man walks in. He sits down at a table.{EOS}"
    alone = cap.sequences(MASK, cap.sentences([CAPTIONS[0][:2]], valid), torch.tensor([[False, True]]))
    assert tokenizer.decode(alone[0].tolist(), skip_special_tokens=False) == f"{MASK}1 events: He sits down at a table. {EOS}"
    nll, n = loop_captions(model, frames[0], FULL, CAPTIONS[0][:2])
    assert n == x.shape[1] - 1 and cap(frames, x).item() == pytest.approx(nll / n, abs=1e-9)


def test_none_is_said_of_a_video_without_captions():
    class Store(dict):
        def sampled(self, ids, n_frames, dtype="float32"): return np.zeros((len(ids), n_frames, 12), dtype)
    store = Store(a=torch.zeros(4, 12), b=torch.zeros(4, 12))
    data = DeviceData({"a": Video("a", ()), "b": Video("b", ("x y", "z"))}, store, Config.preset("toy", **SMALL), Store(b=torch.ones(2, 12)))
    assert data.captions == {"a": ["None."], "b": ["X y.", "Z."]}
    assert data.valid.tolist() == [[True, False], [True, True]]
    with pytest.raises(InputError, match="video b: 1 text features for 2 captions"):
        DeviceData({"b": Video("b", ("x", "z"))}, store, Config.preset("toy", **SMALL), Store(b=torch.ones(1, 12)))


# -- share of synthetic captions

class Rows(dict):
    def sampled(self, ids, n_frames, dtype="float32"): return np.zeros((len(ids), n_frames, 12), dtype)


def kept(share, seed=42):
    videos = {f"v{i}": Video(f"v{i}", ("x",) * (2 + i % 4)) for i in range(400)}
    text = Rows({v: torch.zeros(len(o.captions), 12) for v, o in videos.items()})
    gaps = Rows({v: torch.zeros(len(o.captions) - 1, 12) for v, o in videos.items()})
    return DeviceData(videos, text, Config.preset("toy", **SMALL, synthetic_share=share, seed=seed), text, {v: ["s"] * len(g) for v, g in gaps.items()}, gaps).inter_valid


def test_share_is_a_seeded_draw_in_which_less_is_a_part_of_more():
    draws = [kept(s) for s in (0., .25, .5, .75, 1.)]
    gaps = int(draws[-1].sum())
    assert gaps == sum(1 + i % 4 for i in range(400))
    for share, draw in zip((0., .25, .5, .75, 1.), draws):
        assert abs(int(draw.sum()) - share * gaps) <= 4 * math.sqrt(gaps * share * (1 - share))
        assert torch.equal(draw, kept(share))
    for less, more in zip(draws, draws[1:]): assert not (less & ~more).any()
    assert not torch.equal(kept(.5), kept(.5, seed=7))


# -- training

def adamw(p, g, s, config, lr):
    "One update of one parameter in place, from the paper: Adam with decoupled weight decay."
    (b1, b2), s["n"] = config.betas, s["n"] + 1
    s["m"], s["v"] = b1 * s["m"] + (1 - b1) * g, b2 * s["v"] + (1 - b2) * g**2
    p *= 1 - lr * config.weight_decay
    p -= lr * (s["m"] / (1 - b1**s["n"])) / (np.sqrt(s["v"] / (1 - b2**s["n"])) + config.eps)


def made_up(config, n=6):
    g = torch.Generator().manual_seed(0)
    def draw(k): return torch.randn(k, 12, generator=g)
    videos = {f"v{i}": Video(f"v{i}", ("A ball rolls", "It stops", "It rolls again")[:2 + i % 2]) for i in range(n)}
    class Store(dict):
        def sampled(self, ids, n_frames, dtype="float32"): return torch.stack([self[v] for v in ids]).numpy().astype(dtype)
    return DeviceData(videos, Store({v: draw(9) for v in videos}), config, Store({v: draw(len(o.captions)) for v, o in videos.items()}),
                      {v: ["Then."] * (len(o.captions) - 1) for v, o in videos.items()}, Store({v: draw(len(o.captions) - 1) for v, o in videos.items()}))


@pytest.mark.parametrize("update", ["joint", "alternate"])
def test_training_is_clipped_adamw_on_one_schedule_over_both_stages(tmp_path, update):
    "Batches of 2 in updates of 4 videos, one epoch a stage: the weights that `train` leaves are those of the formulas."
    from sail_nbdev.core import derive_seed, set_seed
    from sail_nbdev.data import batches
    config = Config.preset("toy", **SMALL, dropout=0., batch_size=2, accumulate=2, epochs_stage1=1, epochs_stage2=1, lr=3e-3, update=update, warmup=.25, eps=1e-5)
    data, tok = made_up(config), train_tokenizer(["A ball rolls. It stops. It rolls again. "], 300)
    trained = train(config, data, tmp_path/"run", tokenizer=tok, device="cpu", progress=False)
    set_seed(derive_seed(config.seed, "init"))
    model = Sail(config, tok)
    names, tensors = zip(*model.named_parameters())
    params = [p.detach().numpy().astype(np.float64) for p in tensors]
    state = [dict(m=np.zeros_like(p), v=np.zeros_like(p), n=0) for p in params]
    tick = 0
    for stage in (1, 2):
        order = batches(data, 2, derive_seed(config.seed, "order", stage, 0))
        for group in (order[:2], order[2:]):
            for terms in [("pos",), ("neg",)] if update == "alternate" and stage == 2 else [("pos", "neg")]:
                with torch.no_grad():
                    for t, p in zip(tensors, params): t.copy_(torch.from_numpy(p))
                model.zero_grad()
                for index in group: (model(data.batch(index), stage=stage, terms=terms)["total"] / len(group)).backward()
                grads = {i: t.grad.numpy().astype(np.float64) for i, t in enumerate(tensors) if t.grad is not None}       # stage 1 leaves the localizer alone
                scale = min(1., config.clip_norm / math.sqrt(sum((g**2).sum() for g in grads.values())))
                for i, g in grads.items(): adamw(params[i], scale * g, state[i], config, config.lr * lr_factor(tick, 4, config.warmup))
            tick += 1
    for name, p, t in zip(names, params, trained.parameters()):
        np.testing.assert_allclose(t.detach().numpy(), p, atol=2e-6, err_msg=name)
    rows = [json.loads(line) for line in (tmp_path/"run"/"log.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["lr"]) for r in rows] == [(1 + k // 2, pytest.approx(config.lr * lr_factor(k, 4, .25))) for k in range(4)]


def test_warmup_and_cosine_are_those_of_the_papers_run():
    updates = 157 * 20                                              # ActivityNet: 10,009 videos in updates of 64, 20 epochs
    peak = round(.05 * updates)
    assert lr_factor(0, updates, .05) == 1 / peak and lr_factor(peak - 1, updates, .05) == lr_factor(peak, updates, .05) == 1
    assert lr_factor(updates // 2, updates, .05) == pytest.approx(.5 * (1 + math.cos(math.pi * (updates / 2 - peak) / (updates - peak))))
    assert round(lr_factor(updates // 2, updates, .05), 2) == .54   # method notes, B.3


# -- a decoder from a folder, of another width

@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory, tokenizer):
    "What a hub would give: GPT-2's file layout, its tokenizer without our marks."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel
    folder = tmp_path_factory.mktemp("gpt2")
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tok.train_from_iterator(sum(CAPTIONS, []), trainers.BpeTrainer(vocab_size=300, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok.save(str(folder/"tokenizer.json"))
    torch.manual_seed(3)
    GPT2LMHeadModel(GPT2Config(vocab_size=tok.get_vocab_size(), n_embd=40, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    return folder


def test_another_clip_and_another_gpt2_meet_by_projection(gpt2_folder, tmp_path):
    config = Config.preset("toy", **{**SMALL, "decoder_width": 40, "decoder_layers": 3, "decoder_heads": 4, "pretrained": str(gpt2_folder), "vocab_size": 260})
    model = Sail(config).eval()
    from transformers import GPT2LMHeadModel
    theirs = GPT2LMHeadModel.from_pretrained(gpt2_folder)
    n = theirs.config.vocab_size
    rows = model.captioner.decoder.transformer.wte.weight
    assert rows.shape == (n + 3, 40) and torch.equal(rows[:n], theirs.transformer.wte.weight)          # three marks behind the pretrained rows
    assert [model.captioner.ids[t] for t in (PAD, FULL, MASK)] == [n, n + 1, n + 2]
    assert model.captioner.encoder.embed.project.weight.shape == (16, 12) and model.captioner.encoder.out.weight.shape == (40, 16)
    batch = ragged(config).to("cpu", torch.float32)
    out = model(batch)
    out["total"].backward()
    assert out["total"].isfinite()
    model.save_pretrained(tmp_path)
    again = Sail.from_pretrained(tmp_path)                                                                 # without the folder it came from
    assert again.config == config and again(batch)["total"].item() == out["total"].item()


@pytest.mark.parametrize("wrong,says", [({"decoder_layers": 2}, "has decoder_layers=3, the configuration says decoder_layers=2"),
                                        ({"decoder_width": 80}, "has decoder_width=40, the configuration says decoder_width=80"),
                                        ({"decoder_heads": 8}, "has decoder_heads=4, the configuration says decoder_heads=8")])
def test_a_decoder_of_another_shape_is_one_sentence(gpt2_folder, wrong, says):
    settings = {**SMALL, "decoder_width": 40, "decoder_layers": 3, "decoder_heads": 4, "pretrained": str(gpt2_folder), **wrong}
    with pytest.raises(InputError, match=says): Sail(Config.preset("toy", **settings))


def test_a_tokenizer_without_an_end_is_one_sentence(tmp_path, tokenizer):
    from tokenizers import Tokenizer, models
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path/"tokenizer.json"))
    with pytest.raises(InputError, match=r"has no token <\|endoftext\|>"): Sail(Config.preset("toy", **SMALL, pretrained=str(tmp_path)))


def test_a_checkpoint_of_another_shape_loads_nothing(tmp_path, tokenizer):
    model_for(tokenizer).float().save_pretrained(tmp_path)
    other = Sail(Config.preset("toy", **{**SMALL, "n_queries": 7}), tokenizer)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError, match=r"localizer.queries is \(6, 16\) there and \(7, 16\) here"): load_weights(other, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    save_config(replace(load_config(tmp_path/"config.json"), encoder_layers=1), tmp_path/"config.json")
    with pytest.raises(InputError, match="encoder.encoder.layers.1.* there and missing here"): Sail.from_pretrained(tmp_path)


# -- presets

@pytest.mark.parametrize("preset,sizes", [("activitynet", (81_914_880, 33_699_840, 6_343_936)), ("youcook2", (81_914_880, 33_752_064, 6_397_696))])
def test_presets_have_the_papers_size(preset, sizes):
    with torch.device("meta"): model = Sail(Config.preset(preset, pretrained=None))
    parts = (model.captioner.decoder, model.captioner.encoder, model.localizer)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == sizes
    assert sum(p.numel() for p in model.parameters()) == sum(sizes)
    assert [f"{n / 1e6:.1f}" for n in (121_958_656, *sizes[:2])] == ["122.0", "81.9", "33.7" if preset == "activitynet" else "33.8"]


def test_presets_say_what_the_notes_say():
    a, y = asdict(Config.preset("activitynet")), asdict(Config.preset("youcook2"))
    common = dict(feature_dim=768, pretrained="distilbert/distilgpt2", tau=2., div_gamma=.8, sim_margin=.1, inter_width=.6, aug_weight=.25, sim_weight=1., betas=(.9, .99), eps=1e-8,
                  weight_decay=.01, warmup=.05, clip_norm=1., seed=42, beams=4, no_repeat_ngram=4, caption_tokens=(4, 32), update="joint", div_weight=2., encoder_conv_kernel=0)
    for k, v in common.items(): assert a[k] == y[k] == v, k
    assert a["batch_size"] * a["accumulate"] == y["batch_size"] * y["accumulate"] == 64
    for k, va, vy in (("n_frames", 32, 100), ("lr", 1e-4, 5e-5), ("epochs_stage1", 10, 5), ("epochs_stage2", 10, 15), ("n_queries", 16, 18), ("max_captions", 12, 18)):
        assert (a[k], y[k]) == (va, vy), k
    assert a["paragraph_tokens"] == (8, 128)


def test_every_open_question_has_its_line():
    text = "".join("".join(c["source"]) for c in json.loads((ROOT/"nbs"/"08_model.ipynb").read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
    rows = dict(re.findall(r"^\| (F\d+) \|.*\| ([^|]*) \|$", text, re.M))
    assert list(rows) == [f"F{i}" for i in range(1, 23)]
    names = {f.name for f in fields(Config)}
    named = {s for row in rows.values() for s in re.findall(r"`(\w+)`", row)}
    assert named and named <= names, named - names


@pytest.mark.skipif(not ANNOTATIONS.exists(), reason="the annotation files are not beside the checkout")
@pytest.mark.parametrize("name,wanted", [("anet_train", dict(n_frames=36, n_queries=12, epochs_stage1=10, epochs_stage2=10, accumulate=8, lr=1e-4)),
                                         ("yc2_train", dict(n_frames=96, n_queries=15, epochs_stage1=10, epochs_stage2=10, accumulate=8, lr=5e-5))])
def test_plain_preset_comes_near_the_papers_on_their_own_sets(name, wanted):
    found = derive_settings(read_annotations(ANNOTATIONS/f"{name}.json"))
    assert {k: found[k][0] for k in wanted} == wanted


def test_plain_preset_reads_no_time_stamp():
    videos = {f"v{i}": Video(f"v{i}", ("A dog runs.",) * (1 + i % 3), 20. + i) for i in range(30)}
    stamped = {v: replace(o, intervals=tuple((j, j + 1.) for j in range(len(o.captions)))) for v, o in videos.items()}
    assert derive_settings(videos) == derive_settings(stamped)


def test_layout_of_many_videos_is_that_of_each():
    c, w = uniform_layout(torch.tensor([3, 1, 5]), 1.5)
    for row, n in enumerate((3, 1, 5)):
        np.testing.assert_allclose(c[row, :n], [(i + .5) / n for i in range(n)], atol=1e-6)
        np.testing.assert_allclose(w[row, :n], [min(1., 1.5 / n)] * n, atol=1e-6)


# -- wrong input on the command line

@pytest.mark.parametrize("args,words", [
    (["sail_train", "kinetics", "--data", "d", "--out", "o"], ["kinetics", "activitynet, youcook2, toy, plain"]),
    (["sail_train", "toy", "--data", "d", "--out", "o", "--method", "magic"], ["method 'magic'", "uniform"]),
    (["sail_train", "toy", "--data", "d", "--out", "o", "--override", "inter_widht=.5"], ["unknown setting 'inter_widht'", "did you mean 'inter_width'"]),
    (["sail_train", "toy", "--data", "d", "--out", "o", "--override", "inter_width=-.5"], ["inter_width=-0.5 must not be negative"]),
    (["sail_train", "toy", "--data", "d", "--out", "o", "--override", "mask=square"], ["mask='square'", "gaussian, cauchy, hard, uniform"]),
    (["sail_train", "plain", "--data", "d", "--out", "o"], ["annotations/train.json", "no such file"]),
    (["sail_ablate", "everything"], ["grid 'everything'", "components"]),
    (["sail_ablate", "components", "--seeds", "0"], ["seeds=0 must be at least 1"]),
    (["sail_ablate", "components", "--preset", "youcook2"], ["preset youcook2 needs --data"]),
    (["sail_predict", "run"], ["--data must be given"]),
], ids=lambda a: " ".join(a)[:60] if isinstance(a, list) else None)
def test_wrong_input_is_one_sentence_and_leaves_nothing(tmp_path, args, words):
    r = subprocess.run([str(Path(sys.executable).parent/args[0]), *args[1:]], capture_output=True, text=True, cwd=tmp_path)
    lines = [line for line in r.stderr.splitlines() if line.strip()]
    assert r.returncode == 2 and len(lines) == 1 and lines[0].startswith(f"{args[0]}: "), r
    assert all(w in lines[0] for w in words), lines
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
