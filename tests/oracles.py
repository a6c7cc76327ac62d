"Equations of masks and cosines in plain numbers, one frame at a time: what the tensors are held against."
import math


def mask_row(c, w, T, family="gaussian", tau=2.):
    "The mask of one event over T frames."
    r = [i / (T - 1) for i in range(T)]
    if family == "gaussian": return [math.exp(-(x - c)**2 / (2 * (w / tau)**2)) for x in r]
    if family == "hard":
        start = max(0., c - w / 2)
        end = min(1., c + w / 2)
        nearest = min(abs(x - c) for x in r)
        return [1. if start < x < end or abs(x - c) == nearest else 0. for x in r]
    s = w / tau
    m = [s / (math.pi * ((x - c)**2 + s**2)) for x in r]
    return [x / max(m) for x in m]


def cosine(a, b):
    products = sum(x * y for x, y in zip(a, b))
    return products / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def pooled(frames, mask):
    "The mean over time of frames times their mask."
    return [sum(m * f[d] for m, f in zip(mask, frames)) / len(frames) for d in range(len(frames[0]))]
