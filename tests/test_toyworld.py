"The embedded world made by several processes: the same files, whether stopped, killed or left alone."
import os
import signal
import subprocess
import sys
import time

import pytest

from sail_nbdev.toyworld import World, make_world

MADE = """
import sys
from pathlib import Path
import sail_nbdev.toyworld as toyworld

toyworld._WORTH = 1
WORLD = toyworld.World(n_train={n}, n_val=1, min_events=1, max_events=2, min_seconds=12., max_seconds=12.)
"""
CALL = "toyworld.make_world(WORLD, sys.argv[1], workers=2, progress=False)\n"
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def script(path, n=6, guarded=True):
    "A program that makes a small world in two processes."
    guard = 'if __name__ == "__main__": ' if guarded else ""
    path.write_text(MADE.format(n=n) + guard + CALL)
    return path


def start(program, out):
    return subprocess.Popen([sys.executable, str(program), str(out)], stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


def wait_for_videos(process, out, n):
    while process.poll() is None and len(list(out.glob("videos/*.mp4"))) < n: time.sleep(.02)
    assert process.poll() is None, process.stderr.read()


def in_session(leader):
    "The processes of a session, from the file system of Linux."
    ids = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.getsid(int(entry)) == leader: ids.append(int(entry))
        except ProcessLookupError: pass
    return ids


@pytest.mark.slow
def test_processes_make_the_same_files(tmp_path):
    process = start(script(tmp_path/"make.py"), tmp_path/"pool")
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    world = World(n_train=6, n_val=1, min_events=1, max_events=2, min_seconds=12., max_seconds=12.)
    make_world(world, tmp_path/"alone", progress=False)
    alone, pool = ({str(p.relative_to(tmp_path/d)): p.read_bytes() for p in (tmp_path/d).rglob("*.*")}
                   for d in ("alone", "pool"))
    assert alone.keys() == pool.keys()
    for name, content in alone.items(): assert content == pool[name], name


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(tmp_path):
    process = start(script(tmp_path/"make.py", guarded=False), tmp_path/"world")
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert error.splitlines()[-1].endswith("workers=1 does without other processes")
    assert "a script must do its work below `if __name__" in error


@pytest.mark.slow
@POSIX
def test_ctrl_c_ends_all_and_leaves_whole_files(tmp_path):
    out = tmp_path/"world"
    process = start(script(tmp_path/"make.py", n=400), out)
    wait_for_videos(process, out, 5)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -signal.SIGINT) and error.count("Traceback") == 1, error
    assert [p for p in out.rglob("*") if p.name.startswith(".")] == []
    assert 5 <= len(list(out.glob("videos/*.mp4"))) < 400


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs the process files of Linux")
def test_a_killed_parent_takes_its_workers_with_it(tmp_path):
    process = start(script(tmp_path/"make.py", n=400), tmp_path/"world")
    wait_for_videos(process, tmp_path/"world", 3)
    assert len(in_session(process.pid)) >= 3
    process.kill()
    process.wait()
    deadline = time.time() + 20
    while in_session(process.pid) and time.time() < deadline: time.sleep(.1)
    assert in_session(process.pid) == []
