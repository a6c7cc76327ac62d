"Masks and layouts against plain numbers and numerical gradients."
import functools

import numpy as np
import pytest
import torch
from oracles import mask_row

from sail_nbdev.alignment import caption_scores, expected_events, lattice, posterior
from sail_nbdev.config import Config
from sail_nbdev.core import InputError
from sail_nbdev.localizer import QueryLocalizer, make_localizer, uniform_layout
from sail_nbdev.losses import alignment_loss
from sail_nbdev.masks import cauchy_mask, gaussian_mask, hard_mask, to_intervals

FAMILIES = dict(gaussian=gaussian_mask, cauchy=cauchy_mask, hard=hard_mask)
DOUBLE = torch.float64


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_their_equations(family):
    torch.manual_seed(0)
    c = torch.rand(8, 4, dtype=DOUBLE)
    w = torch.rand(8, 4, dtype=DOUBLE) + .02
    wanted = [[mask_row(*event, 17, family) for event in zip(*rows)] for rows in zip(c.tolist(), w.tolist())]
    found = FAMILIES[family](c, w, 17)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=DOUBLE), atol=1e-12, rtol=0)


def test_hard_masks_are_zero_or_one_and_open_at_the_ends_of_the_video():
    c = torch.tensor([.1, .5, .9])
    m = hard_mask(c, torch.full((3,), .4), 11)
    assert set(m.unique().tolist()) == {0., 1.}
    assert m.sum(-1).tolist() == [2, 3, 2]      # frames at 0 and 1 are the clamped ends, compared strictly


def test_masks_have_numerical_gradients():
    torch.manual_seed(0)
    c = torch.rand(2, 3, dtype=DOUBLE, requires_grad=True)
    w = torch.rand(2, 3, dtype=DOUBLE, requires_grad=True)
    for mask in (gaussian_mask, cauchy_mask):
        assert torch.autograd.gradcheck(functools.partial(mask, n_frames=11), (c, w))


def test_hard_masks_have_the_gradient_of_the_gaussian():
    torch.manual_seed(0)
    weights = torch.rand(3, 11)
    grads = []
    for mask in (hard_mask, gaussian_mask):
        c = torch.tensor([.2, .5, .8], requires_grad=True)
        w = torch.tensor([.3, .2, .5], requires_grad=True)
        grads.append(torch.autograd.grad((mask(c, w, 11) * weights).sum(), (c, w)))
    for ours, gaussian in zip(*grads): assert torch.equal(ours, gaussian)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_fp32_in_autocast(family):
    mask = FAMILIES[family]
    c = torch.rand(2, 3).bfloat16()
    w = torch.rand(2, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = mask(c, w, 11)
        full = mask(c.float(), w.float(), 11)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, full)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_negative_width_is_one_sentence(family):
    with pytest.raises(InputError, match="widths must not be negative, not -0.2"):
        FAMILIES[family](torch.tensor([.5]), torch.tensor([-.2]), 11)


def test_layout_of_many_videos_is_that_of_each():
    c, w = uniform_layout(torch.tensor([3, 1, 5]), 1.5)
    for row, n in enumerate((3, 1, 5)):
        np.testing.assert_allclose(c[row, :n], [(i + .5) / n for i in range(n)], atol=1e-6)
        np.testing.assert_allclose(w[row, :n], [min(1., 1.5 / n)] * n, atol=1e-6)


def test_durations_are_not_rounded_to_fp32():
    seconds = 4242.4242424242
    assert to_intervals(torch.tensor([.5]), torch.tensor([1.]), seconds)[0, 1].item() == seconds


def test_dropout_on_the_queries_is_drawn_for_each_video():
    torch.manual_seed(0)
    localizer = QueryLocalizer(Config.preset("toy", overrides={"localizer.dropout": .5})).train()
    seen = {}
    localizer.drop.register_forward_hook(lambda module, args, out: seen.update(queries=out))
    localizer(torch.zeros(2, 32, 96), torch.ones(2, 3, dtype=bool))
    assert not torch.equal(*seen["queries"])


def localizer(kind):
    torch.manual_seed(0)
    small = {"data.feature_dim": 24, "data.n_frames": 40, "localizer.d_model": 32, "localizer.kind": kind}
    net = make_localizer(Config.preset("toy", overrides=small)).eval()
    if kind == "frames": torch.nn.init.normal_(net.head.weight)
    return net


def long_videos(B=64, T=40, D=24):
    "Videos of four scenes with a large part in common, whose differences are lost in few digits."
    g = torch.Generator().manual_seed(0)
    common = 3 * torch.randn(B, 1, D, generator=g)
    scenes = torch.randn(B, 4, D, generator=g).repeat_interleave(T // 4, 1)
    frames = common + scenes + .5 * torch.randn(B, T, D, generator=g)
    return frames, torch.arange(5) < torch.randint(1, 6, (B, 1), generator=g)


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind,tolerance", dict(uniform=0., changes=0., queries=.01, frames=.02).items())
def test_autocast_moves_no_event(kind, tolerance, precision):
    "Without a net exactly none; with one no further than the digits of its layers."
    net = localizer(kind)
    frames, valid = long_videos()
    wanted = net(frames, valid)
    with torch.autocast("cpu", precision): found = net(frames, valid)
    for a, b in zip(found, wanted):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a[valid], b[valid], atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_sums_over_frames_are_exact_under_autocast(precision):
    "Heads, lattice, expected events and alignment from the same states and scores."
    net = localizer("frames")
    frames, valid = long_videos()
    h = 9 * torch.randn(64, 40, 32, generator=torch.Generator().manual_seed(1))

    def computed():
        enter, stay = (s[..., None].expand(-1, -1, 5) for s in net._heads(h).unbind(-1))
        starts, holds = posterior(enter, stay, valid)
        z = caption_scores(frames, frames[:, ::8], valid)
        loss = alignment_loss(enter[..., 0], stay[..., 0], z, valid, 5)
        return enter, starts, lattice(enter, stay), *expected_events(starts, holds, valid), z, loss

    wanted = computed()
    with torch.autocast("cpu", precision): found = computed()
    assert all(map(torch.equal, found, wanted))
