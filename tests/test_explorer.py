"The explorer on a small folder of the shape that `sail_demo` writes."
import pytest
from pages import EVIL, check_escaped

from sail_nbdev.core import InputError
from sail_nbdev.explorer import EventExplorer


def test_widgets_follow(made_demo):
    explorer = EventExplorer(made_demo[0])
    explorer.widget()
    parts = explorer.parts
    first = parts["picture"].value
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    parts["width"].value = .9
    second = parts["picture"].value
    parts["video"].value = "val_0003"
    assert len({first, second, parts["picture"].value}) == 3
    assert len(parts["event"].options) == len(explorer.material.events["sail"]["val_0003"])
    parts["method"].value = "uniform"
    assert explorer.method == "uniform" and "image/png" in explorer._repr_mimebundle_()


def test_a_video_without_events(made_demo):
    "Nothing of the video before stays on the screen."
    explorer = EventExplorer(made_demo[0])
    explorer.material.events["sail"]["val_0003"] = []
    explorer.widget()
    explorer.parts["video"].value = "val_0003"
    assert "sail has no events in val_0003" in explorer.parts["sentence"].value
    assert explorer.parts["center"].disabled and explorer.parts["width"].disabled
    explorer.parts["video"].value = "val_0001"
    assert EVIL[2:8] in explorer.parts["sentence"].value and not explorer.parts["center"].disabled


def test_captions_full_of_markup_are_text(made_demo):
    explorer = EventExplorer(made_demo[0])
    explorer.widget()
    assert explorer.events[0].caption == EVIL
    check_escaped(explorer.parts["rows"].value)
    check_escaped(explorer.parts["sentence"].value)


def test_the_video_plays(made_demo):
    explorer = EventExplorer(made_demo[0])
    explorer.widget()
    player = explorer.parts["player"].value
    assert "<video" in player and "data:video/mp4;base64," in player


def test_a_run_folder_and_a_wrong_video(made_demo):
    assert EventExplorer(made_demo[0]/"runs"/"sail").video == "val_0001"
    with pytest.raises(InputError, match="is not one of the 3 held-out videos"):
        EventExplorer(made_demo[0], video="val_9999")
