"""Environments that fail are restarted without others, and no row is lost, repeated or mixed up."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from auditor import act, play
from faulty_envs import FAULTS

from dreamer.errors import UserError
from dreamer.runtime.workers import Config, make_workers, remote

ROOT = Path(__file__).parent.parent
PROCESSES = Config("processes", envs=3, timeout=0.5)
THREADS = Config("processes", envs=3, processes=1, timeout=0.5)
INLINE = Config("inline", envs=3)
everywhere = pytest.mark.parametrize("config", [INLINE, PROCESSES, THREADS], ids=["inline", "processes", "threads"])
processes = pytest.mark.parametrize("config", [PROCESSES, THREADS], ids=["processes", "threads"])
SURVIVED_INLINE = ("raise", "nan", "slow")


@pytest.fixture
def folder(tmp_path):
    """The folder in which environments record their rows."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def crew_of(config, folder, **options):
    return make_workers(config, "faulty_envs:witness", {"folder": str(folder), **options}, seed=10)


def fail_once(config, folder, how):
    """Makes environment 1 fail at its first step; returns the rows after that, and the incidents."""
    with crew_of(config, folder, faults=[how], rate=1.0, only=11) as crew:
        first = crew.receive()
        crew.send(first.streams, act(first))
        return crew.receive(), crew.incidents()


# ---- one environment fails


@everywhere
@pytest.mark.parametrize(
    "how, kind, text",
    [
        ("raise", "raised", "env 'faulty_envs:witness #1' failed: KeyError: 'lost' ("),
        ("nan", "broke its space", "env 'faulty_envs:witness #1', episode 1, step 1: reward is nan"),
    ],
)
def test_only_the_environment_that_fails_is_replaced(config, folder, how, kind, text):
    ready, (incident,) = fail_once(config, folder, how)
    assert ready.streams.tolist() == [0, 1, 2] and ready.step.is_first.tolist() == [False, True, False]
    assert ready.step.obs["life"].ravel().tolist() == [10, 14, 12]
    assert incident.envs == (1,) and incident.kind == kind and incident.text.startswith(text)
    assert ('raise KeyError("lost")' in incident.trace) == (how == "raise")


@pytest.mark.parametrize("config, concerned", [(PROCESSES, (1,)), (THREADS, (0, 1, 2))], ids=["processes", "threads"])
@pytest.mark.parametrize(
    "how, kind, text",
    [
        ("exit", "exited", "died with exit code 7"),
        ("kill", "killed", "died with signal SIGKILL; was the machine out of memory?"),
        ("hang", "hung", "env 'faulty_envs:witness #1' has not answered for 0.5 seconds (workers.timeout)"),
    ],
)
def test_a_process_that_is_lost_is_replaced_with_all_that_lived_in_it(config, concerned, folder, how, kind, text):
    ready, (incident,) = fail_once(config, folder, how)
    assert incident.envs == concerned and incident.kind == kind and text in incident.text
    lives = ready.step.obs["life"].ravel().tolist()
    # Another environment of the process may have written its row before; that row counts, and its reset comes next.
    assert lives[1] == 14 and all(life in (seed, seed + 3) for life, seed in zip(lives, (10, 11, 12), strict=True))
    assert concerned != (1,) or lives == [10, 14, 12]


@processes
def test_a_run_that_ends_does_not_wait_for_an_environment_that_is_never_made(config, folder, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", 0.3)
    config = dataclasses.replace(config, timeout=60.0, restarts=1)
    with crew_of(config, folder, faults=["raise"], rate=1.0, only=11) as crew:
        ready = crew.receive()
        (folder / "nobody is made any more").touch()
        crew.send(ready.streams, act(ready))
        crew.shorten_timeouts()
        with pytest.raises(UserError, match="has not answered for 0.3 seconds .* 2 in a row"):
            crew.receive()


def test_others_are_received_while_a_new_process_starts(folder):
    with crew_of(PROCESSES, folder, faults=["kill"], rate=1.0, only=11) as crew:
        ready = crew.receive()
        crew.send(ready.streams, act(ready))
        while not (reported := crew.incidents()):
            ready = crew.receive(min_ready=1)
            crew.send(ready.streams, act(ready))
        seen: list[int] = []
        while 1 not in seen:
            ready = crew.receive(min_ready=1)
            seen += ready.streams.tolist()
            crew.send(ready.streams, act(ready))
        assert reported[0].envs == (1,) and {0, 2} <= set(seen[: seen.index(1)])


def test_a_row_written_before_the_process_died_is_received(folder):
    with crew_of(PROCESSES, folder) as crew:
        ready = crew.receive()
        crew.send(ready.streams, act(ready))
        snapshot = crew.states()  # all have written their row, and none was received
        crew._homes[1].kill()
        assert crew._homes[1].gone(10)
        ready = crew.receive()
        np.testing.assert_equal(ready.step._asdict(), snapshot.ready.step._asdict())
        crew.send(ready.streams, act(ready))
        ready = crew.receive()
        assert ready.step.is_first.tolist() == [False, True, False]
        assert [incident.kind for incident in crew.incidents()] == ["killed"]


# ---- too often


@everywhere
@pytest.mark.parametrize("restarts", [0, 2])
def test_an_environment_that_always_fails_ends_the_run_with_its_own_line(config, folder, restarts):
    config = config.__class__(**{**vars(config), "restarts": restarts})
    with crew_of(config, folder, faults=["raise"], rate=1.0) as crew:
        with pytest.raises(UserError, match=r"failed: KeyError: 'lost' \(.*faulty_envs.py, line") as caught:
            play(crew, 1000)
        assert "\n" not in str(caught.value) and 'raise KeyError("lost")' in "".join(caught.value.__notes__)
        assert str(caught.value).endswith("(incident 3 in a row)" if restarts else ")")


@pytest.mark.parametrize("how, message", [("exit", "exit code 7"), ("kill", "signal SIGKILL")])
def test_a_worker_that_always_dies_ends_the_run_with_its_exit(folder, how, message):
    config = Config("processes", envs=3, processes=1, restarts=1)
    with crew_of(config, folder, faults=[how], rate=1.0, only=-1) as crew:
        expected = f"worker process of env 'faulty_envs:witness #0' to #2 died with {message}"
        with pytest.raises(UserError, match=expected):
            play(crew, 1000)


@everywhere
def test_a_finished_episode_makes_an_environment_sound_again(config, folder):
    config = config.__class__(**{**vars(config), "restarts": 1})
    with crew_of(config, folder, faults=["raise"], rate=1.0, spared=1) as crew:
        _, incidents = play(crew, 600)
    assert len(incidents) > 6


# ---- at random


def leaks():
    """Returns the open descriptors of this process, and the names of shared memory."""
    return len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm"))


def children():
    done = subprocess.run(["ps", "-o", "pid=,stat=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "workers.child" in line or "Z" in line.split()[1]]


def storm(config, folder, rows, rate, min_ready, faults=FAULTS):
    before = leaks()
    with crew_of(config, folder, faults=faults, rate=rate) as crew:
        auditor, incidents = play(crew, rows, min_ready, max_wait=0.01)
    del crew
    shared = [len(incident.envs) - 1 for incident in incidents]
    auditor.check(folder, lost_with_others=sum(shared))
    assert sum(auditor.rows.values()) == auditor.total >= rows
    assert leaks() == before and not children()
    return {incident.kind for incident in incidents}


@pytest.mark.parametrize("min_ready", [None, 1], ids=["lockstep", "any ready"])
def test_random_faults_inline(folder, min_ready):
    kinds = storm(Config("inline", envs=4, restarts=20), folder, 4000, 0.004, min_ready, SURVIVED_INLINE)
    assert kinds == {"raised", "broke its space"}


@pytest.mark.parametrize("processes, min_ready", [(0, 2), (2, 1), (2, None)])
def test_random_faults(folder, processes, min_ready):
    config = Config("processes", envs=4, processes=processes, timeout=0.3, restarts=20)
    kinds = storm(config, folder, 3000, 0.008, min_ready)
    assert len(kinds) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 4])
def test_random_faults_over_many_steps(folder, processes):
    config = Config("processes", envs=16, processes=processes, timeout=2.0, restarts=20)
    kinds = storm(config, folder, 50_000, 0.002, 8)
    assert kinds == {"raised", "broke its space", "killed", "exited", "hung"}


SCRIPT = """
import os, signal, sys, threading
from dreamer.runtime.workers import Config, make_workers
import numpy as np
config = Config("processes", envs=3, processes=2)
crew = make_workers(config, "faulty_envs:witness", {"folder": sys.argv[1], "faults": ["hang"], "rate": 1.0, "only": 1})
ready = crew.receive()
crew.send(ready.streams, np.eye(4, dtype=np.float32)[[0, 0, 0]])
crew.receive(min_ready=2, max_wait=60)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_parent_leaves_no_worker_not_even_one_that_hangs(folder):
    # The workers have stdout open too, so run returns only when they are gone, and otherwise times out.
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL and done.stderr == ""
