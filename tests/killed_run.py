"""A run that kills itself with SIGKILL at its event number N; N 0 lets it finish. main(RUN_DIR, N, lockstep).

Events are the turns of the loop and all that Python does to files of the run: opening, renaming, removing, making
folders. So a random N falls between turns, into writing rows, and into saving. The last line says how many there were.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

import tiny_runs

import dreamer
from dreamer.runtime import loop

FILES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "os.listdir"}
SETTINGS = {
    "env": "probes:both", "env_steps": 96, "eval__episodes": 0, "checkpoint__every": 0.2, "replay__flush": 0.02,
    "log__every": 0, "log__tensorboard": False,
}  # fmt: skip


def main(run_dir: str, kill_at: int, lockstep: bool = True) -> None:
    """Without lockstep the first checkpoint is the only one: what a kill leaves are rows that came after it."""
    events = 0

    def happened(event: str, args: tuple = ()) -> None:
        nonlocal events
        if event == "turn" or (event in FILES and any(str(arg).startswith(run_dir) for arg in args)):
            events += 1
            if events == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    loop.agents.make = lambda config, spec, **_: tiny_runs.plain_agent(spec)
    tend = loop.Run.tend

    def tending(run: loop.Run) -> None:
        happened("turn")
        tend(run)

    loop.Run.tend = tending
    sys.addaudithook(happened)
    settings = {**SETTINGS, "lockstep": lockstep, **({} if lockstep else {"checkpoint__every": 1e6})}
    dreamer.train(tiny_runs.tiny(pathlib.Path(run_dir), **settings), resume="auto")
    print(f"events {events}", flush=True)

