"""What a GPU would be asked to start, and what would make the host wait for it: counted on the CPU, with the
layers of ActivityNet's preset and hardly any width, since neither depends on it. A step is forward and
backward of four videos with eleven events; a token is one step of beam search for all texts of a batch."""
import warnings

import elsewhere
import torch
from counting import Launches
from run_elsewhere import CAPTIONS, SMALL, data_on, model_on

from sail_nbdev.alignment import expected_events, posterior
from sail_nbdev.captioner import MASK, train_tokenizer
from sail_nbdev.config import Config

TRUE = Config.preset("activitynet")
DEPTH = {"captioner.encoder_layers": TRUE.captioner.encoder_layers, "localizer.convs": TRUE.localizer.convs,
         "captioner.decoder_layers": TRUE.captioner.decoder_layers, "data.n_frames": TRUE.data.n_frames,
         "localizer.n_queries": TRUE.localizer.n_queries, "decode.beams": TRUE.decode.beams,
         "decode.caption_tokens": TRUE.decode.caption_tokens}


def launched(f):
    with Launches() as count: f()
    return count.total


def waited(f):
    elsewhere.waits.clear()
    f()
    return sum(elsewhere.waits.values())


def parts(method, device):
    "What is counted, by name: a function, and how many steps it takes."
    config = Config.preset("toy", method, SMALL | DEPTH)
    tokenizer = train_tokenizer(sum(CAPTIONS, []) * 3, 400)
    model = model_on(device, config, tokenizer)
    batch = data_on(device, config).batch([0, 1, 2, 3])
    steps = []
    model.captioner.decoder.lm_head.register_forward_hook(lambda *_: steps.append(1))
    def write(): model.eval().captioner.write(batch.frames, MASK)
    write()
    return {f"{method}, stage 1": (lambda: model(batch, stage=1)["total"].backward(), 1),
            f"{method}, stage 2": (lambda: model(batch, stage=2)["total"].backward(), 1),
            f"{method}, a token": (write, len(steps))}


def lattice(device, T=100, N=18, B=8):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(B, T, N, generator=g).to(device).requires_grad_() for _ in range(2))
    valid = (torch.arange(N) < torch.randint(1, N + 1, (B, 1), generator=g)).to(device)

    def there_and_back():
        c, w = expected_events(*posterior(a, b, valid), valid)
        (c + w).sum().backward()

    return {f"posterior, T={T}, N={N}": (there_and_back, 1)}


def counts(device, count):
    rows = {}
    for group in (lambda: parts("sail", device), lambda: parts("sail_plus", device), lambda: lattice(device)):
        rows |= {name: count(f) / steps for name, (f, steps) in group().items()}
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    waits = {}
    if elsewhere.unknown(): print(f"waits are not counted: {elsewhere.unknown()}")
    else:
        elsewhere.register()        # before the first backward pass, which asks what devices there are
        with elsewhere.Elsewhere(): waits = counts("elsewhere:0", waited)
    launches = counts("cpu", launched)
    print(f"{'':26}launches   waits")
    for name, n in launches.items(): print(f"{name:26}{n:8.0f}{waits.get(name, float('nan')):8.2f}")
