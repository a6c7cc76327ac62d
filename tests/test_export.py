"The forms of exported events, and the player."
import base64
import hashlib
import json
import re

import numpy as np
import pysubs2
import pytest
from fastcore.xml import to_xml
from pages import EVIL, Page, check_escaped, check_self_contained

from sail_nbdev.core import Event, InputError
from sail_nbdev.data import read_predictions
from sail_nbdev.export import (clock, events_subtitles, html_page, mask_text, player_fragment, player_html,
                               transcript, video_source, write_events)

EVENTS = [Event(0, 2.0004, "A ball rolls."), Event(1.9996, 3.5, "It stops & waits."),
          Event(3661.2345, 3700, EVIL)]
STRANGE = ["line\n\nbreak", "1 --> 2", "00:00:01,000 --> 00:00:02,000", "{\\an8} up", r"back\Nslash", "", "7",
           "中文 — ü"]


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_come_back(tmp_path, form):
    write_events(list(reversed(EVENTS)), tmp_path/f"v.{form}")
    back = pysubs2.load(str(tmp_path/f"v.{form}"))
    wanted = [(round(e.start * 1000), round(e.end * 1000)) for e in EVENTS]
    assert [(o.start, o.end) for o in back] == wanted and back[0].plaintext == "A ball rolls."


def test_vtt_is_escaped():
    text = events_subtitles(EVENTS, "vtt")
    assert text.startswith("WEBVTT") and "&lt;/script&gt;&lt;b" in text
    assert "It stops &amp; waits." in text and "<b" not in text


@pytest.mark.parametrize("caption", STRANGE)
@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_strange_captions_keep_their_cue(form, caption):
    text = events_subtitles([Event(0, 1, caption), Event(2, 3, "The last.")], form)
    back = pysubs2.SSAFile.from_string(text, form, keep_html_tags=True)
    assert [(o.start, o.end) for o in back] == [(0, 1000), (2000, 3000)]
    assert back[1].plaintext == "The last."
    shown = back[0].text.replace("\u200c", "").replace("&gt;", ">").replace("&amp;", "&")
    assert shown == (caption if caption == "7" else " ".join(caption.split()).replace("-->", "→"))


def test_json_comes_back(tmp_path):
    many = {"a": EVENTS, "b": []}
    write_events(many, tmp_path/"p.json", durations={"a": 3700.5, "b": 1})
    assert read_predictions(tmp_path/"p.json") == many
    assert json.loads((tmp_path/"p.json").read_text())["durations"] == {"a": 3700.5, "b": 1.0}


@pytest.mark.parametrize("name", ["p.json", "v.srt", "v.vtt", "v.html"])
def test_unwritable_places(tmp_path, name):
    (tmp_path/"file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        write_events(EVENTS, tmp_path/"file"/name)


# -- the player

def video(made_demo, i=1):
    return made_demo[0]/"world"/"videos"/f"val_000{i}.mp4"


def test_player_has_a_row_for_each_name(made_demo):
    rows = {"truth": EVENTS[:2], EVIL: EVENTS[1:2], "sail": []}
    text = player_html(rows, video(made_demo), 8., title=EVIL)
    page = check_self_contained(text)
    assert [a["data-row"] for _, a in page.elements if "data-row" in a] == list(rows)
    assert len(page.all(class_="sv-event")) == 3 and EVIL in page.texts


def test_the_transcript_says_how_sure_a_method_is():
    events = [Event(0, 2, "A ball.", confidence=.84), Event(2, 3, "b")]
    page = Page(to_xml(transcript("mine", events, 4., "#123")))
    assert [a["title"] for a in page.all("span", class_="sv-sure")] == ["confidence 84%"]


def test_one_clock_for_a_page():
    assert [clock(t, 3600) for t in (0, 65, 3599.9)] == ["0:00:00", "0:01:05", "0:59:59"]
    assert [clock(t, 3599) for t in (0, 65, 3599.9)] == ["0:00", "1:05", "59:59"]


def test_a_mask_keeps_its_place_and_its_height():
    "However many points it has, what is written of it comes within a percent."
    times = np.linspace(0, 3600, 20_000)
    curve = np.exp(-.5 * ((times - 1800) / 4) ** 2)
    start, end, *percents = map(float, mask_text(curve, 3600.).split())
    assert len(percents) == 48 and 1780 < start < 1790 and 1810 < end < 1820
    back = np.interp(times, np.linspace(start, end, 48), np.array(percents) / 100)
    assert abs(back - curve)[(times > start) & (times < end)].max() < .02
    assert mask_text(np.zeros(9), 3.) is None


def test_captions_stay_in_full_screen(made_demo):
    "Each row is a track of the video, the main one is shown."
    rows = {"truth": EVENTS[:2], "sail": EVENTS}
    page = Page(to_xml(player_fragment(rows, 4000., video_source(video(made_demo)), main="truth")))
    tracks = page.all("track")
    assert [(t["label"], "default" in t) for t in tracks] == [("truth", True), ("sail", False)]
    assert base64.b64decode(tracks[1]["src"].split(",")[1]).decode() == events_subtitles(EVENTS, "vtt")


def test_captions_ids_and_names_full_of_markup_are_text(tmp_path):
    "In the page of many videos that `sail_caption --html` writes."
    write_events({EVIL: [Event(0, 2, EVIL)]}, tmp_path/"v.html", durations={EVIL: 4.})
    page = check_escaped((tmp_path/"v.html").read_text())
    assert len(page.all("script")) == 1


def test_video_data_is_the_video(made_demo):
    path = video(made_demo, 2)
    [element] = Page(player_html(EVENTS[:2], path, 10.)).all("video")
    kind, data = element["src"].split(",", 1)
    assert kind == "data:video/mp4;base64" and base64.b64decode(data) == path.read_bytes()


def test_linked_video(made_demo, tmp_path):
    path = tmp_path/"my #1 clip.mp4"
    path.write_bytes(video(made_demo).read_bytes())
    assert video_source(path, embed=False) == "my%20%231%20clip.mp4"
    (tmp_path/"pages").mkdir()
    assert video_source(path, False, tmp_path/"pages") == "../my%20%231%20clip.mp4"


def test_many_players_share_one_script():
    parts = [player_fragment({"truth": EVENTS[:2]}, 8., title=str(i)) for i in range(4)]
    assert len(check_self_contained(html_page("four", *parts)).all("figure")) == 4


def test_policy_allows_this_script_and_no_other():
    text = html_page("t", "")
    policy = Page(text).all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    script = re.search(r"<script>(.*?)</script>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_a_fragment_alone_is_escaped():
    check_escaped(to_xml(player_fragment({EVIL: [Event(0, 2, EVIL)]}, 8., title=EVIL)))
