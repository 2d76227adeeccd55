"""A run that was stopped and resumed equals a run that was never stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_loop import timeless
from tiny_runs import bits, lines, plain_agent, tiny

import dreamer
from dreamer import plugins
from dreamer.config import load
from dreamer.errors import UserError
from dreamer.runtime.env.adapter import spec_of
from dreamer.runtime.files import sealed
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.stopping import Stopped

pytestmark = pytest.mark.usefixtures("quick")
ENV = {"env": "probes:both", "eval__episodes": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never stopped."""
    return dreamer.train(tiny(tmp_path_factory.mktemp("whole") / "run", **ENV))


def state_of(run_dir: Path) -> list[bytes]:
    """Returns the bits of every leaf of the newest train state."""
    spec = spec_of(plugins.make_env(load(run_dir / "config.yaml").env))
    form = jax.eval_shape(plain_agent(spec).init, jax.random.key(0))
    with Checkpoints(run_dir) as checkpoints:
        return [bits(leaf) for leaf in jax.tree.leaves(checkpoints.restore(form)[0])]


def stopped(run_dir: Path, turn: int, **overrides) -> Path:
    """Makes a run that receives SIGTERM in turn number `turn`."""
    calls = iter(range(10**9))
    tend = Run.tend

    def tending(run):
        if next(calls) == turn:
            os.kill(os.getpid(), signal.SIGTERM)
        tend(run)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped) as stop:
        patch.setattr(Run, "tend", tending)
        dreamer.train(tiny(run_dir, **{**ENV, **overrides}))
    assert stop.value.code == 143
    return run_dir


def rows_of(run_dir: Path) -> dict[str, np.ndarray]:
    """Returns all rows on the disk by column, in the order of environments and numbers."""
    parts = rows_by_place(run_dir)
    return {name: np.stack([parts[key][name] for key in sorted(parts)]) for name in next(iter(parts.values()))}


def rows_by_place(run_dir: Path) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    """Returns each row on the disk by environment and number."""
    parts: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    for path in sorted((run_dir / "rows").glob("rows-*.dreamer")):
        head, columns = sealed.read(path)
        offset = 0
        for env, start, stop in head["spans"]:
            for number in range(start, stop):
                assert (env, number) not in parts, "a row is there twice"
                parts[env, number] = {name: values[offset + number - start] for name, values in columns.items()}
            offset += stop - start
    return parts


@pytest.mark.parametrize("turn", [3, 20, 31])
def test_in_lockstep_a_resumed_run_is_bit_identical_to_one_that_was_never_stopped(tmp_path, whole, turn):
    run_dir = stopped(tmp_path / "run", turn)
    dreamer.train(tiny(run_dir, **ENV), resume="yes")
    assert state_of(run_dir) == state_of(whole)
    a, b = rows_of(run_dir), rows_of(whole)
    assert all(a[name].tobytes() == b[name].tobytes() for name in b if not name.startswith("latent/"))
    assert timeless(run_dir) == timeless(whole)


def test_a_run_that_is_done_is_left_as_it_is(tmp_path, whole, capsys):
    run_dir = shutil.copytree(whole, tmp_path / "run")
    before = state_of(run_dir)
    assert dreamer.train(tiny(run_dir, **ENV), resume="yes") == run_dir
    assert "has made its 96 env_steps" in capsys.readouterr().out
    assert state_of(run_dir) == before


def test_a_run_can_be_made_longer(tmp_path, whole):
    run_dir = shutil.copytree(whole, tmp_path / "run")
    dreamer.train(tiny(run_dir, **{**ENV, "env_steps": 120}), resume="yes")
    steps = [line["env_steps"] for line in lines(run_dir)]
    assert steps == sorted(steps) and steps[-1] == 120
    assert len(rows_of(run_dir)["reward"]) == 120


def test_another_config_is_refused_field_by_field(tmp_path, whole):
    config = tiny(whole, **{**ENV, "seed": 3, "agent__world_model__free_nats": 0.5, "log__every": 9})
    with pytest.raises(UserError) as error:
        dreamer.train(config, resume="yes")
    text = str(error.value)
    assert "seed is 3, the run has 0" in text and "free_nats is 0.5, the run has 1.0" in text
    assert "log.every is" not in text and "May change: env_steps" in text


def test_auto_begins_where_there_is_nothing(tmp_path):
    run_dir = dreamer.train(tiny(tmp_path / "run", env_steps=40), resume="auto")
    assert lines(run_dir)[-1]["env_steps"] == 40


def test_resume_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        dreamer.train(tiny(tmp_path / "none"), resume="yes")
    with pytest.raises(UserError, match="resume needs the run directory"):
        dreamer.train(tiny(Path("")).__class__(), resume="yes")


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
@pytest.mark.parametrize("kind", ["rows", "latents", "state"])
def test_a_damaged_file_is_named_and_not_loaded(tmp_path, whole, kind, damage):
    run_dir = shutil.copytree(whole, tmp_path / "run")
    path = sorted((run_dir / "rows").glob(f"{kind}-*"))[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(UserError, match=path.name):
        dreamer.train(tiny(run_dir, **{**ENV, "env_steps": 120}), resume="yes")


def test_restored_and_unrestored_parts_are_reported(tmp_path, capsys):
    run_dir = stopped(tmp_path / "run", 20, env="broken_envs:sound")
    capsys.readouterr()
    dreamer.train(tiny(run_dir, **{**ENV, "env": "broken_envs:sound"}), resume="yes")
    out = capsys.readouterr().out
    assert "resumed: parameters, optimizer" in out and "42 rows of replay" in out
    assert "episodes of all environments, since Sound has no get_state and set_state; new episodes start" in out


BUSY = """
import hashlib, os, signal, threading
from dreamer.runtime.run.stopping import Stopping
answered = threading.Event()
def ask_twice():
    os.kill(os.getpid(), signal.SIGTERM)
    answered.wait()
    os.kill(os.getpid(), signal.SIGTERM)
with Stopping(lambda text: (print(text, flush=True), answered.set())) as stopping:
    stopping.begun()
    twice = threading.Thread(target=ask_twice)
    twice.start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # one step of the interpreter, as compiling is
"""


def test_signals_are_answered_while_the_main_thread_is_busy_and_the_second_ends_at_once():
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stdout == "SIGTERM: saving and stopping; a second signal stops at once\n"


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_run_whose_environment_hangs_ends_in_seconds_when_asked_to(tmp_path, capsys, lockstep):
    """Otherwise the run would wait for the environment forever."""
    hangs = {"env": "broken_envs:hangs", "env_options.asks": os.getpid(), "env_options.note": str(tmp_path / "hung")}
    alone = {"workers.backend": "processes", "workers.envs": 1, "workers.timeout": 0.0}
    config = tiny(tmp_path / "run", **hangs, lockstep=lockstep, **alone)
    with pytest.raises(Stopped):
        dreamer.train(config)
    assert "has not answered for 5 seconds" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["inline", "processes"])
def test_a_run_whose_environment_is_never_made_ends_when_asked_to(tmp_path, capsys, backend):
    never = {"env": "broken_envs:never_made", "env_options.asks": os.getpid()}
    with pytest.raises(Stopped):
        dreamer.train(tiny(tmp_path / "run", **never, workers__backend=backend, workers__envs=1))
    assert "SIGINT: stopping, nothing to save yet" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
