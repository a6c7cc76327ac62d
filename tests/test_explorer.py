"The explorer on a small folder of the shape that `sail_demo` writes. In a browser: test_browser.py."
import json

import pytest
from pages import EVIL, check_escaped

from sail_nbdev.core import InputError
from sail_nbdev.data import read_timed
from sail_nbdev.explorer import EventExplorer


@pytest.fixture
def explorer(made_demo):
    explorer = EventExplorer(made_demo[0])
    explorer.widget()
    return explorer


def row(explorer, name):
    return next(r for r in explorer.parts["stage"].scene["rows"] if r["name"] == name)


def test_widgets_follow(explorer):
    parts = explorer.parts
    scenes = [parts["stage"].scene]
    parts["width"].value = .9
    scenes.append(parts["stage"].scene)
    parts["video"].value = "val_0003"
    scenes.append(parts["stage"].scene)
    assert scenes[0] != scenes[1] != scenes[2]
    assert len(parts["event"].options) == len(explorer.material.events["sail"]["val_0003"])
    parts["method"].value = "uniform"
    assert explorer.method == "uniform"
    assert explorer._repr_mimebundle_()["image/png"].startswith("iVBORw0KGgo")      # PNG in base64


def test_a_video_without_events(explorer):
    "Nothing of the video before stays on the screen."
    explorer.material.events["sail"]["val_0003"] = []
    explorer.parts["video"].value = "val_0003"
    assert "sail has no events in val_0003" in explorer.parts["sentence"].value
    assert explorer.parts["center"].disabled and explorer.parts["width"].disabled
    assert row(explorer, "sail")["events"] == []
    explorer.parts["video"].value = "val_0001"
    assert EVIL[2:8] in explorer.parts["sentence"].value and not explorer.parts["center"].disabled


def test_captions_full_of_markup_are_text(explorer):
    assert explorer.events[0].caption == EVIL
    check_escaped(explorer.parts["sentence"].value)
    assert row(explorer, "sail")["events"][0]["text"] == EVIL


def test_the_stage_has_video_strip_and_masks(explorer, made_demo):
    stage = explorer.parts["stage"]
    assert stage.film == (made_demo[0]/"world"/"videos"/"val_0001.mp4").read_bytes()
    assert stage.scene["type"] == "video/mp4" and stage.strip[6:10] == b"JFIF"
    assert all(e["mask"] for e in row(explorer, "sail")["events"])
    assert not any(e["mask"] for e in row(explorer, "truth")["events"])
    json.dumps(stage.scene)


def test_what_the_hand_does(explorer):
    "An event of another method is picked and moved; a true event is only looked at."
    stage = explorer.parts["stage"]
    explorer._told(stage, {"pick": ["ilcacm", 1]}, None)
    assert (explorer.method, explorer.event, explorer.parts["method"].value) == ("ilcacm", 1, "ilcacm")
    explorer._told(stage, {"move": [2., 4.]}, None)
    assert explorer.events[1].start == pytest.approx(2) and explorer.events[1].end == pytest.approx(4)
    assert explorer.parts["center"].value == pytest.approx(3 / 8)
    explorer._told(stage, {"pick": ["truth", 0]}, None)
    assert (explorer.method, explorer.event) == ("ilcacm", 1)


def test_moved_events_are_kept(explorer, tmp_path):
    explorer.move(.5, .25)
    explorer.parts["video"].value = "val_0002"
    explorer.parts["video"].value = "val_0001"
    assert explorer.events[0].center == .5                      # it is still where it was put
    explorer.parts["file"].value = str(tmp_path/"moved.json")
    explorer.parts["keep"].click()
    assert explorer.parts["kept"].value == "1 videos kept"
    kept = read_timed(tmp_path/"moved.json").events["val_0001"]
    assert [(e.start, e.end, e.caption) for e in kept] == \
        [(e.start, e.end, e.caption) for e in explorer.events]
    explorer.keep(tmp_path/"moved.json")                        # its own file is written again
    (tmp_path/"val.json").write_text("{}")
    for name, says in (("val.json", "is there already"), ("moved.srt", "kept as .json")):
        with pytest.raises(InputError, match=says):
            explorer.keep(tmp_path/name)
    assert (tmp_path/"val.json").read_text() == "{}"


def test_a_run_folder_and_a_wrong_video(made_demo):
    assert EventExplorer(made_demo[0]/"runs"/"sail").video == "val_0001"
    with pytest.raises(InputError, match="is not one of the 3 held-out videos"):
        EventExplorer(made_demo[0], video="val_9999")
