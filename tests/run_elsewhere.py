"""Training steps, generation and prediction of small models on the device of `elsewhere.py` and on the CPU.
Prints, as JSON: what differs between the two, and how often the host had to wait."""
import json
import sys
import traceback

import elsewhere
import numpy as np
import torch
from accelerate import Accelerator
from elsewhere import Elsewhere, waits

from sail_nbdev.captioner import EOS, MASK, train_tokenizer
from sail_nbdev.config import METHODS, Config
from sail_nbdev.core import Video
from sail_nbdev.data import DeviceData
from sail_nbdev.model import Sail
from sail_nbdev.run import count_frames, predict_events
from sail_nbdev.train import _adamw, _update

CAPTIONS = [["A man walks in.", "He sits down.", "He eats."], ["A dog barks."],
            ["It rains.", "A red ball rolls."], ["One.", "Two two.", "Three.", "Four four four.", "Five."]]
SMALL = {"data.n_frames": 12, "data.feature_dim": 16, "localizer.d_model": 16, "localizer.n_heads": 2,
         "localizer.ffn": 16, "localizer.convs": 1, "captioner.d_model": 16, "captioner.n_heads": 2,
         "captioner.encoder_ffn": 16, "captioner.encoder_layers": 1, "captioner.decoder_width": 16,
         "captioner.decoder_layers": 1, "captioner.decoder_heads": 2, "decode.beams": 2,
         "decode.caption_tokens": (2, 32), "decode.paragraph_tokens": (2, 24), "captioner.dropout": 0.,
         "localizer.dropout": 0., "captioner.pretrained": None, "train.precision": "no", "train.eps": 1e-3}
CASES = {m: (m, {}) for m in METHODS} | {
    "change points": ("uniform", {"localizer.kind": "changes"}),
    "hard masks, hard negatives": ("sail", {"localizer.mask": "hard", "losses.hard_negatives": True}),
    "queries that align": ("sail", {"localizer.mask": "cauchy", "losses.align_weight": 1.}),
    "boundaries": ("sail_plus", {"losses.supervision": "boundaries"})}


class Store(dict):
    "Features in memory, as `DeviceData` asks for them."
    def sampled(self, ids, n_frames, dtype): return np.stack([self[v] for v in ids]).astype(dtype)


def drawn(rows, config, g): return torch.randn(rows, config.data.feature_dim, generator=g)


def data_on(device, config):
    "Four videos of three, one, two and five events, some gaps without a synthetic caption."
    g = torch.Generator().manual_seed(0)
    videos = {f"v{i}": Video(f"v{i}", captions=tuple(c), duration=10.) for i, c in enumerate(CAPTIONS)}
    features = Store({v: drawn(config.data.n_frames, config, g).numpy() for v in videos})
    texts = Store({v: drawn(len(o.captions), config, g) for v, o in videos.items()})
    gaps = {v: ["It goes on."] * (len(o.captions) - 1) for v, o in videos.items()}
    gaps["v0"][1] = None
    gap_texts = Store({v: drawn(len(o), config, g) for v, o in gaps.items()})
    shares = {v: [(i / 8, (i + 1) / 8) for i in range(len(o.captions))] for v, o in videos.items()}
    return DeviceData(videos, features, config, texts, gaps, gap_texts, device=device, segments=shares)


def model_on(device, config, tokenizer):
    "A model whose texts differ, and end early or late."
    torch.manual_seed(0)
    model = Sail(config, tokenizer)
    captioner = model.captioner
    captioner.decoder.lm_head = torch.nn.Linear(config.captioner.decoder_width, tokenizer.get_vocab_size())
    with torch.no_grad():
        for p in captioner.parameters():
            if p.dim() > 1 and p is not captioner.decoder.lm_head.weight: p.mul_(6)
        captioner.decoder.lm_head.bias[captioner.ids[EOS]] += .25
    return model.to(device)


class Run:
    "What a case does on one device, and the waits of each part."
    def __init__(self, device, config, tokenizer):
        self.config = config
        self.data = data_on(device, config)
        self.model = model_on(device, config, tokenizer)
        self.waits = {}

    def counted(self, name, f):
        waits.clear()
        result = f()
        self.waits[name] = dict(waits)
        return result

    def updates(self):
        "Two updates, one of each stage: losses and weights."
        acc = Accelerator(cpu=True)
        optimizer = _adamw(self.model, self.config)
        losses = []
        for stage in (1, 2):
            def update(stage=stage):
                index = [0, 1, 2, 3]
                feed = self.data.stream([index])
                args = feed, [(index, 1)], self.config, stage, ("pos", "neg")
                return _update(acc, self.model, optimizer, *args)
            losses.append(self.counted(f"stage {stage}", update))
        return losses, [p.detach().cpu() for p in self.model.parameters()]

    def texts(self):
        "A text from each video, and how many tokens the search took."
        self.model.eval()
        steps = []
        self.model.captioner.decoder.lm_head.register_forward_hook(lambda *_: steps.append(1))
        frames = torch.cat([self.data.frames, -self.data.frames])
        found = self.counted("generation", lambda: self.model.captioner.write(frames, MASK))
        return found, len(steps)

    def predictions(self):
        "Events and counts of the videos."
        frames = self.data.frames
        seconds = [10.] * len(frames)
        events = self.counted("prediction", lambda: predict_events(self.model, frames, seconds, [3, 1, 2, 5]))
        counts = self.counted("counting", lambda: count_frames(self.model, frames)[0])
        return [[(e.caption, e.start, e.end) for e in row] for row in events], list(counts)


def farthest(a, b): return max((x - y).abs().max().item() for x, y in zip(a, b))


def compare(case, tokenizer):
    "What differs between the devices, and the waits on the one elsewhere."
    method, changes = CASES[case]
    config = Config.preset("toy", method, SMALL | changes)
    here = Run("cpu", config, tokenizer)
    losses, weights = here.updates()
    texts, steps = here.texts()
    predictions = here.predictions()
    with Elsewhere():
        there = Run("elsewhere:0", config, tokenizer)
        losses_there, weights_there = there.updates()
        loss = max(abs(a[k] - b[k]) for a, b in zip(losses, losses_there) for k in a)
        texts_there, steps_there = there.texts()
        predictions_there = there.predictions()
    return dict(loss=loss, weight=farthest(weights, weights_there), texts=texts == texts_there,
                predictions=predictions == predictions_there, steps=[steps, steps_there], waits=there.waits)


def refused(f):
    try: f()
    except RuntimeError: return True
    return False


def device_itself():
    "Does the device refuse and count what a GPU would?"
    with Elsewhere():
        x = torch.arange(6.).to("elsewhere")
        host = torch.arange(6.)
        mixtures = (lambda: x + host, lambda: torch.cat([x, host]), lambda: host[x > 2])
        refusals = list(map(refused, mixtures))
        seen = {}
        calls = dict(item=lambda: x[0].item(), bool=lambda: bool((x > 2).any()), mask=lambda: x[x > 2],
                     back=lambda: x.cpu(), blocking=lambda: host.to("elsewhere"), plain=lambda: x * 2 + 1,
                     host_index=lambda: x[torch.tensor([1])], listed=lambda: x.tolist(),
                     unpinned=lambda: host.to("elsewhere", non_blocking=True),
                     pinned=lambda: host.pin_memory().to("elsewhere", non_blocking=True))
        for name, f in calls.items():
            waits.clear()
            f()
            seen[name] = sum(waits.values())
    return dict(refusals=refusals, waits=seen)


def main(cases):
    elsewhere.register()
    tokenizer = train_tokenizer(sum(CAPTIONS, []) * 3, 400)
    report = {"device": device_itself()}
    for case in cases or CASES:
        try: report[case] = compare(case, tokenizer)
        except Exception: report[case] = {"error": traceback.format_exc()}
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])
