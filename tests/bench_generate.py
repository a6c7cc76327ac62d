"""Captions of events by the true-size model (random weights): the released form, one `generate` per
video by transformers, beside one batch of many videos with one row per text.
Twenty-four videos with 75 events, 32 frames, 4 beams, 4 to 32 tokens. The texts are the same."""
import time

import torch

from sail_nbdev.captioner import EOS, MASK, PAD, train_tokenizer
from sail_nbdev.config import Config
from sail_nbdev.model import Sail

COUNTS = 3 * [2, 2, 3, 3, 3, 3, 4, 5]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def released(cap, frames):
    "Texts of one video's events, each beam a row that reads the video."
    c = cap.config.decode
    prompt = torch.tensor([cap.prompt_ids(MASK, 1)], device=DEVICE).expand(len(frames), -1)
    x = torch.cat([cap.encoder(frames), cap.decoder.transformer.wte(prompt)], 1)
    seen = torch.ones(x.shape[:2], dtype=torch.long, device=DEVICE)
    least, most = c.caption_tokens
    ids = cap.decoder.generate(
        inputs_embeds=x, attention_mask=seen, num_beams=c.beams, do_sample=False, min_new_tokens=least,
        max_new_tokens=most, no_repeat_ngram_size=c.no_repeat_ngram, pad_token_id=cap.ids[PAD],
        eos_token_id=cap.ids[EOS])
    return [t.strip() for t in cap.tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)]


def timed(f):
    start = time.perf_counter()
    texts = f()
    if DEVICE == "cuda": torch.cuda.synchronize()
    return texts, time.perf_counter() - start


def per_video(cap, frames): return sum([released(cap, v) for v in frames.split(COUNTS)], [])


def compare(cap, frames, rounds=2):
    "Best seconds of the released form and of ours; their texts must be equal."
    released(cap, frames[:2])
    cap.write(frames[:2], MASK)
    seconds = []
    for _ in range(rounds):
        theirs, slow = timed(lambda: per_video(cap, frames))
        ours, fast = timed(lambda: cap.write(frames, MASK))
        assert theirs == ours
        seconds.append((slow, fast))
    return map(min, zip(*seconds))


if __name__ == "__main__":
    torch.manual_seed(0)
    config = Config.preset("activitynet", overrides={"captioner.pretrained": None})
    cap = Sail(config, train_tokenizer([], 2000)).to(DEVICE).eval().captioner
    frames = torch.randn(sum(COUNTS), 32, 768, device=DEVICE)
    with torch.no_grad(): slow, fast = compare(cap, frames)
    print(f"captions of {sum(COUNTS)} events of {len(COUNTS)} videos on {DEVICE}, the same texts: "
          f"released form {slow:.2f} s, here {fast:.2f} s; ratio {slow / fast:.2f}")
