"""A shell that runs the tests in the background ignores Ctrl-C; commands that tests start and interrupt would
ignore it too."""
import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    "An open_clip folder with a tiny random model."
    from clips import write_clip_model
    return write_clip_model(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def made_demo(tmp_path_factory):
    "A folder of the shape that `sail_demo` writes, and its annotations."
    from pages import make_demo
    folder = tmp_path_factory.mktemp("made")/"demo"
    return folder, make_demo(folder)
