"Decoding against files that a notebook cannot hold: real clips, turned phones, covers, torn and odd files."
import io
import shutil
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from clips import decoded, encode, grey, noise, number, real_clip, shown_at, write_clip

from sail_nbdev.core import InputError
from sail_nbdev.video import decode_video


@pytest.mark.parametrize("rate", [Fraction(10), Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_frame_times_match_a_plain_sequential_decode(tmp_path, rate, suffix):
    "With B-frames, so that the order of decoding is not that of display."
    path = write_clip(tmp_path/f"a.{suffix}", grey(50), rate=rate)
    plain = list(decoded(path))
    for fps in (1, 3, 7.5):
        frames, times, duration = decode_video(path, fps)
        assert duration == pytest.approx(50 / float(rate), abs=.05)
        assert times.tolist() == [k / fps for k in range(len(times))]
        assert len(times) == np.ceil(duration * fps - 1e-6)
        assert all(np.array_equal(shown_at(plain, t), f) for t, f in zip(times, frames))


def test_no_time_stamps_at_all(tmp_path):
    "A raw H.264 stream has neither a duration nor presentation times."
    raw = write_clip(tmp_path/"raw.h264", grey(50), rate=25, bf="0")
    frames, _, duration = decode_video(raw)
    assert number(frames) == [0, 25] and duration == pytest.approx(2, abs=.05)


def test_one_frame(tmp_path):
    frames, times, duration = decode_video(write_clip(tmp_path/"one.mp4", grey(1)), fps=1)
    assert frames.shape == (1, 32, 48, 3) and times.tolist() == [0] and 0 < duration <= .2


def turned_phone(path, quarter_turns):
    "A clip with a bright corner whose track header turns it clockwise, and the picture that is to be seen."
    picture = np.zeros((1, 32, 48, 3), np.uint8)
    picture[:, :16, :24] = 255
    data = bytearray(write_clip(path, picture.repeat(10, 0)).read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40                   # header of version 0: it begins after 40 bytes
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    one = 1 << 16
    turn = (cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, *turn)
    path.write_bytes(data)
    return path, np.rot90(picture[0], -quarter_turns)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_turned_phone(tmp_path, quarter_turns):
    path, expected = turned_phone(tmp_path/"phone.mp4", quarter_turns)
    frames = decode_video(path)[0]
    assert frames.shape[1:] == expected.shape
    assert np.abs(frames[0].astype(int) - expected).mean() < 12


def cover():
    "An ID3 tag with an attached picture."
    from PIL import Image
    png = io.BytesIO()
    Image.new("RGB", (32, 32)).save(png, "PNG")
    body = b"\0image/png\0\3\0" + png.getvalue()
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes([(len(frame) >> s) & 127 for s in (21, 14, 7, 0)])
    return b"ID3\3\0\0" + size + frame


def test_song_with_a_cover(tmp_path):
    "An attached picture is a video stream to FFmpeg; it is not a video."
    path = tmp_path/"song.mp3"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mp3", rate=44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16p", layout="mono")
        sound.sample_rate = 44100
        for packet in [*stream.encode(sound), *stream.encode()]:
            file.mux(packet)
    data = path.read_bytes()
    path.write_bytes(cover() + data[data.find(b"\xff\xfb"):])
    with av.open(str(path)) as file:
        assert file.streams.video                           # there is one to fall for
    with pytest.raises(InputError, match="song.mp3: has no video stream \\(sound only\\)"):
        decode_video(path)


def test_cut_off(tmp_path):
    early = {"movflags": "faststart"}
    whole = write_clip(tmp_path/"whole.mp4", noise(0, 60, 64, 64), container=early, bf="0")
    data = whole.read_bytes()
    (tmp_path/"third.mp4").write_bytes(data[:len(data) // 3])
    (tmp_path/"most.mp4").write_bytes(data[:int(len(data) * .7)])
    with pytest.raises(InputError, match=r"third.mp4: is cut off: 1\.\d s of 6.0 s"):
        decode_video(tmp_path/"third.mp4")
    with pytest.warns(UserWarning, match="most.mp4: is cut off"):
        assert 3 < decode_video(tmp_path/"most.mp4")[2] < 5


def test_a_torn_second_does_not_cost_the_video(tmp_path):
    path = write_clip(tmp_path/"torn.mkv", grey(60), g="10", bf="0")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle:middle + 40] = np.random.default_rng(0).bytes(40)
    path.write_bytes(data)
    frames, _, duration = decode_video(path)
    assert duration == pytest.approx(6, abs=.3) and len(frames) == 6 and number(frames)[0] == 0


def test_a_link_in_a_name_is_a_name(tmp_path, monkeypatch):
    "No name is taken for a protocol, an option or a pattern."
    for name in ("http:clip.mp4", "-i.mp4", "50%d.mp4", "naïve clip.mp4"):
        write_clip(tmp_path/"x.mp4", grey(12)).rename(tmp_path/name)
        assert len(decode_video(tmp_path/name)[0]) == 2
        monkeypatch.chdir(tmp_path)
        assert len(decode_video(name)[0]) == 2


def test_a_title_in_another_encoding(tmp_path):
    "Latin-1 where UTF-8 belongs."
    path = tmp_path/"title.mkv"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "A CAFE"
        stream = file.add_stream("libx264", rate=10)
        stream.height = 32
        stream.width = 48
        stream.pix_fmt = "yuv420p"
        encode(stream, file, grey(12))
    assert b"A CAFE" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"A CAFE", "A CAFÉ".encode("latin-1")))
    assert number(decode_video(path)[0]) == [0, 10]


def test_the_parameters_of_newer_pyav(tmp_path, monkeypatch):
    "PyAV 19 has no `metadata_errors`."
    path = write_clip(tmp_path/"a.mp4", grey(12))
    real = av.open
    def newer(file, mode=None, format=None, options=None, container_options=None, timeout=None, io_open=None):
        return real(file, mode, options=options)
    monkeypatch.setattr(av, "open", newer)
    monkeypatch.setattr(av, "__version__", "19.0.2")
    assert number(decode_video(path)[0]) == [0, 10]


WALK = """
import resource, sys
from sail_nbdev.video import iter_frames
def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
walk = iter_frames(sys.argv[1], 25)
next(walk)
before = memory()
print(sum(1 for _ in walk), memory() - before)
"""


@pytest.mark.slow
def test_streaming_holds_one_frame(tmp_path):
    "Twenty seconds walked at 25 fps: memory grows by less than a tenth of the frames' bytes."
    path = write_clip(tmp_path/"long.mp4", np.zeros((1, 360, 640, 3), np.uint8).repeat(500, 0), rate=25)
    done = subprocess.run([sys.executable, "-c", WALK, path], capture_output=True, text=True, check=True)
    n, grown = map(int, done.stdout.split())
    assert n == 499 and grown * 1024 < .1 * 500 * 360 * 640 * 3


def test_ten_bits_per_channel(tmp_path):
    path = tmp_path/"deep.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx265", rate=10, options={"x265-params": "log-level=none"})
        stream.width = 96
        stream.height = 64
        stream.pix_fmt = "yuv420p10le"
        encode(stream, file, grey(20, 64, 96), format="yuv420p10le")
    frames, _, duration = decode_video(path)
    assert frames.dtype == np.uint8 and number(frames) == [0, 10] and duration == pytest.approx(2, abs=.05)


def test_odd_width_and_height(tmp_path):
    path = write_clip(tmp_path/"odd.mkv", grey(20, 33, 57), codec="ffv1", pix_fmt="yuv444p")
    frames = decode_video(path)[0]
    assert frames.shape == (2, 33, 57, 3) and number(frames) == [0, 10]


def test_a_recorded_stream_without_length_or_index(tmp_path):
    path = write_clip(tmp_path/"live.mkv", grey(40), container={"live": "1"})
    with av.open(str(path)) as file:
        assert file.duration is None and file.streams.video[0].duration is None
    frames, _, duration = decode_video(path)
    assert number(frames) == [0, 10, 20, 30] and duration == pytest.approx(4, abs=.05)


def test_a_stream_that_begins_inside_a_group_of_pictures(tmp_path):
    "What cannot be shown is left out."
    whole = write_clip(tmp_path/"whole.ts", grey(60), g="20", bf="0", keyint_min="20", sc_threshold="0")
    with av.open(str(whole)) as file:
        starts = [p.pos for p in file.demux(video=0) if p.pos is not None]
    (tmp_path/"late.ts").write_bytes(whole.read_bytes()[starts[5]:])
    frames, _, duration = decode_video(tmp_path/"late.ts")
    assert number(frames)[0] == 20 and 3.8 < duration < 4.2 and len(frames) == 4


def test_pictures_of_two_sizes(tmp_path):
    "A stream that changes its size, as broadcasts do: all frames come in the first one's."
    parts = [write_clip(tmp_path/f"{h}.ts", grey(20, h, w), bf="0") for h, w in ((32, 48), (48, 64))]
    (tmp_path/"both.ts").write_bytes(b"".join(p.read_bytes() for p in parts))
    frames = decode_video(tmp_path/"both.ts")[0]
    assert frames.shape[1:] == (32, 48, 3) and len(frames) >= 2


@pytest.fixture
def ffmpeg():
    "The program itself: on the path, or in the wheel of imageio-ffmpeg."
    try:
        import imageio_ffmpeg
        return imageio_ffmpeg.get_ffmpeg_exe()
    except ImportError:
        return shutil.which("ffmpeg") or pytest.skip("no ffmpeg program on this machine")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4"])
@pytest.mark.parametrize("fps", [1, 4])
def test_sampling_of_the_ffmpeg_program(tmp_path, ffmpeg, name, fps):
    """The filter `fps` from 0 and rounding up gives the same pictures to the bit. Plain `-r` gives two more
    at the start; from then on the picture of number k + 1 is less than half a step away from our k."""
    from PIL import Image
    path = real_clip(name)
    def pictures(*how):
        folder = tmp_path/how[0]
        folder.mkdir()
        subprocess.run([ffmpeg, "-v", "error", "-i", path, *how, str(folder/"%04d.png")], check=True)
        return [np.asarray(Image.open(f)) for f in sorted(folder.glob("*.png"))]
    frames = decode_video(path, fps)[0]
    assert np.array_equal(frames, pictures("-vf", f"fps={fps}:start_time=0:round=up"))
    plain = pictures("-r", str(fps))
    assert len(frames) <= len(plain) <= len(frames) + 2
    shown = list(decoded(path))
    for k, picture in enumerate(plain[2:], 1):
        seconds = [t for t, f in shown if np.array_equal(f, picture)]
        assert seconds and min(abs(t - k / fps) for t in seconds) < .5 / fps


def walk_torchcodec(path, fps):
    "Times, frames and duration by torchcodec on the CPU."
    from sail_nbdev.video import _gpu_decoder, _open
    walk = _gpu_decoder("cpu")(path, fps, *_open(path))
    found = []
    while True:
        try:
            found.append(next(walk))
        except StopIteration as e:
            return found, e.value


def test_torchcodec_gives_the_same_pixels(tmp_path):
    "On a CPU, where it can be loaded: B-frames, a single frame, no length, a turned phone, real clips."
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        pytest.skip("torchcodec or the FFmpeg libraries it needs are not installed")
    paths = [write_clip(tmp_path/"a.mp4", grey(50), rate=Fraction(30000, 1001)),
             write_clip(tmp_path/"b.mkv", grey(1)),
             write_clip(tmp_path/"c.avi", grey(50), rate=25, bf="0"),
             write_clip(tmp_path/"live.mkv", grey(40), container={"live": "1"}),
             turned_phone(tmp_path/"phone.mp4", 1)[0],
             *sorted(real_clip("bikes.mp4").parent.glob("*.mp4"))]
    for path in paths:
        for fps in (1, 3, 7.5):
            found, length = walk_torchcodec(path, fps)
            frames, times, duration = decode_video(path, fps)
            assert [t for t, _ in found] == times.tolist(), path
            assert length == pytest.approx(duration, abs=.05), path
            assert all(np.array_equal(a, b) for a, (_, b) in zip(frames, found)), path


@pytest.mark.parametrize("name,count", [("bikes.mp4", 250), ("carphone_pristine.mp4", 120),
                                        ("bigbuckbunny.mp4", 132)])
def test_real_clips(name, count):
    "As many frames as a plain decode gives, and the same ones."
    path = real_clip(name)
    with av.open(str(path)) as file:
        rate = file.streams.video[0].average_rate
    plain = list(decoded(path))
    assert len(plain) == count
    frames, times, duration = decode_video(path, fps=2)
    assert abs(duration - count / rate) < .1 and len(times) == np.ceil(duration * 2 - 1e-6)
    assert all(np.array_equal(f, shown_at(plain, t)) for t, f in zip(times, frames))
