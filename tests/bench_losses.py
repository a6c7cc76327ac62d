"L_sim over a batch at once beside the loop over videos and events that its equation spells out; same loss, forward and backward."
import time

import torch

from sail_nbdev.losses import similarity_loss
from sail_nbdev.masks import gaussian_mask


def plain(masks, frames, texts, valid, margin=.1):
    cos, total = torch.nn.functional.cosine_similarity, 0.
    for m, v, c, real in zip(masks, frames, texts, valid):
        n, loss = int(real.sum()), 0.
        for i in range(n):
            pooled = (v * m[i][:, None]).mean(0)
            other = max(cos(pooled, c[j], dim=0) for j in range(n) if j != i)
            loss = loss + (margin - cos(pooled, c[i], dim=0) + other).relu()
        total = total + loss / n
    return total / len(frames)


def seconds(f, repeat=5):
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        f().backward()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    g = torch.Generator().manual_seed(0)
    B, N, T, D = 8, 8, 32, 768
    centers, widths = torch.rand(B, N, generator=g).requires_grad_(), torch.rand(B, N, generator=g) * .3 + .05
    frames, texts = torch.randn(B, T, D, generator=g), torch.randn(B, N, D, generator=g)
    valid = torch.arange(N) < torch.randint(2, N + 1, (B, 1), generator=g)
    args = lambda: (gaussian_mask(centers, widths, T), frames, texts, valid)
    assert torch.allclose(similarity_loss(*args()), plain(*args()), atol=1e-6)
    slow, fast = seconds(lambda: plain(*args())), seconds(lambda: similarity_loss(*args()))
    print(f"L_sim and its gradient, {B} videos of up to {N} events: loop {1e3 * slow:.1f} ms, batch {1e3 * fast:.1f} ms, ratio {slow / fast:.1f}")
