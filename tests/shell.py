"Commands as a terminal runs them: each in a process of its own, or in this one, which saves seconds."
import contextlib
import io
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from unittest.mock import patch


def command(name, *args):
    return [str(Path(sys.executable).parent/name), *map(str, args)]


def run_process(name, *args, cwd=None, **env):
    "The installed command in a process of its own, to its end."
    env = {**os.environ, **{k: str(v) for k, v in env.items()}}
    return subprocess.run(command(name, *args), capture_output=True, text=True, cwd=cwd, env=env)


def start_process(name, *args):
    "The installed command in a process group of its own, to be interrupted."
    streams = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command(name, *args), start_new_session=True, **streams)


@contextlib.contextmanager
def _inside(folder):
    before = os.getcwd()
    os.chdir(folder or before)
    try: yield
    finally: os.chdir(before)


def _exit_code():
    "Run `python -m sail_nbdev.commands` with what `sys.argv` holds."
    try: runpy.run_module("sail_nbdev.commands", run_name="__main__", alter_sys=True)
    except SystemExit as e:
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def run(name, *args, cwd=None, **env):
    "The command in this process: the same options, texts and exit code."
    argv = ["-m", name, *map(str, args)]
    out = io.StringIO()
    err = io.StringIO()
    settings = patch.dict(os.environ, {k: str(v) for k, v in env.items()})
    with settings, _inside(cwd), patch.object(sys, "argv", argv):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): code = _exit_code()
    return subprocess.CompletedProcess(argv[1:], code, out.getvalue(), err.getvalue())


def refused(r, name, *words):
    "One sentence on stderr that holds `words`, exit code 2."
    lines = [line for line in r.stderr.splitlines() if line.strip()]
    assert r.returncode == 2 and r.stdout == "" and len(lines) == 1, r
    assert lines[0].startswith(f"{name}: ") and all(w in lines[0] for w in words), lines
