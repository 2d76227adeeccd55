"""A run that is killed at any instant is never corrupt, and ends as if it had not been killed."""

from __future__ import annotations

import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from killed_run import SETTINGS
from test_resume import quick, rows_by_place, rows_of, state_of  # noqa: F401  the fixture trains the agent of the killed runs
from tiny_runs import lines, tiny

import dreamer

SCRIPT = pathlib.Path(__file__).with_name("killed_run.py")


def run(run_dir: pathlib.Path, kill_at: int, lockstep: bool = True) -> subprocess.CompletedProcess:
    path = f"import sys; sys.path[:0] = {[str(SCRIPT.parent), str(SCRIPT.parent.parent)]!r}; "
    code = path + f"import killed_run; killed_run.main({str(run_dir)!r}, {kill_at}, {lockstep})"
    return subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True, cwd=SCRIPT.parent.parent)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """The run that nobody killed."""
    return dreamer.train(tiny(tmp_path_factory.mktemp("whole") / "run", **SETTINGS))


def check(run_dir: pathlib.Path, whole: pathlib.Path, kills: int, seed: int) -> None:
    """Kills a run that often at random events, resuming each time, then lets it finish and compares it."""
    rng = np.random.default_rng(seed)
    most = 250  # about as many events as the whole run has
    for _ in range(kills):
        done = run(run_dir, int(rng.integers(1, most)))
        assert done.returncode in (-signal.SIGKILL, 0), done.stdout + done.stderr
    done = run(run_dir, 0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"events \d+", done.stdout) or "has made its 96 env_steps" in done.stdout
    assert state_of(run_dir) == state_of(whole)
    ours, theirs = rows_of(run_dir), rows_of(whole)
    assert all(ours[n].tobytes() == theirs[n].tobytes() for n in theirs if not n.startswith("latent/"))
    steps = [line["env_steps"] for line in lines(run_dir)]
    assert steps == sorted(steps) and set(steps) == set(range(2, 98, 2))


def test_killed_a_few_times_it_ends_bit_identical(tmp_path, whole):
    check(tmp_path / "run", whole, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_twenty_times_it_ends_bit_identical(tmp_path, whole, seed):
    check(tmp_path / "run", whole, kills=20, seed=seed)


def test_a_run_of_threads_that_is_killed_keeps_every_row_that_was_flushed(tmp_path):
    run_dir, kept, caught_up = tmp_path / "run", {}, 0
    for kill_at in (70, 40, 50, 0):
        done = run(run_dir, kill_at, lockstep=False)
        assert done.returncode in (-signal.SIGKILL, 0), done.stdout + done.stderr
        caught_up += "rows flushed after the checkpoint" in done.stdout
        rows = rows_by_place(run_dir)
        for place, row in kept.items():
            np.testing.assert_equal(rows[place], row)
        kept = rows
    assert caught_up and len(kept) >= 96
    steps, times = ([line[name] for line in lines(run_dir)] for name in ("env_steps", "time"))
    assert steps == sorted(steps) and times == sorted(times)
    # One update for 8 rows, from the first rows that make a batch on: those that the kill took are made again.
    assert lines(run_dir)[-1]["updates"] == 1 + (96 - 30) // 8
