"""Captions of events by the true-size model (random weights): one `generate` of transformers a video, the released form, beside one batch of many videos with a row a text.
Twenty-four videos with 75 events, 32 frames, 4 beams, 4 to 32 tokens. The texts are the same."""
import time

import torch

from sail_nbdev.captioner import MASK, train_tokenizer
from sail_nbdev.core import Config
from sail_nbdev.model import Sail

COUNTS = 3 * [2, 2, 3, 3, 3, 3, 4, 5]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def released(cap, frames):
    "Texts of one video's events, each beam a row that reads the video."
    c, prompt = cap.config, torch.tensor([cap.prompt_ids(MASK, 1)], device=DEVICE).expand(len(frames), -1)
    x = torch.cat([cap.encoder(frames), cap.decoder.transformer.wte(prompt)], 1)
    out = cap.decoder.generate(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2], dtype=torch.long, device=DEVICE), num_beams=c.beams, do_sample=False, min_new_tokens=c.caption_tokens[0],
                               max_new_tokens=c.caption_tokens[1], no_repeat_ngram_size=c.no_repeat_ngram, pad_token_id=cap.ids["<PAD>"], eos_token_id=cap.ids["<|endoftext|>"])
    return [t.strip() for t in cap.tokenizer.decode_batch(out.tolist(), skip_special_tokens=True)]


def timed(f):
    start = time.perf_counter()
    out = f()
    if DEVICE == "cuda": torch.cuda.synchronize()
    return out, time.perf_counter() - start


if __name__ == "__main__":
    torch.manual_seed(0)
    cap = Sail(Config.preset("activitynet", pretrained=None), train_tokenizer([], 2000)).to(DEVICE).eval().captioner
    frames = torch.randn(sum(COUNTS), 32, 768, device=DEVICE)
    with torch.no_grad():
        released(cap, frames[:2]); cap.write(frames[:2], MASK)
        rounds = [(timed(lambda: sum([released(cap, v) for v in frames.split(COUNTS)], [])), timed(lambda: cap.write(frames, MASK))) for _ in range(2)]
    for (theirs, _), (ours, _) in rounds: assert theirs == ours
    a, b = (min(r[k][1] for r in rounds) for k in (0, 1))
    print(f"captions of {sum(COUNTS)} events of {len(COUNTS)} videos on {DEVICE}, the same texts: released form {a:.2f} s, here {b:.2f} s; ratio {a / b:.2f}")
