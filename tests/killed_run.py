"""A run that kills itself with SIGKILL at event number N, or finishes with N = 0: main(RUN_DIR, N, settings).

Events are the turns of the loop and all operations of Python on files of the run: open, rename, remove, make a folder.
So a random N can be between turns, while writing rows, or while saving. The last printed line has the number of events.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import tiny_runs

import dreamer
from dreamer import agent as agents
from dreamer.runtime.learning import pipeline
from dreamer.runtime.run.loop import Run

SCRIPT = pathlib.Path(__file__)
FILES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "os.listdir"}
SETTINGS: dict[str, Any] = {
    "env": "probes:both", "env_steps": 96, "eval__episodes": 0, "checkpoint__every": 0.2, "replay__flush": 0.02,
    "log__every": 0, "log__tensorboard": False,
}  # fmt: skip


def main(run_dir: str, kill_at: int, settings: dict[str, Any]) -> None:
    """Trains in `run_dir` with SETTINGS and `settings`, and resumes if an earlier call was killed."""
    events = 0

    def happened(event: str, args: tuple = ()) -> None:
        nonlocal events
        if event == "turn" or (event in FILES and any(str(arg).startswith(run_dir) for arg in args)):
            events += 1
            if events == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    agents.make = lambda config, spec, **_: tiny_runs.plain_agent(spec)
    pipeline.SECONDS = 0.01  # so that the fused loop has many turns of the host
    tend = Run.tend

    def tending(run: Run) -> None:
        happened("turn")
        tend(run)

    Run.tend = tending
    sys.addaudithook(happened)
    dreamer.train(tiny_runs.tiny(pathlib.Path(run_dir), **{**SETTINGS, **settings}), resume="auto")
    print(f"events {events}", flush=True)


def repeat(kills: int, attempt: Callable[[], bool], ended: Callable[[], None]) -> None:
    """Calls `attempt`, which returns whether a run was killed, until that has happened `kills` times.

    ended: called after each attempt in which the run came to its end before its kill; it makes room for another run
    """
    while kills:
        if attempt():
            kills -= 1
        else:
            ended()


def started(run_dir: pathlib.Path, kill_at: int, settings: dict[str, Any]) -> subprocess.Popen:
    """Starts `main` in a separate process."""
    path = f"import sys; sys.path[:0] = {[str(SCRIPT.parent), str(SCRIPT.parent.parent)]!r}; "
    code = path + f"import killed_run; killed_run.main({str(run_dir)!r}, {kill_at}, {settings!r})"
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=SCRIPT.parent.parent,
    )  # fmt: skip


def killed(run_dir: pathlib.Path, kill_at: int, settings: dict[str, Any]) -> bool:
    """Trains by `main` until the run kills itself or ends. Returns whether it was killed, or fails."""
    process = started(run_dir, kill_at, settings)
    out, _ = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), out
    return process.returncode != 0
