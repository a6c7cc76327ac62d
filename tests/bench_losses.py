"""L_sim over a batch at once beside the loop over videos and events that its equation spells out.
Same loss, forward and backward."""
import time

import torch

from sail_nbdev.losses import similarity_loss
from sail_nbdev.masks import gaussian_mask


def plain_video(masks, frames, texts, margin):
    "L_sim of one video of n events."
    cos = torch.nn.functional.cosine_similarity
    n = len(masks)
    loss = 0.
    for i in range(n):
        view = (frames * masks[i][:, None]).mean(0)
        other = max(cos(view, texts[j], dim=0) for j in range(n) if j != i)
        loss = loss + (margin - cos(view, texts[i], dim=0) + other).relu()
    return loss / n


def plain(masks, frames, texts, valid, margin=.1):
    rows = zip(masks, frames, texts, valid)
    return sum(plain_video(m[real], v, t[real], margin) for m, v, t, real in rows) / len(frames)


def seconds(f, repeat=5):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        f().backward()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    g = torch.Generator().manual_seed(0)
    B = N = 8
    T = 32
    centers = torch.rand(B, N, generator=g).requires_grad_()
    widths = torch.rand(B, N, generator=g) * .3 + .05
    frames = torch.randn(B, T, 768, generator=g)
    texts = torch.randn(B, N, 768, generator=g)
    valid = torch.arange(N) < torch.randint(2, N + 1, (B, 1), generator=g)
    def args(): return gaussian_mask(centers, widths, T), frames, texts, valid
    assert torch.allclose(similarity_loss(*args()), plain(*args()), atol=1e-6)
    slow = seconds(lambda: plain(*args()))
    fast = seconds(lambda: similarity_loss(*args()))
    print(f"L_sim and its gradient, {B} videos of up to {N} events: "
          f"loop {1e3 * slow:.1f} ms, batch {1e3 * fast:.1f} ms, ratio {slow / fast:.1f}")
