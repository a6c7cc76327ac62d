"""The method against oracles: plain loops written from the equations, AdamW by hand, texts of the library;
the published sizes, and what a wrong setting is told."""
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from oracles import cosine, mask_row, pooled

from sail_nbdev.captioner import EOS, FULL, MASK, PAD, Captioner, train_tokenizer
from sail_nbdev.config import Config
from sail_nbdev.core import InputError, Video, derive_seed, set_seed
from sail_nbdev.data import Batch, DeviceData, batches, derive_settings, read_annotations
from sail_nbdev.localizer import uniform_layout
from sail_nbdev.model import Sail, load_weights
from sail_nbdev.train import lr_factor, train

ROOT = Path(__file__).resolve().parents[1]
ANNOTATIONS = ROOT.parent/"shared"/"data"/"annotations"
CAPTIONS = [["A man walks in.", "He sits down at a table.", "He plays the guitar."],
            ["A cat sleeps."],
            ["A ball rolls.", "It stops."],
            ["One.", "Two men.", "Three men run.", "Four of them fall.", "They get up again."]]
SMALL = {"data.feature_dim": 12, "data.n_frames": 9, "data.max_captions": 6,
         "captioner.d_model": 16, "captioner.n_heads": 2, "captioner.encoder_ffn": 24,
         "captioner.decoder_width": 20, "captioner.decoder_heads": 2,
         "localizer.d_model": 16, "localizer.n_heads": 2, "localizer.ffn": 24, "localizer.n_queries": 6}
DOUBLE = torch.float64


def small(method="sail", **groups):
    "The small configuration; `losses={'sim_weight': 0}` changes losses.sim_weight."
    changes = {f"{group}.{name}": v for group, rows in groups.items() for name, v in rows.items()}
    return Config.preset("toy", method, SMALL | changes)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(sum(CAPTIONS, []), 400)


def counted(n, most):
    "Which of `most` events exist in videos of `n` events each."
    return torch.arange(most) < torch.tensor(n)[:, None]


def ragged(config, seed=0):
    "A batch of 3, 1, 2 and 5 captions, some gaps without a synthetic caption, in fp64."
    g = torch.Generator().manual_seed(seed)
    def draw(*shape): return torch.randn(*shape, config.data.feature_dim, generator=g, dtype=DOUBLE)
    B = len(CAPTIONS)
    N = max(map(len, CAPTIONS))
    valid = counted([len(c) for c in CAPTIONS], N)
    inter_valid = valid[:, 1:].clone()
    inter_valid[0, 1] = inter_valid[2, 0] = False
    frames = draw(B, config.data.n_frames)
    return Batch(list("abcd"), CAPTIONS, frames, valid, draw(B, N), draw(B, N - 1), inter_valid)


def model_for(tokenizer, method="sail", **groups):
    torch.manual_seed(1)
    return Sail(small(method, **groups), tokenizer).double().eval()


# -- plain loops, one video and one event at a time, numbers instead of tensors

def loop_diversity(masks, gamma):
    "L_div of one video."
    pairs = [(i, j) for i in range(len(masks)) for j in range(len(masks)) if i != j]
    return sum(max(0., cosine(masks[i], masks[j]) - gamma) for i, j in pairs) / max(1, len(pairs))


def loop_similarity(views, texts, extra, margin):
    "L_sim of one video: `views` are its pooled frames, `extra` further negatives."
    loss = 0.
    for i, v in enumerate(views):
        others = [o for j, o in enumerate(texts) if j != i]
        if not others: return 0.
        hardest = max(cosine(v, o) for o in others + extra)
        loss += max(0., margin - cosine(v, texts[i]) + hardest) / len(views)
    return loss


def loop_between(frames, events, synthetic, config):
    "L_aug of one video; `synthetic` has None where a gap has no caption."
    l = config.localizer
    losses = []
    for (left, _), (right, _), text in zip(events, events[1:], synthetic):
        if text is None: continue
        m = mask_row((left + right) / 2, l.inter_width, config.data.n_frames, l.mask)
        losses.append(1 - cosine(pooled(frames, m), text))
    return sum(losses) / max(1, len(losses))


def placed(model, batch, b):
    "`(centre, width)` of each event of video b."
    centers, widths = model.place(batch.frames, batch.valid)
    return list(zip(centers[b].tolist(), widths[b].tolist()))[:len(batch.captions[b])]


def loop_guides(model, batch, hard_negatives=False):
    "L_div, L_sim and L_aug from the equations."
    c = model.config
    B = len(batch.captions)
    rows = []
    for b, captions in enumerate(batch.captions):
        events = placed(model, batch, b)
        frames = batch.frames[b].tolist()
        masks = [mask_row(*e, c.data.n_frames, c.localizer.mask) for e in events]
        views = [pooled(frames, m) for m in masks]
        texts = batch.texts[b].tolist()[:len(captions)]
        pairs = zip(batch.synthetic_texts[b].tolist(), batch.inter_valid[b].tolist())
        synthetic = [t if exists else None for t, exists in pairs]
        extra = [t for t in synthetic if t] if hard_negatives else []
        rows.append((loop_diversity(masks, c.losses.div_gamma),
                     loop_similarity(views, texts, extra, c.losses.sim_margin),
                     loop_between(frames, events, synthetic, c)))
    return dict(zip(("div", "sim", "aug"), (sum(column) / B for column in zip(*rows))))


def spelled(cap, mode, sentences):
    "Tokens of a text, from the layout that the method notes give."
    body = [t for s in sentences for t in cap.tokenizer.encode(s + " ").ids]
    if mode == FULL: body = body[:-1]
    count = cap.tokenizer.encode(f"{len(sentences)} events: ").ids
    return [cap.ids[mode], *count, *body, cap.ids[EOS]]


def loop_captions(model, frames, mode, sentences):
    "Sum of -log p and number of tokens of one text, from the logits of the whole sequence."
    cap = model.captioner
    text = spelled(cap, mode, sentences)
    read = torch.cat([cap.encoder(frames[None]), cap.decoder.transformer.wte(torch.tensor([text]))], 1)
    logp = cap.decoder(inputs_embeds=read).logits[0].log_softmax(-1)
    T = len(frames)
    return -sum(logp[T + k - 1, text[k]].item() for k in range(1, len(text))), len(text) - 1


def loop_caption_losses(model, batch):
    "L_full, L_pos and L_neg: token means over every text of the batch."
    c = model.config
    sums = {k: np.zeros(2) for k in ("full", "pos", "neg")}
    for b, captions in enumerate(batch.captions):
        frames = batch.frames[b]
        sums["full"] += loop_captions(model, frames, FULL, captions)
        for i, event in enumerate(placed(model, batch, b)):
            row = mask_row(*event, c.data.n_frames, c.localizer.mask)
            m = torch.tensor(row, dtype=frames.dtype)[:, None]
            others = captions[:i] + captions[i + 1:]
            sums["pos"] += loop_captions(model, frames * m, MASK, [captions[i]])
            if others: sums["neg"] += loop_captions(model, frames * (1 - m), MASK, others)
    return {k: nll / n for k, (nll, n) in sums.items()}


# -- losses

@torch.no_grad()
@pytest.mark.parametrize("family", ["gaussian", "cauchy", "hard"])
def test_every_loss_is_its_equation(tokenizer, family):
    model = model_for(tokenizer, localizer={"mask": family})
    batch = ragged(model.config)
    wanted = loop_caption_losses(model, batch) | loop_guides(model, batch)
    found = model(batch) | {"full": model(batch, stage=1)["full"]}
    assert all(wanted[k] > 0 for k in wanted), wanted
    for k, v in wanted.items(): assert found[k].item() == pytest.approx(v, abs=1e-6), k
    total = wanted["pos"] + wanted["neg"] + 2 * wanted["div"] + wanted["sim"] + .25 * wanted["aug"]
    assert found["total"].item() == pytest.approx(total, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["uniform", "changes", "frames"])
def test_captions_follow_the_masks_of_every_localizer(tokenizer, kind):
    model = model_for(tokenizer, localizer={"kind": kind}).float()
    batch = ragged(model.config).to("cpu", torch.float32)
    wanted = loop_caption_losses(model, batch)
    found = model(batch)
    for k in ("pos", "neg"): assert found[k].item() == pytest.approx(wanted[k], abs=1e-5), k


@torch.no_grad()
def test_hard_negatives_are_the_equation_with_more_captions(tokenizer):
    model = model_for(tokenizer, losses={"hard_negatives": True})
    batch = ragged(model.config)
    near = batch.frames.mean(1, keepdim=True)           # synthetic captions that fit the video well
    batch = replace(batch, synthetic_texts=near + .3 * batch.synthetic_texts)
    wanted = loop_guides(model, batch, hard_negatives=True)["sim"]
    assert model(batch)["sim"].item() == pytest.approx(wanted, abs=1e-6)
    assert wanted > loop_guides(model, batch)["sim"] + 1e-3


@torch.no_grad()
def test_guides_do_not_change_in_half_precision_surroundings(tokenizer):
    model = model_for(tokenizer).float()
    batch = ragged(model.config).to("cpu", torch.float32)
    centers, widths = model.place(batch.frames, batch.valid)
    def guides(): return model.guide_losses(batch, centers, model.masks(centers, widths))
    plain = guides()
    with torch.autocast("cpu", torch.bfloat16): low = guides()
    for k in plain: assert low[k].item() == plain[k].item(), k


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("precision,atol", [(None, 1e-4), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_losses_on_a_gpu_are_those_of_the_cpu(tokenizer, precision, atol):
    model = model_for(tokenizer).float()
    batch = ragged(model.config).to("cpu", torch.float32)
    wanted = {k: v.item() for k, v in model(batch).items()}
    model.cuda()
    with torch.autocast("cuda", precision, enabled=precision is not None): found = model(batch.to("cuda"))
    found["total"].backward()
    for k, v in wanted.items(): assert found[k].item() == pytest.approx(v, abs=atol), k
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["sail", "sail_plus"])
def test_what_is_padded_reaches_nothing(tokenizer, method):
    model = model_for(tokenizer, method)
    batch = ragged(model.config)
    texts = batch.texts.masked_fill(~batch.valid[..., None], 7.)
    synthetic = batch.synthetic_texts.masked_fill(~batch.inter_valid[..., None], 7.)
    found = model(replace(batch, texts=texts, synthetic_texts=synthetic))
    for k, v in model(batch).items(): assert found[k].item() == pytest.approx(v.item(), abs=1e-12), k


def dark(captions, T=9, D=12):
    "A batch whose frames and embeddings are all zero."
    N = max(map(len, captions))
    B = len(captions)
    valid = counted([len(c) for c in captions], N)
    def zeros(n): return torch.zeros(B, n, D, dtype=DOUBLE)
    return Batch(["v"] * B, captions, zeros(T), valid, zeros(N), zeros(N - 1), torch.zeros_like(valid[:, 1:]))


@pytest.mark.parametrize("captions", [[["A cat sleeps."]], [["Same."] * 3, ["Same."] * 2], CAPTIONS])
@pytest.mark.parametrize("groups", [
    {}, {"localizer": {"mask": "hard"}}, {"localizer": {"mask": "cauchy"}}, {"localizer": {"kind": "frames"}},
    {"losses": {"align_weight": 1.}},
    {"losses": {"update": "alternate", "div_weight": 0., "sim_weight": 0., "aug_weight": 0.}}], ids=str)
def test_edges_have_finite_losses_and_gradients(tokenizer, captions, groups):
    model = model_for(tokenizer, **groups)
    batch = dark(captions)
    for terms in (("pos", "neg"), ("pos",), ("neg",)):
        model.zero_grad()
        losses = model(batch, terms=terms)
        losses["total"].backward()
        assert all(v.isfinite() for v in losses.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_more_captions_than_queries_is_one_sentence(tokenizer):
    model = model_for(tokenizer)
    with pytest.raises(InputError, match="7 events were asked for, the model has n_queries=6"):
        model(dark([["One."] * 7]))


# -- texts and labels

def decoded(tokenizer, ids): return tokenizer.decode(ids, skip_special_tokens=False)


def test_labels_are_everything_but_the_mode_token(tokenizer):
    "The loss is the mean over 'N events: ', sentences and end, not over the mode token."
    model = model_for(tokenizer)
    cap = model.captioner
    frames = torch.randn(1, 9, 12, dtype=DOUBLE)
    x = cap.sequences(FULL, [CAPTIONS[0][:2]])
    assert decoded(tokenizer, x[0]) == f"{FULL}2 events: A man walks in. He sits down at a table.{EOS}"
    alone = cap.sequences(MASK, [CAPTIONS[0][1:2]])
    assert decoded(tokenizer, alone[0]) == f"{MASK}1 events: He sits down at a table. {EOS}"
    nll, n = loop_captions(model, frames[0], FULL, CAPTIONS[0][:2])
    assert n == len(x[0]) - 1
    assert cap(frames, x).item() == pytest.approx(nll / n, abs=1e-9)


def library_texts(cap, frames):
    "Captions of events as `transformers` generates them, each beam a row that reads the video."
    c = cap.config.decode
    prompt = torch.tensor([cap.prompt_ids(MASK, 1)]).expand(len(frames), -1)
    x = torch.cat([cap.encoder(frames), cap.decoder.transformer.wte(prompt)], 1)
    least, most = c.caption_tokens
    ids = cap.decoder.generate(
        inputs_embeds=x, attention_mask=torch.ones(x.shape[:2], dtype=torch.long), num_beams=c.beams,
        do_sample=False, min_new_tokens=least, max_new_tokens=most, no_repeat_ngram_size=c.no_repeat_ngram,
        length_penalty=c.length_penalty, pad_token_id=cap.ids[PAD], eos_token_id=cap.ids[EOS])
    return [t.strip() for t in cap.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)]


@torch.no_grad()
@pytest.mark.parametrize("beams,n_gram,penalty", [(4, 4, 1.), (4, 0, 1.), (2, 2, 1.), (3, 3, 0.), (1, 4, 2.)])
def test_beam_search_writes_what_the_library_writes(tokenizer, beams, n_gram, penalty):
    "Random decoders, sharpened so that texts end early and branches differ."
    rules = {"beams": beams, "no_repeat_ngram": n_gram, "length_penalty": penalty, "caption_tokens": (2, 12)}
    for seed in range(4):
        torch.manual_seed(seed)
        cap = Captioner(small(decode=rules), tokenizer).eval()
        cap.decoder.transformer.ln_f.weight.fill_(8.)
        cap.decoder.transformer.wte.weight[cap.ids[EOS]] *= 1.5
        frames = 3 * torch.randn(8, 9, 12)
        assert cap.write(frames, MASK) == library_texts(cap, frames)


# -- data of the method

class Rows(dict):
    "A store of frames in memory, which knows how to sample them."
    def sampled(self, ids, n_frames, dtype="float32"):
        frames = [self[v] if len(self[v]) == n_frames else torch.zeros(n_frames, 12) for v in ids]
        return torch.stack(frames).numpy().astype(dtype)


def test_none_is_said_of_a_video_without_captions():
    store = Rows(a=torch.zeros(4, 12), b=torch.zeros(4, 12))
    videos = {"a": Video("a", ()), "b": Video("b", ("x y", "z"))}
    data = DeviceData(videos, store, small(), Rows(b=torch.ones(2, 12)))
    assert data.captions == {"a": ["None."], "b": ["X y.", "Z."]}
    assert data.valid.tolist() == [[True, False], [True, True]]
    with pytest.raises(InputError, match="video b: 1 text features for 2 captions"):
        DeviceData({"b": Video("b", ("x", "z"))}, store, small(), Rows(b=torch.ones(1, 12)))


def kept(share, seed=42):
    "Which gaps of 400 videos keep their synthetic caption."
    videos = {f"v{i}": Video(f"v{i}", ("x",) * (2 + i % 4)) for i in range(400)}
    text = Rows({v: torch.zeros(len(o.captions), 12) for v, o in videos.items()})
    gaps = Rows({v: torch.zeros(len(o.captions) - 1, 12) for v, o in videos.items()})
    config = Config.preset("toy", overrides=SMALL | {"losses.synthetic_share": share, "seed": seed})
    captions = {v: ["s"] * len(g) for v, g in gaps.items()}
    return DeviceData(videos, text, config, text, captions, gaps).inter_valid


def test_share_is_a_seeded_draw_in_which_less_is_a_part_of_more():
    shares = (0., .25, .5, .75, 1.)
    draws = [kept(s) for s in shares]
    gaps = int(draws[-1].sum())
    assert gaps == sum(1 + i % 4 for i in range(400))
    for share, draw in zip(shares, draws):
        assert abs(int(draw.sum()) - share * gaps) <= 4 * math.sqrt(gaps * share * (1 - share))
        assert torch.equal(draw, kept(share))
    for less, more in zip(draws, draws[1:]): assert not (less & ~more).any()
    assert not torch.equal(kept(.5), kept(.5, seed=7))


# -- training

def adamw(p, g, s, settings, lr):
    "One update of one parameter in place, from the paper: Adam with decoupled weight decay."
    b1, b2 = settings.betas
    s["n"] += 1
    s["m"] = b1 * s["m"] + (1 - b1) * g
    s["v"] = b2 * s["v"] + (1 - b2) * g**2
    p *= 1 - lr * settings.weight_decay
    p -= lr * (s["m"] / (1 - b1**s["n"])) / (np.sqrt(s["v"] / (1 - b2**s["n"])) + settings.eps)


class ByHand:
    "Parameters of a model in fp64 and the state of AdamW for each."
    def __init__(self, model):
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.params = [p.detach().numpy().astype(np.float64) for p in model.parameters()]
        self.state = [dict(m=np.zeros_like(p), v=np.zeros_like(p), n=0) for p in self.params]

    def gradients(self, data, group, **how):
        "Mean gradients over batches; stage 1 leaves the localizer alone."
        with torch.no_grad():
            for t, p in zip(self.model.parameters(), self.params): t.copy_(torch.from_numpy(p))
        self.model.zero_grad()
        for index in group: (self.model(data.batch(index), **how)["total"] / len(group)).backward()
        grads = [t.grad for t in self.model.parameters()]
        return {i: g.numpy().astype(np.float64) for i, g in enumerate(grads) if g is not None}

    def update(self, grads, settings, lr):
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        scale = min(1., settings.clip_norm / norm)
        for i, g in grads.items(): adamw(self.params[i], scale * g, self.state[i], settings, lr)


def made_up(config, n=6):
    "Training data of n videos with two and three captions."
    g = torch.Generator().manual_seed(0)
    def draw(k): return torch.randn(k, 12, generator=g)
    captions = ("A ball rolls", "It stops", "It rolls again")
    videos = {f"v{i}": Video(f"v{i}", captions[:2 + i % 2]) for i in range(n)}
    frames = Rows({v: draw(9) for v in videos})
    texts = Rows({v: draw(len(o.captions)) for v, o in videos.items()})
    synthetic = {v: ["Then."] * (len(o.captions) - 1) for v, o in videos.items()}
    synthetic_texts = Rows({v: draw(len(gaps)) for v, gaps in synthetic.items()})
    return DeviceData(videos, frames, config, texts, synthetic, synthetic_texts)


@pytest.mark.parametrize("update", ["joint", "alternate"])
def test_training_is_clipped_adamw_on_one_schedule_over_both_stages(tmp_path, update):
    "Batches of 2 in updates of 4 videos, one epoch per stage: `train` leaves the weights of the formulas."
    schedule = {"batch_size": 2, "accumulate": 2, "epochs_stage1": 1, "epochs_stage2": 1, "lr": 3e-3,
                "warmup": .5, "eps": 1e-5}
    config = small(train=schedule, losses={"update": update})
    data = made_up(config)
    tok = train_tokenizer(["A ball rolls. It stops. It rolls again. "], 300)
    trained = train(config, data, tmp_path/"run", tokenizer=tok, device="cpu", progress=False)
    set_seed(derive_seed(config.seed, "init"))
    hand = ByHand(Sail(config, tok))
    rates = []
    for stage in (1, 2):
        order = batches(data, 2, derive_seed(config.seed, "order", stage, 0))
        alternate = update == "alternate" and stage == 2
        for group in (order[:2], order[2:]):
            rates.append(config.train.lr * lr_factor(len(rates), 4, .5))
            for terms in [("pos",), ("neg",)] if alternate else [("pos", "neg")]:
                hand.update(hand.gradients(data, group, stage=stage, terms=terms), config.train, rates[-1])
    for name, p, t in zip(hand.names, hand.params, trained.parameters()):
        np.testing.assert_allclose(t.detach().numpy(), p, atol=2e-6, err_msg=name)
    rows = [json.loads(line) for line in (tmp_path/"run"/"log.jsonl").read_text().splitlines()]
    assert [r["stage"] for r in rows] == [1, 1, 2, 2]
    assert [r["lr"] for r in rows] == pytest.approx(rates)
    assert rates == pytest.approx([0., 1.5e-3, 3e-3, 1.5e-3])


def test_warmup_and_cosine_are_those_of_the_released_run():
    updates = 157 * 20                          # ActivityNet: 10,009 videos in updates of 64, 20 epochs
    peak = int(.05 * updates)
    assert lr_factor(0, updates, .05) == 0      # the released warm-up counts from 0
    assert lr_factor(1, updates, .05) == 1 / peak
    assert lr_factor(peak, updates, .05) == 1
    half = .5 * (1 + math.cos(math.pi * (updates / 2 - peak) / (updates - peak)))
    assert lr_factor(updates // 2, updates, .05) == pytest.approx(half)
    assert round(half, 2) == .54


# -- a decoder from a folder, of another width

def gpt2_tokenizer():
    "A tokenizer as GPT-2's, without our marks."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    form = dict(special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(sum(CAPTIONS, []), trainers.BpeTrainer(vocab_size=300, **form))
    return tok


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    "What a hub would give: GPT-2's file layout."
    from transformers import GPT2Config, GPT2LMHeadModel
    folder = tmp_path_factory.mktemp("gpt2")
    tok = gpt2_tokenizer()
    tok.save(str(folder/"tokenizer.json"))
    torch.manual_seed(3)
    shape = GPT2Config(vocab_size=tok.get_vocab_size(), n_embd=40, n_layer=3, n_head=4, bos_token_id=0,
                       eos_token_id=0)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    return folder


def from_folder(folder, **wrong):
    "The small configuration with the decoder of a folder."
    shape = {"decoder_width": 40, "decoder_layers": 3, "decoder_heads": 4, "vocab_size": 260}
    return small(captioner={"pretrained": str(folder)} | shape | wrong)


def test_another_gpt2_keeps_its_rows_before_the_three_marks(gpt2_folder):
    from transformers import GPT2LMHeadModel
    pretrained = GPT2LMHeadModel.from_pretrained(gpt2_folder)
    n = pretrained.config.vocab_size
    cap = Sail(from_folder(gpt2_folder)).captioner
    rows = cap.decoder.transformer.wte.weight
    assert rows.shape == (n + 3, 40)
    assert torch.equal(rows[:n], pretrained.transformer.wte.weight)
    assert [cap.ids[t] for t in (PAD, FULL, MASK)] == [n, n + 1, n + 2]


def test_another_clip_and_another_gpt2_meet_by_projection(gpt2_folder, tmp_path):
    config = from_folder(gpt2_folder)
    model = Sail(config).eval()
    assert model.captioner.encoder.embed.project.weight.shape == (16, 12)
    assert model.captioner.encoder.out.weight.shape == (40, 16)
    batch = ragged(config).to("cpu", torch.float32)
    losses = model(batch)
    losses["total"].backward()
    assert losses["total"].isfinite()
    model.save_pretrained(tmp_path)
    again = Sail.from_pretrained(tmp_path)                          # without the folder it came from
    assert again.config == config
    assert again(batch)["total"].item() == losses["total"].item()


@pytest.mark.parametrize("name,here,there", [("layers", 2, 3), ("width", 80, 40), ("heads", 8, 4)])
def test_a_decoder_of_another_shape_is_one_sentence(gpt2_folder, name, here, there):
    words = f"has decoder_{name}={there}, the configuration says decoder_{name}={here}"
    with pytest.raises(InputError, match=words): Sail(from_folder(gpt2_folder, **{f"decoder_{name}": here}))


def test_a_tokenizer_without_an_end_is_one_sentence(tmp_path):
    from tokenizers import Tokenizer, models
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path/"tokenizer.json"))
    with pytest.raises(InputError, match=r"has no token <\|endoftext\|>"): Sail(from_folder(tmp_path))


def test_a_checkpoint_of_another_shape_loads_nothing(tmp_path, tokenizer):
    model_for(tokenizer).float().save_pretrained(tmp_path)
    other = Sail(small(localizer={"n_queries": 7}), tokenizer)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(InputError, match=r"localizer.queries is \(6, 16\) there and \(7, 16\) here"):
        load_weights(other, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    Config.load(tmp_path/"config.json").changed({"captioner.encoder_layers": 1}).save(tmp_path/"config.json")
    with pytest.raises(InputError, match="encoder.encoder.layers.1.* there and missing here"):
        Sail.from_pretrained(tmp_path)


def test_weights_of_an_older_form_are_one_sentence(tmp_path, tokenizer):
    from safetensors.torch import load_file, save_file
    model_for(tokenizer).float().save_pretrained(tmp_path)
    path = tmp_path/"model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "sail_nbdev": "2"})
    with pytest.raises(InputError, match="written in form 2, this version reads form 4"):
        Sail.from_pretrained(tmp_path)


@pytest.mark.parametrize("run_folder", [False, True])
def test_a_model_or_a_run_folder_goes_to_the_hub(tmp_path, tokenizer, monkeypatch, run_folder):
    model = model_for(tokenizer).float()
    if run_folder: (tmp_path/"encoder.json").write_text("{}")
    sent = {}

    class Hub:
        def create_repo(self, repo_id, exist_ok): sent["id"] = repo_id
        def upload_folder(self, repo_id, folder_path, ignore_patterns):
            sent["files"] = sorted(p.name for p in Path(folder_path).iterdir())
            sent["weights"] = Sail.from_pretrained(folder_path).state_dict()

    monkeypatch.setattr("sail_nbdev.model.HfApi", Hub)
    model.push_to_hub("owner/name", tmp_path if run_folder else None)
    files = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert sent["id"] == "owner/name"
    assert sent["files"] == sorted(files + ["encoder.json"] * run_folder)
    assert all(torch.equal(v, sent["weights"][k]) for k, v in model.state_dict().items())


# -- presets

SIZES = {"activitynet": (81_914_880, 33_699_840, 6_343_936), "youcook2": (81_914_880, 33_752_064, 6_397_696)}


def n_parameters(module): return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("preset", SIZES)
def test_presets_have_the_papers_size(preset):
    with torch.device("meta"): model = Sail(Config.preset(preset, overrides={"captioner.pretrained": None}))
    parts = (model.captioner.decoder, model.captioner.encoder, model.localizer)
    assert tuple(map(n_parameters, parts)) == SIZES[preset]
    assert n_parameters(model) == sum(SIZES[preset])
    assert f"{n_parameters(model) / 1e6:.0f}" == "122"


def test_a_layout_has_no_parameters():
    for kind in ("uniform", "changes"):
        overrides = {"captioner.pretrained": None, "localizer.kind": kind}
        with torch.device("meta"): model = Sail(Config.preset("activitynet", overrides=overrides))
        assert n_parameters(model) == sum(SIZES["activitynet"][:2])


COMMON = {"data.feature_dim": 768, "captioner.pretrained": "distilbert/distilgpt2", "seed": 42,
          "localizer.tau": 2., "localizer.inter_width": .6, "losses.update": "joint",
          "losses.div_gamma": .8, "losses.div_weight": 2., "losses.sim_margin": .1, "losses.sim_weight": 1.,
          "losses.aug_weight": .25,
          "train.betas": (.9, .99), "train.eps": 1e-8, "train.weight_decay": .01, "train.warmup": .05,
          "train.clip_norm": 1., "decode.beams": 4, "decode.no_repeat_ngram": 4,
          "decode.caption_tokens": (4, 32)}
DIFFERENT = {"data.n_frames": (32, 100), "train.lr": (1e-4, 5e-5), "train.epochs_stage1": (10, 5),
             "train.epochs_stage2": (10, 15), "localizer.n_queries": (16, 18), "data.max_captions": (12, 18),
             "decode.paragraph_tokens": ((8, 128), (8, 256))}


def test_presets_say_what_the_notes_say():
    anet = Config.preset("activitynet").flat()
    yc2 = Config.preset("youcook2").flat()
    for k, v in COMMON.items(): assert anet[k] == yc2[k] == v, k
    for k, pair in DIFFERENT.items(): assert (anet[k], yc2[k]) == pair, k
    for c in (anet, yc2): assert c["train.batch_size"] * c["train.accumulate"] == 64


def test_every_open_question_has_its_answer():
    cells = json.loads((ROOT/"nbs"/"open_questions.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    parts = re.split(r"^### (F\d+) ", text, flags=re.M)
    answers = dict(zip(parts[1::2], parts[2::2]))
    assert list(answers) == [f"F{i}" for i in range(1, 23)]
    for number, answer in answers.items(): assert "**Here:**" in answer, number
    groups = "data|captioner|localizer|losses|train|decode"
    settings = set(re.findall(rf"`((?:{groups})\.\w+)", text))
    unknown = settings - Config.preset("toy").flat().keys()
    assert settings
    assert not unknown


PLAIN = {"localizer.n_queries": 12, "data.n_frames": 36, "train.lr": 1e-4, "train.epochs_stage1": 10,
         "train.epochs_stage2": 10, "train.accumulate": 8}


@pytest.mark.skipif(not ANNOTATIONS.exists(), reason="the annotation files are not beside the checkout")
@pytest.mark.parametrize("name,wanted", [
    ("anet_train", PLAIN),
    ("yc2_train", PLAIN | {"localizer.n_queries": 15, "data.n_frames": 96, "train.lr": 5e-5})])
def test_plain_preset_comes_near_the_papers_on_their_own_sets(name, wanted):
    found = derive_settings(read_annotations(ANNOTATIONS/f"{name}.json"))
    assert {k: found[k][0] for k in wanted} == wanted


def test_plain_preset_reads_no_time_stamp():
    videos = {f"v{i}": Video(f"v{i}", ("A dog runs.",) * (1 + i % 3), 20. + i) for i in range(30)}
    def stamp(o): return replace(o, intervals=tuple((j, j + 1.) for j in range(len(o.captions))))
    assert derive_settings(videos) == derive_settings({v: stamp(o) for v, o in videos.items()})


def test_a_uniform_model_places_the_uniform_layout(tokenizer):
    model = model_for(tokenizer, "uniform", localizer={"layout_k": 1.5})
    batch = ragged(model.config)
    c, w = model.localize(batch.frames, [3, 1, 2, 5])
    wanted = uniform_layout(batch.valid.sum(1), 1.5)
    assert torch.equal(c, wanted[0])
    assert torch.equal(w, wanted[1])


# -- wrong input on the command line

TRAIN = ["sail_train", "toy", "--data", "d", "--out", "o"]


@pytest.mark.parametrize("args,words", [
    (["sail_train", "kinetics", *TRAIN[2:]], ["kinetics", "activitynet, youcook2, toy, plain"]),
    ([*TRAIN, "--method", "magic"], ["method 'magic'", "uniform"]),
    ([*TRAIN, "--override", "localizer.inter_widht=.5"],
     ["unknown setting 'localizer.inter_widht'", "did you mean 'localizer.inter_width'"]),
    ([*TRAIN, "--override", "inter_width=.5"], ["did you mean 'localizer.inter_width'"]),
    ([*TRAIN, "--override", "localizer.inter_width=-.5"], ["localizer.inter_width='-.5'", "greater than 0"]),
    ([*TRAIN, "--override", "localizer.mask=square"],
     ["localizer.mask='square'", "'gaussian', 'cauchy' or 'hard'"]),
    (["sail_train", "plain", *TRAIN[2:]],
     ["d/features: no such store", "sail_features VIDEOS --out d/features"]),
    (["sail_ablate", "everything"], ["grid 'everything'", "components"]),
    (["sail_ablate", "components", "--seeds", "0"], ["--seeds 0: must be a whole number from 1"]),
    (["sail_ablate", "components", "--preset", "youcook2"], ["preset youcook2 needs --data"]),
    (["sail_predict", "run"], ["--data must be given"]),
], ids=lambda a: " ".join(a)[:60] if isinstance(a, list) else None)
def test_wrong_input_is_one_sentence_and_leaves_nothing(tmp_path, args, words):
    r = shell.run(*args, cwd=tmp_path)
    lines = [line for line in r.stderr.splitlines() if line.strip()]
    assert r.returncode == 2, r
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{args[0]}: ")
    assert all(w in lines[0] for w in words), lines
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
