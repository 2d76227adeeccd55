"""A run that is killed at any instant is never corrupted, and ends as if it had not been killed."""

from __future__ import annotations

import pathlib
import shutil
import signal
import subprocess
from typing import Any

import killed_run
import numpy as np
import pytest
from killed_run import SETTINGS
from test_loop import timeless
from test_resume import rows_by_place, rows_of, state_of
from tiny_runs import lines, tiny

import dreamer
from dreamer.apps.verify import verify

pytestmark = pytest.mark.usefixtures("quick")

# Without lockstep the first checkpoint is the only one, and a kill leaves rows that are newer.
THREADS = {"lockstep": False, "checkpoint__every": 1e6}


def run(run_dir: pathlib.Path, kill_at: int, **settings: Any) -> tuple[int, str]:
    """Returns the exit code and the output of a run that kills itself."""
    process = killed_run.started(run_dir, kill_at, settings)
    out, _ = process.communicate()
    return process.returncode, out


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """A run that was not killed."""
    return dreamer.train(tiny(tmp_path_factory.mktemp("whole") / "run", **SETTINGS))


def check(run_dir: pathlib.Path, whole: pathlib.Path, kills: int, seed: int) -> None:
    """Kills runs `kills` times at random events, resumes them each time, lets them finish, and compares them."""
    rng = np.random.default_rng(seed)
    most = 250  # about the number of events of the whole run

    def ended() -> None:
        compare(run_dir, whole)
        steps = [line["env_steps"] for line in lines(run_dir)]
        assert steps == sorted(steps) and set(steps) == set(range(2, 98, 2))
        shutil.rmtree(run_dir)

    killed_run.repeat(kills, lambda: killed_run.killed(run_dir, int(rng.integers(1, most)), {}), ended)
    assert not killed_run.killed(run_dir, 0, {})
    ended()


def compare(ours: pathlib.Path, theirs: pathlib.Path) -> None:
    """Fails unless two runs have the same state and the same rows, to the last bit."""
    assert state_of(ours) == state_of(theirs)
    rows, others = rows_of(ours), rows_of(theirs)
    assert all(rows[n].tobytes() == others[n].tobytes() for n in others if not n.startswith("latent/"))


def test_killed_a_few_times_it_ends_bit_identical(tmp_path, whole):
    check(tmp_path / "run", whole, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_twenty_times_it_ends_bit_identical(tmp_path, whole, seed):
    check(tmp_path / "run", whole, kills=20, seed=seed)


FUSED = {"env": "jax_probes:both", "loop": "device"}


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> list[pathlib.Path]:
    """Two runs with different seeds on the device, that were not killed."""
    folder = tmp_path_factory.mktemp("fused")
    for seed in range(2):
        code, out = run(folder / f"seed{seed}", 0, **FUSED, seed=seed)
        assert code == 0, out
    return [folder / f"seed{seed}" for seed in range(2)]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fused_loop_that_is_killed_ends_bit_identical(tmp_path, fused, seeds, kills):
    """seeds: 1 is a run, 2 a population, whose members are the runs with these seeds."""
    rng, run_dir = np.random.default_rng(seeds), tmp_path / "run"
    settings = {**FUSED, "population__seeds": seeds}
    ours = [run_dir] if seeds == 1 else [run_dir / f"seed{seed}" for seed in range(seeds)]

    def ended() -> None:
        for one, other in zip(ours, fused, strict=False):
            compare(one, other)
        shutil.rmtree(run_dir)

    killed_run.repeat(kills, lambda: killed_run.killed(run_dir, int(rng.integers(1, 150 * seeds)), settings), ended)
    assert not killed_run.killed(run_dir, 0, settings)
    ended()


def test_a_run_of_threads_that_is_killed_keeps_every_row_that_was_flushed(tmp_path):
    run_dir, kept, caught_up = tmp_path / "run", {}, 0
    for kill_at in (70, 40, 50, 0):
        code, out = run(run_dir, kill_at, **THREADS)
        assert code in (-signal.SIGKILL, 0), out
        caught_up += "rows flushed after the checkpoint" in out
        rows = rows_by_place(run_dir)
        for place, row in kept.items():
            np.testing.assert_equal(rows[place], row)
        kept = rows
    assert caught_up and len(kept) >= 96
    steps, times = ([line[name] for line in lines(run_dir)] for name in ("env_steps", "time"))
    assert steps == sorted(steps) and times == sorted(times)
    # One update for 8 rows, from the first full batch on; the updates lost by the kill are repeated.
    assert lines(run_dir)[-1]["updates"] == 1 + (96 - 30) // 8


# Rings that wrap five times, checkpoints that prune, evaluations, compilations. Half of the kills are at events, the
# others at random times.
LONG = {
    "env_steps": 480, "replay__capacity_steps": 96, "checkpoint__every": 0.5, "checkpoint__keep": 2, "eval__every": 90,
    "eval__episodes": 1, "eval__video": "off",
}  # fmt: skip
SEVERAL = {"workers__backend": "processes", "workers__envs": 4}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["one", "several"])
@pytest.mark.parametrize("lockstep", [True, False])
def test_fifty_kills_over_rings_that_go_round_lose_nothing(tmp_path, lockstep, workers):
    settings = {**LONG, "lockstep": lockstep, **(SEVERAL if workers == "several" else {})}
    rng = np.random.default_rng([lockstep, workers == "several"])
    run_dir, kills, runs, kept = tmp_path / "0", 0, 0, {}
    while kills < 50:
        process = killed_run.started(run_dir, int(rng.integers(1, 700)) if kills % 2 else 0, settings)
        try:
            out, _ = process.communicate(timeout=None if kills % 2 else float(rng.uniform(1.0, 9.0)))
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), out
        kills += process.returncode != 0
        if not (run_dir / "config.yaml").exists():
            continue
        report = verify(run_dir)
        assert report.whole, [*report.faults, *report.checkpoints]
        rows = rows_by_place(run_dir)
        for place in kept.keys() & rows.keys() if not lockstep else ():
            np.testing.assert_equal(rows[place], kept[place])
        kept = rows
        if process.returncode == 0:  # the run is done: the next kills use another run
            runs += 1
            run_dir, kept = tmp_path / str(runs), {}
    process = killed_run.started(run_dir, 0, settings)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert verify(run_dir).whole
    if lockstep:
        whole = dreamer.train(tiny(tmp_path / "whole", **{**SETTINGS, **settings}))
        for done in [tmp_path / str(number) for number in range(runs + 1)]:
            assert state_of(done) == state_of(whole)
            assert timeless(done) == timeless(whole)
    print(f"{kills} kills over {runs + 1} runs, lockstep {lockstep}, {workers}")
