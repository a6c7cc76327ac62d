"""A trained run opened again: parts that are loaded once or missing, counts, predictions of a split, windows,
videos of one's own, and given sentences aligned to frames."""
import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_data import data_folder
from test_train import ON_CPU, tiny

import sail_nbdev.run
from sail_nbdev.captioner import Captioner
from sail_nbdev.core import Event, InputError, read_json, write_json
from sail_nbdev.data import read_predictions, write_predictions
from sail_nbdev.masks import to_intervals
from sail_nbdev.model import Sail
from sail_nbdev.run import Run, align, caption_frames, count_frames, merge_windows, predict_events, windows
from sail_nbdev.store import open_store
from sail_nbdev.toyworld import World, render, write_script, write_video
from sail_nbdev.train import train


def config(method="sail", **changes):
    "Long enough for a model that says something."
    long = dict(train__epochs_stage1=20, train__epochs_stage2=10, train__lr=5e-3)
    return tiny(method, **{**long, **changes})


def times_and_texts(events):
    "Times and texts of events; centres differ by roundings in a batch of another size."
    return [(e.start, e.end, e.caption) for e in events]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Six videos of nine frames, with a split val of four of them and one without features."
    folder = data_folder(tmp_path_factory.mktemp("data"), lambda n: [[5. * i, 5. * i + 4] for i in range(n)])
    rows = read_json(folder/"annotations"/"train.json")
    val = {v: rows[v] for v in list(rows)[:4]} | {"unseen": rows["v0"]}
    write_json(folder/"annotations"/"val.json", val)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    "A folder with a run of SAIL and one of SAIL+."
    out = tmp_path_factory.mktemp("runs")
    for method in ("sail", "sail_plus"): train(config(method), data, out/method, **ON_CPU)
    return out


@pytest.fixture
def runs(trained, tmp_path):
    "A copy of them, to which things may be done."
    return shutil.copytree(trained, tmp_path/"runs")


class Colors:
    "An encoder: a frame is its mean colour, a sentence the words it has."
    WORDS = ["red", "green", "blue", "man", "cat", "ball", "rolls", "stops", "runs", "sits", "one", "two"]

    def __init__(self): self.read = []

    def prepare(self, frames): return torch.as_tensor(frames).float().mean((1, 2)) / 255

    def encode_prepared(self, prepared, batch_size):
        mean = torch.cat(prepared)
        return torch.cat([mean, mean.new_zeros(len(mean), 9)], 1)

    def images(self, frames): return self.encode_prepared([self.prepare(frames)], 16)

    def texts(self, sentences):
        self.read += sentences
        return torch.tensor([[float(w in s.lower()) for w in self.WORDS] for s in sentences])


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    "A real file: two seconds of red, three of green, four of blue."
    path = tmp_path_factory.mktemp("video")/"colors.mp4"
    seconds = [0] * 2 + [1] * 3 + [2] * 4
    frames = np.zeros((36, 48, 48, 3), np.uint8)
    for i in range(36): frames[i, ..., seconds[i // 4]] = 250
    write_video(frames, path, fps=4)
    return path


def opened(folder, **parts):
    run = Run(folder, "cpu")
    for name, part in parts.items(): setattr(run, name, part)
    return run


# -- parts

def test_parts_are_loaded_when_they_are_needed_and_once(runs, data, monkeypatch):
    loaded = []
    load = Sail.from_pretrained.__func__
    def note(cls, folder, device="cpu"):
        loaded.append(folder.name)
        return load(cls, folder, device)
    monkeypatch.setattr(Sail, "from_pretrained", classmethod(note))
    run = Run.load(runs/"sail", "cpu")
    assert run.config == config()
    assert run.encoder_settings["fps"] == 1.
    assert loaded == []
    run.predict(data, progress=False)
    assert sorted(loaded) == ["sail", "stage1"]
    run.predict(data, progress=False)
    run.caption((torch.randn(9, 12), 20.))
    assert len(loaded) == 2


def test_a_demo_folder_stands_for_its_run_of_sail(runs, tmp_path):
    demo = tmp_path/"demo"
    shutil.copytree(runs/"sail", demo/"runs"/"sail")
    assert Run.load(demo).folder == demo/"runs"/"sail"
    assert Run.load(str(demo/"runs"/"sail")).config == config()


FRAMES = (torch.randn(9, 12), 20.)
MISSING = {
    "a folder that is none": ("nowhere", None, None, "nowhere: not a run folder"),
    "no configuration": ("sail", "config.json", None, "sail: not a run folder"),
    "not yet trained": ("sail", "model.safetensors", lambda r: r.model, "holds no trained model yet"),
    "no first stage": ("sail", "stage1", lambda r: r.caption(FRAMES), "stage1: no such folder.*n_events"),
    "no encoder": ("sail", "encoder.json", lambda r: r.caption("a.mp4"), "json: no such file"),
    "no counter": ("sail", "stage1/model.safetensors", lambda r: r.caption(FRAMES), "not a run folder"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_part_that_is_missing_is_one_sentence(runs, case):
    name, part, use, words = MISSING[case]
    path = runs/name/part if part else None
    if path is not None: shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=words) as error:
        run = Run.load(runs/name, "cpu")
        use(run)
    assert "\n" not in str(error.value)


def test_what_a_run_lacks_hinders_nothing_else(runs):
    shutil.rmtree(runs/"sail"/"stage1")
    (runs/"sail"/"encoder.json").unlink()
    run = Run(runs/"sail", "cpu")
    assert len(run.caption(FRAMES, n_events=2)) == 2
    assert run.window is None


def test_a_run_of_version_0_1_is_refused(runs):
    write_json(runs/"sail"/"config.json", {"name": "toy", "mask": "gaussian", "sim_weight": 1.})
    with pytest.raises(InputError, match="written by version 0.1, whose settings had no groups; train again"):
        print(Run.load(runs/"sail"))


def test_an_encoder_of_other_weights_is_refused(runs, monkeypatch):
    write_json(runs/"sail"/"encoder.json", {"model": "ViT-L-14", "pretrained": "openai", "weights": "one"})
    other = SimpleNamespace(meta={"weights": "another"})
    monkeypatch.setattr(sail_nbdev.run, "Encoder", lambda *args, **options: other)
    with pytest.raises(InputError, match="not those that made the features"):
        Run(runs/"sail").frames("holiday.mp4")


def test_an_encoder_beside_the_features_is_found_from_the_run(runs, data, monkeypatch):
    write_json(runs/"sail"/"encoder.json", {"model": "local", "folder": "../../world/clip", "weights": None})
    (runs.parent/"world"/"clip").mkdir(parents=True)
    names = []
    meta = SimpleNamespace(meta={"weights": "any"})
    monkeypatch.setattr(sail_nbdev.run, "Encoder", lambda name, *args, **options: names.append(name) or meta)
    assert Run(runs/"sail").encoder is meta
    assert names == [str(runs.parent/"world"/"clip")]


# -- counts

def test_counts_are_made_once(runs, data):
    run = Run(runs/"sail", "cpu")
    path = run.count(data, progress=False)
    assert path == runs/"sail"/"counts_val.json"
    counts = read_json(path)
    assert set(counts["n_events"]) == {f"v{i}" for i in range(4)}           # not the one without features
    store = open_store(data, "features")
    _, paragraphs = count_frames(run.counter, store.batch(list(counts["n_events"]), 9))
    assert list(counts["paragraphs"].values()) == paragraphs
    write_json(path, {"n_events": dict.fromkeys(counts["n_events"], 2)})
    assert run.count(data, progress=False) == path
    assert {len(events) for events in run.predict(data, progress=False).values()} == {2}


def test_the_localizer_counts(runs, data):
    run = Run(runs/"sail_plus", "cpu")
    shutil.rmtree(runs/"sail_plus"/"stage1")                                # it is not needed
    counts = read_json(run.count(data, progress=False))
    frames = open_store(data, "features").batch(list(counts["n_events"]), 9)
    own = run.model.localizer.count(frames).tolist()
    assert counts == {"n_events": dict(zip(counts["n_events"], own))}
    lengths = {v: len(events) for v, events in run.predict(data, progress=False).items()}
    assert lengths == counts["n_events"]


def test_paragraphs_are_written_with_the_settings_of_the_run(runs, data):
    "A first stage that was taken over holds the configuration of the run that trained it."
    short = config(decode__paragraph_tokens=(1, 3), decode__beams=1)
    short.save(runs/"sail"/"config.json")
    run = Run(runs/"sail", "cpu")
    assert run.counter.config.decode == short.decode
    _, texts = count_frames(run.counter, torch.randn(2, 9, 12))
    assert all(len(run.counter.captioner.tokenizer.encode(t).ids) <= 4 for t in texts)


@pytest.mark.parametrize("value,words", [
    ({"n_events": {"v0": 2}}, "says nothing of video v1; it was made for other videos"),
    ({"paragraphs": {}}, "n_events: field required"), ([], "must be an object")])
def test_counts_of_something_else_are_refused(runs, data, tmp_path, value, words):
    write_json(tmp_path/"counts.json", value)
    with pytest.raises(InputError, match=words): Run(runs/"sail").predict(data, counts=tmp_path/"counts.json")


def test_a_split_that_lacks_something_is_refused(runs, data, tmp_path):
    run = Run(runs/"sail", "cpu")
    with pytest.raises(InputError, match="test_1.json"): run.count(data, "test")
    with pytest.raises(InputError, match="no such store; make it with sail_features"): run.count(tmp_path)
    other = shutil.copytree(data, tmp_path/"data")
    row = {"timestamps": [[0, 1]], "sentences": ["A cat."]}
    write_json(other/"annotations"/"val.json", {"v0": row})
    assert read_json(run.count(other))["n_events"].keys() == {"v0"}         # as long as it has rows
    (runs/"sail"/"counts_val.json").unlink()
    about = read_json(other/"features"/"store.json")
    write_json(other/"features"/"store.json", {**about, "meta": {"dim": 12}})
    with pytest.raises(InputError, match="video v0: has no duration"): run.count(other)
    write_json(other/"annotations"/"val.json", {"x": {**row, "duration": 3.}})
    with pytest.raises(InputError, match="none of the videos of 'val' has features"): run.count(other)


# -- predictions

@pytest.fixture(scope="module")
def model(trained):
    return Sail.from_pretrained(trained/"sail")


def test_predictions_of_a_split_are_those_of_its_videos(runs, data, model):
    run = Run(runs/"sail", "cpu")
    predictions = run.predict(data, progress=False)
    counts = read_json(run.count(data))["n_events"]
    for v, n in counts.items():
        alone = predict_events(model, open_store(data, "features").batch([v], 9), [20.], n)[0]
        assert times_and_texts(alone) == times_and_texts(predictions[v])


def test_predictions_come_back_from_their_file(runs, data, tmp_path):
    predictions = Run(runs/"sail", "cpu").predict(data, progress=False)
    write_predictions(predictions, tmp_path/"p.json")
    assert read_predictions(tmp_path/"p.json") == predictions
    row = next(r for rows in json.loads((tmp_path/"p.json").read_text())["results"].values() for r in rows)
    assert list(row) == ["sentence", "timestamp", "center", "width"]


def test_times_are_those_of_the_masks_to_the_hundredth(model):
    frames = torch.randn(40, 9, 12)
    seconds = [10 + 7.77 * i for i in range(40)]
    n = [1 + i % 4 for i in range(40)]
    centers, widths = model.localize(frames, n)
    for i, events in enumerate(predict_events(model, frames, seconds, n)):
        assert len(events) == n[i]
        assert [e.center for e in events] == centers[i, :n[i]].tolist()
        assert [e.width for e in events] == widths[i, :n[i]].tolist()
        times = to_intervals(centers[i, :n[i]], widths[i, :n[i]], seconds[i]).tolist()
        assert [[e.start, e.end] for e in events] == [[round(t, 2) for t in pair] for pair in times]
        assert all(0 <= e.start <= e.end <= round(seconds[i], 2) for e in events)
        assert [e.center for e in events] == sorted(e.center for e in events)


@pytest.fixture(scope="module")
def talkative(model):
    "An untrained model of large random weights, which says something else of every mask."
    torch.manual_seed(0)
    other = Sail(model.config, model.captioner.tokenizer).eval()
    for p in other.captioner.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.4)
    return other


def test_captions_do_not_depend_on_the_company(talkative):
    model = talkative
    frames = torch.randn(5, 9, 12)
    n = [4, 1, 3, 2, 4]
    together = predict_events(model, frames, [20.] * 5, n)
    in_small_batches = predict_events(model, frames, [20.] * 5, n, batch_size=3)
    alone = [predict_events(model, frames[i:i + 1], [20.], n[i])[0] for i in range(5)]
    def texts(videos): return [[e.caption for e in events] for events in videos]
    assert texts(together) == texts(in_small_batches) == texts(alone)
    assert len({text for video in texts(together) for text in video}) > 7


def test_a_caption_is_kept_as_it_is_written(model, monkeypatch):
    'Also if it holds the words "events:".'
    text = "Two events: a man sits. Then 3 events: he stands."
    monkeypatch.setattr(Captioner, "write", lambda self, frames, mode: [text] * len(frames))
    events = predict_events(model, torch.randn(1, 9, 12), [20.], 2)[0]
    assert [e.caption for e in events] == [text, text]


def test_a_paragraph_ends_at_a_second_count(model, monkeypatch):
    text = "3 events: A man sits. He stands. 2 events: He goes. He comes."
    monkeypatch.setattr(Captioner, "write", lambda self, frames, mode: [text] * len(frames))
    assert count_frames(model, torch.randn(1, 9, 12))[0] == [3]             # the last one is "2"


def test_more_events_than_the_model_places_are_refused(model):
    with pytest.raises(InputError, match="the model has n_queries=4"):
        predict_events(model, torch.randn(1, 9, 12), [20.], 5)


# -- windows

def oracle(found, places, duration):
    "The rules of merging, written as one loop over dicts, as version 0.1 had them."
    def overlap(a, b):
        both = min(a[1], b[1]) - max(a[0], b[0])
        return both / max(max(a[1], b[1]) - min(a[0], b[0]), 1e-9)
    rows = []
    for k, events in enumerate(found):
        start, length = places[k]
        for e in events:
            center = (start + e.center * length) / duration
            off = [abs(center * duration - (s + w / 2)) for s, w in places]
            if off[k] > min(off) + 1e-9: continue
            times = [round(start + e.start, 2), round(start + e.end, 2)]
            rows.append(dict(k=k, text=e.caption, times=times, center=center, off=min(off)))
    out = []
    for r in sorted(rows, key=lambda r: r["center"]):
        last = out[-1] if out else None
        o = overlap(last["times"], r["times"]) if last else 0
        if last is None or last["k"] == r["k"] or o <= 0: out.append(r)
        elif last["text"] == r["text"]:
            times = [min(last["times"][0], r["times"][0]), max(last["times"][1], r["times"][1])]
            out[-1] = {**r, "times": times}
        elif o <= .5: out.append(r)
        elif r["off"] < last["off"]: out[-1] = r
    return [(*r["times"], r["text"]) for r in out]


def random_events(rng, length, words):
    "A few events of a window, in any order."
    events = []
    for _ in range(rng.integers(1, 5)):
        start, end = sorted(np.round(rng.uniform(0, length, 2), 2).tolist())
        center = (start + end) / 2 / length
        events.append(Event(start, end, str(rng.choice(words)), center, (end - start) / length))
    return events


@pytest.mark.parametrize("seed", range(40))
def test_windows_are_merged_by_the_rules(seed):
    rng = np.random.default_rng(seed)
    duration = float(rng.uniform(20, 4000))
    places = windows(duration, float(rng.uniform(10, 400)))
    events = [random_events(rng, length, ["A", "B"]) for _, length in places]
    merged = merge_windows(events, places, duration)
    if len(places) == 1: assert merged == events[0]
    else: assert times_and_texts(merged) == oracle(events, places, duration)
    for e in merged:
        assert -.011 <= e.start <= e.end <= duration + .011
        assert e.center == pytest.approx((e.start + e.end) / 2 / duration, abs=.011 / duration)
        assert e.width == pytest.approx(e.duration / duration, abs=.011 / duration)


def test_a_long_video_is_read_in_windows_of_its_own_frames(model, monkeypatch):
    "Each window sees the frames that lie in it, and no others."
    seen = []
    predict = sail_nbdev.run.predict_events
    def note(model, frames, durations, n, *more):
        seen.append((frames, list(durations)))
        return predict(model, frames, durations, n, *more)
    monkeypatch.setattr(sail_nbdev.run, "predict_events", note)
    frames = torch.arange(120.)[:, None].expand(-1, 12)
    caption_frames([(frames, 120.)], model, n_events=1, window=40.)
    [(x, lengths)] = seen
    assert lengths == [40.] * 5
    assert [(w.min().item(), w.max().item()) for w in x] == [(20. * i, 20. * i + 39) for i in range(5)]


def test_the_window_of_a_run_is_that_of_its_training_videos(runs, monkeypatch):
    run = Run(runs/"sail", "cpu")
    assert run.window == 20.
    asked = []
    real = sail_nbdev.run.windows
    monkeypatch.setattr(sail_nbdev.run, "windows", lambda d, w: asked.append(w) or real(d, w))
    run.caption(FRAMES, n_events=1)
    run.caption(FRAMES, n_events=1, window=0)
    run.caption(FRAMES, n_events=1, window=7.)
    assert list(dict.fromkeys(asked)) == [20., 0, 7.]


# -- videos of one's own

def test_a_video_is_a_file_or_frames(runs, video):
    run = opened(runs/"sail", encoder=Colors())
    frames, seconds = run.frames(video)
    assert frames.shape == (9, 12) and seconds == 9.
    assert frames[:, :3].argmax(1).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    from_file = run.caption(video, n_events=3)
    assert from_file == run.caption((frames, seconds), n_events=3)
    assert from_file == run.caption(frames, n_events=3)                     # a frame per second
    assert from_file == run.caption(frames.numpy(), n_events=3)
    assert len(from_file) == 3
    assert all(isinstance(e, Event) for e in from_file)


def test_several_videos_come_back_by_id(runs, video, tmp_path):
    run = opened(runs/"sail", encoder=Colors())
    shutil.copy(video, tmp_path/"other.mp4")
    both = run.caption([video, str(tmp_path/"other.mp4")], n_events=2)
    assert list(both) == ["colors", "other"]
    same = times_and_texts(run.caption(video, n_events=2))
    assert times_and_texts(both["colors"]) == times_and_texts(both["other"]) == same
    named = run.caption({"first": video, "second": FRAMES}, n_events=2)
    assert list(named) == ["first", "second"]
    (tmp_path/"deep").mkdir()
    shutil.copy(video, tmp_path/"deep"/"colors.mp4")
    with pytest.raises(InputError, match="would both be stored as 'colors'"):
        run.caption([video, tmp_path/"deep"/"colors.mp4"])


def test_a_video_that_cannot_be_read_is_left_out_and_said(runs, video, tmp_path):
    run = opened(runs/"sail", encoder=Colors())
    (tmp_path/"broken.mp4").write_bytes(b"no video")
    videos = {"broken": tmp_path/"broken.mp4", "colors": video, "gone": tmp_path/"gone.mp4"}
    result = run.caption_all(videos, n_events=2, progress=False)
    assert list(result.events) == list(result.durations) == ["colors"]
    assert list(result.failures) == ["broken", "gone"]
    assert all("\n" not in sentence for sentence in result.failures.values())
    with pytest.raises(InputError, match="broken.mp4: not a video"): run.caption(videos)
    assert run.caption_all({}, progress=False).events == {}


def test_videos_are_captioned_together_with_the_same_result(runs):
    run = Run(runs/"sail", "cpu")
    videos = {f"v{i}": (torch.randn(5 + 9 * i, 12), 5. + 9 * i) for i in range(6)}
    one_by_one = run.caption_all(videos, window=10., progress=False, together=1)
    some = run.caption_all(videos, window=10., progress=False, together=7)
    all_at_once = run.caption_all(videos, window=10., progress=False, together=1000)
    def texts(result): return {v: times_and_texts(events) for v, events in result.events.items()}
    assert texts(one_by_one) == texts(some) == texts(all_at_once)
    assert list(some.events) == list(videos)


@pytest.mark.parametrize("options,words", [
    (dict(n_events=0), "n_events 0 must be at least 1"), (dict(n_events=5), "n_queries=4"),
    (dict(window=-1.), "window -1.0 must be 0 or"), (dict(window=float("nan")), "window nan must be 0 or")])
def test_options_that_cannot_be(runs, options, words):
    with pytest.raises(InputError, match=words): Run(runs/"sail", "cpu").caption(FRAMES, **options)


def test_frames_of_another_width_are_refused(runs):
    with pytest.raises(InputError, match="frames of shape"):
        Run(runs/"sail", "cpu").caption((torch.randn(9, 7), 9.), n_events=1)


# -- given sentences

SENTENCES = ["All is red.", "All is green.", "All is blue."]


def test_sentences_are_aligned_to_a_file_without_a_model(video):
    events = align(video, SENTENCES, Colors())
    assert [e.caption for e in events] == SENTENCES
    for e, (first, last) in zip(events, [(0, 2), (2, 5), (5, 9)]):
        assert e.start == pytest.approx(first, abs=1.)
        assert e.end == pytest.approx(last, abs=1.)
        assert e.start == pytest.approx(max(0, e.center - e.width / 2) * 9, abs=.006)
        assert e.end == pytest.approx(min(1, e.center + e.width / 2) * 9, abs=.006)


def test_sentences_are_read_as_in_training(video):
    encoder = Colors()
    events = align(video, ["all is red", "All is BLUE."], encoder)
    assert encoder.read == ["All is red.", "All is blue."]
    assert [e.caption for e in events] == ["all is red", "All is BLUE."]    # and given back as they are


def test_a_run_without_frame_scores_aligns_by_sentences_alone(runs, video):
    run = opened(runs/"sail", encoder=Colors())
    assert run.align(video, SENTENCES) == align(video, SENTENCES, Colors())


def test_a_localizer_of_frames_adds_its_scores(runs, video, monkeypatch):
    run = opened(runs/"sail_plus", encoder=Colors())
    def aligned(): return [(e.center, e.width, e.confidence) for e in run.align(video, SENTENCES)]
    both = aligned()
    assert all(a[:2] < b[:2] for a, b in itertools.pairwise(both))
    monkeypatch.setattr(type(run), "event_scores", lambda *_: (0., 0.))
    without = aligned()
    assert max(abs(a - b) for p, q in zip(both, without) for a, b in zip(p, q)) > 1e-3
    assert run.model.frame_center.mean.norm() > .1 and run.model.text_center.mean.norm() > .1
    assert run.config.losses.align_temperature == 1
    for center in (run.model.frame_center, run.model.text_center): center.mean.zero_()
    run.model.background.zero_()
    alone = [(e.center, e.width, e.confidence) for e in align(video, SENTENCES, Colors())]
    assert aligned() == [pytest.approx(o, abs=1e-6) for o in alone]


@pytest.mark.parametrize("method", ["sail", "sail_plus"])
@pytest.mark.parametrize("sentences,words", [
    (["A man."] * 500, "500 sentences are more than the video's [0-9]+ frames"),
    ([], "at least one sentence"),
    ("A man walks.", "at least one sentence"), (["A man.", " "], "sentence ' ' is not a text"),
    (["A man.", None], "sentence None is not a text")])
def test_sentences_that_cannot_be_aligned(runs, video, method, sentences, words):
    run = opened(runs/method, encoder=Colors())
    with pytest.raises(InputError, match=words): run.align(video, sentences)
    with pytest.raises(InputError, match=words): align(video, sentences, Colors())


def test_more_sentences_than_the_localizer_has_queries(runs, video):
    run = opened(runs/"sail_plus", encoder=Colors())
    assert run.config.localizer.n_queries == 4
    assert len(run.align(video, ["A man."] * 5)) == 5


def test_one_frame_and_one_sentence():
    [event] = align((torch.randn(1, 12), .5), ["A cat."], Colors())
    assert (event.start, event.end) == (0., .5)


def test_a_rendered_video_goes_through(runs, tmp_path):
    world = World(n_train=1, n_val=1, n_clip=1, seed=3)
    write_video(render(write_script(world, "val", 0), world), tmp_path/"toy.mp4", world.fps)
    run = opened(runs/"sail", encoder=Colors())
    events = run.caption(tmp_path/"toy.mp4")
    assert events and all(0 <= e.start <= e.end for e in events)
