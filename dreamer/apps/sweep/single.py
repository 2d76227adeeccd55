"""Runs one program of a sweep in this process, for a launcher or a task of an array job."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dreamer.apps.sweep import apart, local, ray_inherit, state
from dreamer.apps.sweep.options import SweepFlags
from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.plans import few, is_open, plan, say
from dreamer.apps.sweep.spec import Sweep
from dreamer.apps.sweep.state import Failure, Known
from dreamer.apps.sweep.trials import Trial
from dreamer.errors import UserError
from dreamer.runtime.files import lock
from dreamer.runtime.files.lock import RunLock
from dreamer.runtime.population import exploit
from dreamer.runtime.run.listening import Callback, Line


def run_one(root: Path, given: Sweep, trials: dict[str, Trial], flags: SweepFlags) -> int:
    """Runs one program in this process. Returns its exit code: 0, or 1 if one of its trials has failed."""
    known = state.read(root)
    fresh = known is None or any(name not in known.trials for name in trials)
    if known is None or fresh or apart.arranged(root, known, trials) != known:
        root.mkdir(parents=True, exist_ok=True)
        with waiting_for_lock(root):  # tasks of an array may come at the same time
            known = apart.arranged(root, plan(root, given, trials, flags).known, trials)
            state.write(root, known)
    names = [program.name for program in known.programs]
    number = names.index(flags.index) if flags.index in names else _number(flags.index, len(names))
    program = known.programs[number]
    missing = [name for name in program.trials if name not in trials]
    if missing or not program.trials:
        raise UserError(f"{program.name} has only trials that the sweep file no longer has: {few(missing) or 'none'}")
    if flags.retry:
        known = retried(root, known, program, trials)
        program = known.programs[number]
    lengths = {name: trials[name].config.length for name in program.trials}
    if not any(is_open(root, known, name, lengths) for name in program.trials):
        failed = [name for name in program.trials if state.failure(root, name)]
        done = "its trials are done, or were stopped early"
        why = f"failed, see --status; --retry runs them again: {few(failed)}" if failed else done
        print(f"{program.name} has nothing to do: {why}")
        return int(bool(failed))
    from dreamer.runtime.train import train

    share_compiled(root, flags.compilation_cache)
    if (root / exploit.FILE).exists() and len(program.trials) == 1:
        [name] = program.trials
        if line := ray_inherit.catch_up(root, known, name, trials[name].config):
            say(line)
    callbacks = [stop_at(flags.until)] if flags.until else []
    try:
        if not local.held(root, known, program):
            apart.leave_out(root, program)
        config = apart.config_of(root, known, program, trials)
        if flags.slurm.nodes > 1:
            config = dataclasses.replace(config, devices=dataclasses.replace(config.devices, coordinator="auto"))
        train(config, resume="auto", trust=flags.trust, callbacks=callbacks)
    except UserError as error:
        if not local.held(root, known, program):
            for name in program.trials:
                if is_open(root, known, name, lengths):
                    state.set_failed(root, name, Failure(" ".join(str(error).split()), 2))
        raise
    stopped = apart.stopped_members(root, program)
    for name, cause in stopped.items():
        state.set_failed(root, name, Failure(cause, 1))
    return int(bool(stopped))


def retried(root: Path, known: Known, program: Program, trials: dict[str, Trial]) -> Known:
    """Marks the failed trials of a program as not done, and returns the sweep. Writes it.

    Members of a population that have stopped become programs of their own.
    """
    number, before = known.programs.index(program), len(known.programs)
    with waiting_for_lock(root):
        known = apart.arranged(root, known, trials, program.trials)
        state.write(root, known)
    for other in known.programs[before:]:
        alone = f"--index {other.name} --retry"
        print(f"{other.trials[0]} had stopped in {program.name}, and is a program of its own: {alone}")
    state.clear_failed(root, known.programs[number].trials)
    return known


def stop_at(env_steps: int) -> Callback:
    """Returns a callback that stops a run at its first evaluation after so many env steps."""

    def callback(line: Line) -> Literal["stop"] | None:
        return "stop" if line.env_steps >= env_steps and "eval/return" in line.values else None

    return callback


def with_cache(environment: dict[str, str], root: Path, folder: str) -> dict[str, str]:
    """Returns environment variables with which the processes of a sweep share what they compile."""
    if folder == "off":
        return environment
    cache = os.path.abspath(os.path.expanduser(folder)) if folder else str(root / "compiled")
    return {**environment, "JAX_COMPILATION_CACHE_DIR": environment.get("JAX_COMPILATION_CACHE_DIR") or cache}


def share_compiled(root: Path, folder: str) -> None:
    """Makes this process share what it compiles with the other programs, unless a variable says where."""
    import jax

    if folder != "off" and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", with_cache({}, root, folder)["JAX_COMPILATION_CACHE_DIR"])


@contextlib.contextmanager
def waiting_for_lock(root: Path, patience: float = 600.0) -> Iterator[None]:
    """A context that holds the lock of a sweep. Waits up to `patience` seconds for it; then raises UserError."""
    begun = time.monotonic()
    while True:
        try:
            held = RunLock(root, say, lambda error: say(str(error)))
            break
        except UserError:  # held by another process, or the directory cannot be written
            if lock.look(root) is None or time.monotonic() - begun > patience:
                raise
            time.sleep(1.0)
    with held:
        yield


def _number(text: str, count: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < count:
        raise UserError(f"--index {text} is not a program of the sweep; give 0 to {count - 1}, see --print")
    return number
