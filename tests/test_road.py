"""The road from one's own videos to a run that reads more of them: plain input, encoders that are kept, work
that is checked and said before it is done, outputs of several videos, and what things cost."""
import contextlib
import io
import shutil

import huggingface_hub.constants as hub
import open_clip
import pytest
import torch
from clips import grey, write_clip

from sail_nbdev import clip as clip_module
from sail_nbdev.captioner import load_tokenizer
from sail_nbdev.check import check_data, next_commands
from sail_nbdev.clip import ENCODER_COSTS, Encoder, hub_or_cache, to_fetch
from sail_nbdev.commands import sail_augment, sail_caption, sail_features, sail_train
from sail_nbdev.core import Event, InputError, read_json, write_json
from sail_nbdev.data import annotation_files, read_annotations
from sail_nbdev.export import embeddable, write_events
from sail_nbdev.run import Captions, Run, _encoder_settings, keep_encoder, load_encoder
from sail_nbdev.store import FeatureStore, WorkBar, encoder_note, encoder_of, extract, plan_work

SENTENCES = {"street": ["A street is empty.", "a man comes"],
             "beach.mp4": ["Waves come in.", "A boat leaves."]}
SMALL = ("captioner.pretrained=none captioner.d_model=16 captioner.n_heads=2 captioner.decoder_width=16 "
         "captioner.decoder_layers=1 captioner.decoder_heads=2 captioner.encoder_layers=1 "
         "captioner.vocab_size=300 localizer.d_model=16 localizer.n_heads=2 "
         "train.epochs_stage1=1 train.epochs_stage2=1").split()


def told(command, *args, **options):
    "Exit code, and what a command said, answers first."
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = command(*args, **options)
        except SystemExit as e: code = e.code
    return code or 0, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory, clip_folder):
    "Two videos, their sentences without times, an encoder elsewhere, features, and a run of ilcacm."
    home = tmp_path_factory.mktemp("home")
    (home/"videos").mkdir()
    for i, name in enumerate(("street", "beach")): write_clip(home/"videos"/f"{name}.mp4", grey(50 + 20 * i))
    shutil.copytree(clip_folder, home/"clip")
    write_json(home/"mine"/"annotations"/"train.json", SENTENCES)
    write_json(home/"mine"/"annotations"/"val.json", SENTENCES)
    made = dict(out=str(home/"mine"/"features"), model=str(home/"clip"), device="cpu")
    code, out, err = told(sail_features, [str(home/"videos")], **made)
    assert code == 0 and "2 videos done" in out
    assert "2 videos, 0:00:12 of video, 12 frames at 1 a second, by" in err
    how = dict(data=str(home/"mine"), method="ilcacm", device="cpu", override=SMALL)
    code, out, err = told(sail_train, "plain", out=str(home/"run"), **how)
    assert code == 0, err
    (home/"said.txt").write_text(out)
    return home


@pytest.fixture
def copied(home, tmp_path):
    "A copy of all of it, to which things may be done; the encoder that made it is not in the copy's place."
    return shutil.copytree(home, tmp_path/"home")


# -- plain input

def test_sentences_alone_are_enough(home):
    report = check_data(home/"mine")
    assert report.ready("ilcacm") and report.commands["sail_predict"] == "ready"
    assert "2 of 2 of train" in next(p.words for p in report.parts if p.name == "features")
    assert "data.n_frames = 16: mean duration 6.0 s" in (home/"said.txt").read_text()
    assert Run(home/"run").window == 7.
    events = Run(home/"run", "cpu").predict(home/"mine", progress=False)
    assert events.keys() == {"street", "beach"} and all(e.end <= 7 for o in events.values() for e in o)


def test_a_text_file_beside_each_video(tmp_path):
    (tmp_path/"videos").mkdir()
    with pytest.raises(InputError, match="train.json: no such file"): annotation_files(tmp_path, "train")
    (tmp_path/"videos"/"a.b.txt").write_text("A street is empty.\n\n  a man comes \n")
    (tmp_path/"videos"/"c.txt").write_text("Waves.")
    def read():
        videos = read_annotations(*annotation_files(tmp_path, "train"))
        return {v: o.captions for v, o in videos.items()}
    assert read() == {"a.b": ("A street is empty.", "a man comes"), "c": ("Waves.",)}
    (tmp_path/"annotations"/"train").mkdir(parents=True)
    (tmp_path/"annotations"/"train"/"d.txt").write_text("A dog.")
    assert read() == {"d": ("A dog.",)}
    with pytest.raises(InputError): annotation_files(tmp_path, "val")


def test_an_id_may_name_its_file():
    def ids(*names): return list(read_annotations({v: ["A dog."] for v in names}))
    assert ids("a.mp4", "videos/b.MKV", "v_1.2", "c") == ["a", "b", "v_1.2", "c"]
    assert ids("x/a.mp4", "y/a.mp4") == ["x/a.mp4", "y/a.mp4"]      # not to be told apart otherwise


# -- encoders that are kept

def test_a_moved_run_reads_videos(copied, home):
    assert "can be moved" in (home/"said.txt").read_text()
    run = shutil.move(copied/"run", copied/"elsewhere")
    (copied/"clip").rename(copied/"gone")
    settings = read_json(run/"encoder.json")
    assert settings["folder"] == "encoder" and "absolute" not in settings
    assert Run(run, "cpu").encoder.build["model"] == str(run/"encoder")
    assert Run(run, "cpu").caption(home/"videos"/"beach.mp4", n_events=2)


def test_a_large_encoder_is_found_from_the_run_and_by_its_path(copied):
    run = copied/"run"
    shutil.rmtree(run/"encoder")
    write_json(run/"encoder.json", {**read_json(run/"encoder.json"), "folder": "../clip",
                                    "absolute": str(copied/"away"/"clip")})
    assert "too large to copy" in keep_encoder(run, most=1000) and not (run/"encoder").exists()
    def place(): return Run(run, "cpu").encoder.build["model"]
    assert place() == str(copied/"clip")
    shutil.copytree(copied/"clip", copied/"away"/"clip")
    shutil.rmtree(copied/"clip")
    assert place() == str(copied/"away"/"clip")
    shutil.rmtree(copied/"away")
    with pytest.raises(InputError, match="is not there any more; copy it to a folder 'encoder'"): place()


def test_weights_in_a_file_and_half_precision_are_kept(home, tmp_path):
    "The encoder of the store comes back with its file and its dtype."
    settings = read_json(home/"clip"/"open_clip_config.json")["model_cfg"]
    write_json(tmp_path/"models"/"tiny-of-tests.json", settings)
    open_clip.add_model_config(tmp_path/"models")
    weights = shutil.copy(home/"clip"/"open_clip_model.safetensors", tmp_path/"own.safetensors")
    encoder = Encoder("tiny-of-tests", str(weights), "cpu", "bfloat16")
    store = FeatureStore.create(tmp_path/"data"/"features", **encoder.meta, fps=1.)
    store.note_encoder(encoder)
    assert encoder_of(FeatureStore(store.folder)) == ("tiny-of-tests", str(weights))
    assert encoder_note(store) is None
    write_json(tmp_path/"run"/"encoder.json", {**store.meta, "file": "../own.safetensors"})
    assert "copy of the encoder" in keep_encoder(tmp_path/"run")
    weights.unlink()
    assert load_encoder(_encoder_settings(tmp_path/"run"), "cpu").meta == encoder.meta


def test_a_store_and_its_encoder_may_be_moved_together(copied):
    moved = copied.rename(copied.parent/"moved")
    assert encoder_of(FeatureStore(moved/"mine"/"features")) == (str(moved/"clip"), "none")
    code, out, err = told(sail_features, texts=str(moved/"mine"), device="cpu")
    assert code == 0 and "2 videos with captions done" in out, err
    assert FeatureStore(moved/"mine"/"text").meta["dim"] == 8


def test_more_videos_go_to_a_store_by_its_own_encoder(copied):
    write_clip(copied/"new.mp4", grey(20))
    store = str(copied/"mine"/"features")
    code, out, _ = told(sail_features, [str(copied/"new.mp4")], out=store, device="cpu")
    assert code == 0 and "1 videos done" in out


# -- refused before the work

def test_training_is_refused_if_its_run_could_not_read_videos(copied, home):
    store = copied/"mine"/"features"/"store.json"
    asked = dict(data=str(copied/"mine"), out=str(copied/"new"/"run"), method="ilcacm", device="cpu",
                 override=SMALL)
    def refused(): return told(sail_train, "plain", **asked)
    about = read_json(store)
    (copied/"clip").rename(copied/"gone")
    write_json(store, {**about, "encoder": {"model": ["../../../clip", str(copied/"clip")]}})
    code, out, err = refused()
    assert code == 2 and "does not lie in" in err and out == "" and not (copied/"new").exists()
    (copied/"gone").rename(copied/"clip")
    write_json(store, {**about, "meta": {**about["meta"], "weights": "0"}})
    code, out, err = refused()
    assert code == 2 and "whose weights are others" in err and not (copied/"new").exists()
    write_json(store, about)
    late = {**asked, "override": [*SMALL, "captioner.pretrained=no/where"]}      # found out inside of `train`
    code, _, err = told(sail_train, "plain", **late)
    assert code == 2 and "no/where" in err and not (copied/"new").exists()
    (copied/"empty").mkdir()
    assert told(sail_train, "plain", **{**late, "out": str(copied/"empty")})[0] == 2
    assert not list((copied/"empty").iterdir())


def test_features_of_others_are_a_warning(tmp_path):
    store = FeatureStore.create(tmp_path/"features", model="c3d", dim=4, fps=1., text_tower=False)
    assert encoder_note(store).endswith("but sail_caption will not read videos")
    assert "does not say which encoder" in encoder_note(FeatureStore.create(tmp_path/"plain", dim=4))
    named = FeatureStore.create(tmp_path/"named", model="ViT-L-14", pretrained="openai", dim=768, fps=1.)
    assert encoder_note(named) is None


def test_a_finished_run_names_the_next_commands(home):
    said = (home/"said.txt").read_text()
    lines = said[said.index("next\n"):].split("\n")
    assert lines[1:3] == [f"  sail_caption VIDEO.mp4 --model {home/'run'} --html page.html",
                          f"  sail_predict {home/'run'} --data {home/'mine'}"]
    assert not any("sail_eval" in line for line in lines)                       # nothing to compare with
    assert next_commands(home/"mine", home/"run", reads_videos=False)[0].startswith("sail_predict")


# -- outputs

def test_subtitles_of_several_videos_go_to_a_folder(home, tmp_path):
    both = [str(home/"videos")]
    how = dict(model=str(home/"run"), device="cpu", n_events=2)
    code, out, err = told(sail_caption, both, out=str(tmp_path/"subs"), srt="", json="", **how)
    assert code == 0 and "2 videos, 0:00:12 of video" in err, err
    written = sorted(p.name for p in (tmp_path/"subs").iterdir())
    assert written == ["beach.json", "beach.srt", "street.json", "street.srt"]
    assert (tmp_path/"subs"/"beach.srt").read_text().count("-->") == 2
    assert list(read_json(tmp_path/"subs"/"beach.json")["results"]) == ["beach"]


WRONG = {
    "one subtitle file": (dict(srt="a.srt"), "holds one video, not 2; --out DIR --srt"),
    "another suffix": (dict(json="a.txt"), "not as .txt"),
    "a file for one each": (dict(vtt="", out="all.json"), "all.json: is one file; --vtt without a file"),
    "no place": (dict(json="/proc/none/a.json"), "cannot be written"),
    "no events": (dict(n_events=0), "n_events 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_outputs_are_refused_before_any_work(home, case, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "caption_all", None)
    options, words = WRONG[case]
    code, out, err = told(sail_caption, [str(home/"videos")], model=str(home/"run"), **options)
    assert code == 2 and words in err and out == "" and not list(tmp_path.iterdir()), err


def test_what_a_page_cannot_hold_is_linked(tmp_path):
    for name, size in (("big", 199), ("small", 0), ("huge", 201)):
        with open(tmp_path/f"{name}.mp4", "wb") as f: f.truncate(size * 10**6 + 2 * 10**6 * (name == "small"))
    videos = {p.stem: p for p in sorted(tmp_path.glob("*.mp4"))}
    assert embeddable(videos) == {"big"}
    events = {v: [Event(0, 1, "A dog.")] for v in ("huge", "small")}
    write_events(events, tmp_path/"page.html", dict.fromkeys(events, 2.), videos, embed={"small"})
    page = (tmp_path/"page.html").read_text()
    assert 'src="huge.mp4"' in page and "data:video/mp4" in page


# -- what it costs

def test_a_plan_counts_from_headers(home, tmp_path):
    (tmp_path/"noise.mp4").write_bytes(b"no")
    files = [*(home/"videos").iterdir(), tmp_path/"noise.mp4"]
    plan = plan_work(files, 2.)
    assert plan[:3] == (3, 12., 24) and str(plan) == "3 videos, 0:00:12 of video, 24 frames at 2 a second"
    many = plan_work(files[:2] * 500, 1., most=10)
    assert many.videos == 1000 and many.sampled and str(many).startswith("1000 videos, about ")


def test_bars_count_frames_of_few_videos(home, capsys):
    few, many = (plan_work(list((home/"videos").iterdir()) * n) for n in (1, 60))
    for plan, unit in ((few, " frames"), (many, " videos")):
        with WorkBar(plan, "features") as bar:
            bar.frames(3)
            bar.video()
            assert (bar.bar.unit, bar.bar.n) == (unit, 3 if plan is few else 1)
            bar.start -= 600
            for _ in range(2): bar.step(1)
    assert capsys.readouterr().err.count(" a second, about ") == 2             # told once for each


def test_extraction_counts_every_frame(home, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(WorkBar, "frames", lambda self, n: counted.append(n))
    encoder = Encoder(str(home/"clip"), device="cpu")
    store = FeatureStore.create(tmp_path/"s", **encoder.meta, fps=1.)
    extract(sorted((home/"videos").iterdir()), store, encoder, progress=False)
    assert sum(counted) == 12


def test_estimates_need_no_weights(home, monkeypatch):
    monkeypatch.setattr(Encoder, "rate", lambda self: 2.)
    how = dict(model=str(home/"clip"), estimate=True, device="cpu")
    code, out, _ = told(sail_features, [str(home/"videos")], **how)
    assert code == 0 and "encodes 2.0" in out
    assert "12 frames at 1 a second" in out and "nothing to fetch" in out
    assert all(name in out for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14", "MobileCLIP-S1"))
    assert "1,710 MB" in to_fetch("ViT-L-14", "openai") and to_fetch("ViT-L-14", "none") == ""


@pytest.mark.parametrize("model", ENCODER_COSTS)
def test_what_is_fetched_is_what_the_architecture_has(model):
    with torch.device("meta"): tower = open_clip.create_model(model, pretrained_text=False, device="meta")
    numbers = sum(t.numel() for t in tower.state_dict().values() if t.is_floating_point())
    assert abs(4 * numbers / 1e6 - ENCODER_COSTS[model].megabytes) < 2


def test_no_language_model_is_fetched_unasked(home, tmp_path, monkeypatch):
    import sail_nbdev.writers
    monkeypatch.setattr(sail_nbdev.writers, "make_backend", None)
    train = str(home/"mine"/"annotations"/"train.json")
    for options in ({}, dict(backend="transformers"), dict(backend="vision", data=str(home/"mine"))):
        code, out, err = told(sail_augment, train, out=str(tmp_path/"s.json"), **options)
        assert code == 2 and "must be given: nothing is fetched unasked" in err
        assert out.startswith("2 gaps; nothing was asked") and "16.4 GB to fetch" in out
        assert not list(tmp_path.iterdir())


def test_the_hub_is_asked_once_and_never_about_a_folder(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(clip_module, "_answers", lambda *a: asked.append(a))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    with hub_or_cache(tmp_path): assert hub.HF_HUB_OFFLINE is True
    assert asked == [] and hub.HF_HUB_OFFLINE is False
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="tokenizer no/where: neither"): load_tokenizer("no/where")
    assert len(asked) == 1


def test_captions_of_an_interrupted_call_are_not_made_again(home, tmp_path, monkeypatch):
    "Ctrl-C after the first of two videos: its events are kept, the next call makes those of the other, once."
    from sail_nbdev import run as run_module
    whole = run_module.caption_frames
    made = []
    def captions(videos, *parts, **options):
        if made == [1] and not finish: raise KeyboardInterrupt
        made.append(len(videos))
        return whole(videos, *parts, **options)
    monkeypatch.setattr(run_module, "caption_frames", captions)
    caption_all = Run.caption_all
    monkeypatch.setattr(Run, "caption_all", lambda *args, **how: caption_all(*args, **how, together=1))
    how = dict(model=str(home/"run"), n_events=2, device="cpu")
    videos = [str(home/"videos")]
    finish = True
    wanted = tmp_path/"wanted.json"
    assert told(sail_caption, videos, json=str(wanted), **how)[0] == 0 and made == [1, 1]
    for options in (dict(json=str(tmp_path/"one.json")), dict(out=str(tmp_path/"each"), srt="", json="")):
        made.clear()
        finish = False
        code, _, err = told(sail_caption, videos, **options, **how)
        assert code == 130 and "run it again to go on" in err
        part, = tmp_path.rglob("captions.*.part")
        assert len(list((tmp_path/"each").glob("*.json"))) == ("out" in options)
        finish = True
        code, _, err = told(sail_caption, videos, **options, **how)
        assert code == 0 and made == [1, 1] and "goes on: 1 of 2 videos are in" in err
        assert not part.exists()
    assert (tmp_path/"one.json").read_bytes() == wanted.read_bytes()
    names = sorted(p.name for p in (tmp_path/"each").iterdir())
    assert names == ["beach.json", "beach.srt", "street.json", "street.srt"]
    made.clear()
    finish = False
    code, out, _ = told(sail_caption, videos, **how)
    assert code == 130 and out.strip()                              # nothing to write: what is there is said
    assert not list(home.rglob("*.part"))


def test_captions_are_kept_where_the_output_cannot_be_written(home, tmp_path, monkeypatch):
    from sail_nbdev import commands
    how = dict(model=str(home/"run"), n_events=2, device="cpu", json=str(tmp_path/"one.json"))
    monkeypatch.setattr(commands, "_write", lambda *args, **look: ["the disk is full"])
    code, out, err = told(sail_caption, [str(home/"videos")], **how)
    assert code == 2 and "the disk is full" in err and out.count("street") == 1
    monkeypatch.undo()
    monkeypatch.setattr(Run, "caption_all", lambda self, videos, *args, **o: caption_none(videos))
    code, _, err = told(sail_caption, [str(home/"videos")], **how)
    assert code == 0 and "goes on: 2 of 2" in err and len(read_json(tmp_path/"one.json")["results"]) == 2


def caption_none(videos):
    assert not videos
    return Captions({}, {}, {})
