"The lattice and its posterior against a plain one, frame by frame, and its cost by counting."
import pytest
import torch
import torch.nn.functional as F
from counting import Launches

from sail_nbdev.alignment import NEVER, expected_events, lattice, posterior

SIZES = [(32, 16, 8, 1.), (100, 18, 8, 10.), (32, 16, 4, 30.), (400, 5, 2, 3.)]     # T, N, B, size of scores


def plain_lattice(enter, stay):
    "One step for each frame, differentiable as often as one likes."
    event = torch.full_like(enter[:, 0], NEVER)
    total = event
    for b, a in zip(stay.unbind(1), enter.unbind(1)):
        before = F.pad(total[:, :-1], (1, 0))
        event = torch.stack((event + b, before + a)).logsumexp(0)
        total = torch.stack((total, event)).logsumexp(0)
    return total


def plain_posterior(enter, stay, valid):
    "The gradient of the plain lattice."
    starts, more = torch.zeros(2, *enter.shape, dtype=enter.dtype, requires_grad=True)
    last = valid.sum(-1, keepdim=True) - 1
    value = plain_lattice(enter + starts, stay + more).gather(1, last)
    p, q = torch.autograd.grad(value.sum(), (starts, more), create_graph=True)
    return p, p + q


def scores(T, N, B, size, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    enter, stay = (size * torch.randn(2, B, T, N, generator=g, dtype=torch.float64)).to(dtype)
    counts = torch.randint(1, N + 1, (B, 1), generator=g)
    return enter.requires_grad_(), stay.requires_grad_(), torch.arange(N) < counts


def with_gradient(f, enter, stay, seed=0):
    "All results of `f`, and the gradient of a random sum of them."
    out = f(enter, stay)
    out = out if isinstance(out, tuple) else (out,)
    g = torch.Generator().manual_seed(seed)
    weights = [torch.randn(o.shape, generator=g, dtype=o.dtype) for o in out]
    total = sum((w * o).sum() for w, o in zip(weights, out))
    return [o.detach() for o in out], torch.autograd.grad(total, (enter, stay))


@pytest.mark.parametrize("size", SIZES)
def test_lattice_and_posterior_are_the_plain_ones(size):
    enter, stay, valid = scores(*size)
    for ours, plain in ((lattice, plain_lattice),
                        (lambda a, b: posterior(a, b, valid), lambda a, b: plain_posterior(a, b, valid))):
        found, gradient = with_gradient(ours, enter, stay)
        wanted, wanted_gradient = with_gradient(plain, enter, stay)
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(gradient, wanted_gradient, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_lower_precision_lose_no_more_than_their_rounding(dtype):
    enter, stay, valid = scores(100, 18, 4, 5., dtype)
    found, gradient = with_gradient(lambda a, b: posterior(a, b, valid), enter, stay)
    wanted = plain_posterior(enter.detach().double(), stay.detach().double(), valid)
    assert [o.dtype for o in found] == [torch.float32] * 2
    torch.testing.assert_close([o.double() for o in found], [o.detach() for o in wanted], atol=1e-6, rtol=0)
    assert [o.dtype for o in gradient] == [dtype] * 2 and all(o.isfinite().all() for o in gradient)


def test_a_frame_that_no_event_may_hold():
    "Scores of NEVER within a video cost no digits elsewhere."
    enter, stay, valid = scores(60, 6, 3, 2.)
    shut = torch.zeros(3, 60, 6, dtype=torch.bool)
    shut[:, 20:40, 2:] = True
    closed = [x.detach().masked_fill(shut, NEVER) for x in (enter, stay)]
    found = posterior(*closed, valid)
    wanted = plain_posterior(*[x.clamp_min(-1e4) for x in closed], valid)
    torch.testing.assert_close(found, tuple(o.detach() for o in wanted), atol=1e-8, rtol=0)
    assert not found[1][shut].any()


def test_more_events_than_frames_and_none_at_all_stay_finite():
    enter, stay, _ = scores(4, 6, 2, 1., torch.float32)
    valid = torch.tensor([[True] * 6, [False] * 6])
    found, gradient = with_gradient(lambda a, b: posterior(a, b, valid), enter, stay)
    assert all(o.isfinite().all() for o in (*found, *gradient))
    assert not found[1][1].any()


def test_a_gradient_that_is_not_finite_is_passed_on():
    "A scaler of fp16 looks for it."
    enter, stay, valid = scores(12, 3, 1, 1., torch.float32)
    starts, _ = posterior(enter, stay, valid)
    gradient = torch.autograd.grad(starts.sum() * torch.inf, (enter, stay))
    assert not all(g.isfinite().all() for g in gradient)


def launches(T, N=18, B=8):
    "Kernels of a forward and a backward pass from scores to centres and widths."
    enter, stay, valid = scores(T, N, B, 1., torch.float32)
    with Launches() as count:
        c, w = expected_events(*posterior(enter, stay, valid), valid)
        (c.sum() + w.sum()).backward()
    return count.total


def test_launches_do_not_grow_with_the_length_of_a_video():
    assert launches(40) == launches(400) < 450          # one step for each frame took 5,439 for T = 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("size", SIZES)
def test_a_gpu_scans_as_the_cpu_does(size):
    "Its scans of complex numbers too, which carry the gradient."
    enter, stay, valid = scores(*size)
    found, gradient = with_gradient(lambda a, b: posterior(a, b, valid), enter, stay)
    there = [x.detach().cuda().requires_grad_() for x in (enter, stay)]
    starts, holds = posterior(*there, valid.cuda())
    torch.testing.assert_close([starts.cpu(), holds.cpu()], found, atol=1e-9, rtol=1e-9)
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(o.shape, generator=g, dtype=o.dtype).cuda() for o in found]
    total = (weights[0] * starts).sum() + (weights[1] * holds).sum()
    on_gpu = torch.autograd.grad(total, there)
    torch.testing.assert_close([o.cpu() for o in on_gpu], list(gradient), atol=1e-9, rtol=1e-9)
