"""A program of a sweep as a Tune trial: runs its process on a machine of the cluster. Imports neither jax nor ray.

The process is the one that a sweep on one machine starts, in the same directories, and its whole state is in them. The
launcher also ends a trial through a file, so that the trial saves within a step, before Tune ends its worker.
"""

from __future__ import annotations

import collections
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.apps.sweep import local, ray_inherit, ray_scores, state
from dreamer.apps.sweep.local import Launcher, Place
from dreamer.apps.sweep.packing import Program
from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files

STOP = "ray/stop"  # in the directory of the sweep: all trials save and end
SET_BY_RAY = ("OMP_NUM_THREADS",)  # for the worker, not for a training
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class Job(NamedTuple):
    """What all trials of a sweep share.

    root: the directory of the sweep | words: those after `dreamer`, to which the name of a program is added
    environment: variables of the launcher that the processes receive | folder: the current folder of the launcher
    metric: what is reported as score | cpus, gpus: of a program | every: pbt: steps between comparisons, else 0
    module: runs a program, see `Launcher`
    """

    root: str
    words: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    metric: str
    cpus: int
    gpus: float
    every: int = 0
    module: str = local.CHILD


def described(root: Path, known: state.Known, program: Program, lengths: Mapping[str, int], since: int) -> dict:
    """Returns what a trial of Tune knows of its program, plain values. since: scores up to this step are known."""
    trials = {name: [str(known.run_dir(root, name)), lengths[name]] for name in program.trials}
    return {"name": program.name, "trials": trials, "since": since}


class TrialProcess:
    """Owns the process of one program. `step` runs it until there is something to report."""

    def __init__(self, job: Job, given: Mapping[str, Any]):
        """given: from `described`. Raises UserError if the directory of the sweep is not on this machine."""
        self._job, self._root = job, Path(job.root)
        if not (self._root / state.FILE).is_file():
            raise UserError(f"{socket.gethostname()} has no {self._root}: all machines must share the sweep's folder")
        self._program = Program(given["name"], tuple(given["trials"]))
        self._lengths = {name: int(length) for name, (_, length) in given["trials"].items()}
        self._known = state.Known(
            {}, {name: {"run_dir": run_dir} for name, (run_dir, _) in given["trials"].items()}, (self._program,)
        )
        self._run_dirs = [self._known.run_dir(self._root, name) for name in self._program.trials]
        self._reported: dict[str, Any] = {"env_steps": int(given["since"])}
        self._due = ray_inherit.next_due(self._root, job.every)
        self._launcher: Launcher | None = None
        self._waiting: collections.deque[Program] = collections.deque()
        self._claims: list[socket.socket] = []

    def step(self) -> dict[str, Any]:
        """Returns the next {"env_steps", "score"} of the program, with "done" when it has ended. Waits for it."""
        while True:
            if (self._root / STOP).exists() or all(map(self._early, self._program.trials)):
                return self._end()
            if found := self._next():
                return found
            if all(self._standing(name) in state.SETTLED for name in self._program.trials):
                return self._end()
            self._advance()
            time.sleep(local.POLL)

    def close(self) -> None:
        """Makes the process save and end, and gives its cores back."""
        if self._launcher:
            self._launcher.close()
            self._launcher = None
        for claim in self._claims:
            claim.close()
        self._claims = []

    def _end(self) -> dict[str, Any]:
        self.close()
        return {**self._reported, "done": True}

    def _next(self) -> dict[str, Any] | None:
        """Returns the oldest score that was not reported. With pbt, there is one for each comparison."""
        if self._job.every and self._launcher and self._launcher.running:
            return None
        least = max(self._due, self._reported["env_steps"] + 1)
        for one in ray_scores.of_program(self._run_dirs, self._job.metric):
            if one.env_steps >= least:
                self._reported = {"env_steps": one.env_steps, "score": one.value}
                return dict(self._reported)
        return None

    def _advance(self) -> None:
        if self._launcher and not self._launcher.running and not self._waiting:
            self._fail("its process ended, but has made no evaluation to compare")
            return
        if self._launcher is None:
            self._launch()
        assert self._launcher
        self._launcher.advance(self._waiting)

    def _launch(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        own, self._claims = claim_cores(cores, self._job.cpus)
        if os.path.isdir(self._job.folder):
            os.chdir(self._job.folder)  # environments are found from there
        *words, index = self._job.words
        until = ["--until", str(self._due)] if self._due else []
        self._waiting.append(self._program)
        self._launcher = Segment(
            self._root, self._known, self._lengths, [*words, *until, index], environment_of(self._job, os.environ),
            [Place(own)], print, self._job.module, self._due,
        )  # fmt: skip

    def _fail(self, cause: str) -> None:
        for name in self._program.trials:
            if self._standing(name) not in state.SETTLED:
                state.set_failed(self._root, name, state.Failure(cause, 1))

    def _early(self, trial: str) -> bool:
        return state.early(self._root, trial) is not None

    def _standing(self, trial: str) -> state.Standing:
        return state.standing(self._root, self._known, trial, self._lengths[trial])


class Segment(Launcher):
    """Runs a program up to a comparison of its trial with others, where it has saved and ended."""

    def __init__(self, *arguments: Any):
        """arguments: those of `Launcher`, and the step of the comparison; 0: the end"""
        *own, self._until = arguments
        super().__init__(*own)

    def _settled(self, trial: str) -> bool:
        steps = checkpoint_files.steps(self._known.run_dir(self._root, trial)) or [-1]
        return super()._settled(trial) or bool(self._until and steps[-1] >= self._until)


def environment_of(job: Job, own: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of the process. own: those of the worker, which name the GPUs that it may use."""
    found = {name: value for name, value in own.items() if name not in SET_BY_RAY} | dict(job.environment)
    if 0 < job.gpus < 1:
        found.setdefault(MEMORY, f"{0.9 * job.gpus:.3g}")
    return found


def claim_cores(cores: Sequence[int], count: int) -> tuple[tuple[int, ...], list[socket.socket]]:
    """Returns `count` cores that no other trial on this machine has, and what holds them until it is closed.

    Ray counts CPUs but does not say which; JAX starts a thread for each core that it may use. A name in the abstract
    space of sockets belongs to one process at a time, leaves no file, and is free again however the process ends.
    Returns all cores if fewer than `count` are free.
    """
    held: dict[int, socket.socket] = {}
    for core in cores:
        if len(held) == count:
            break
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0dreamer-{os.getuid()}-core-{core}")
            held[core] = claim
        except OSError:
            claim.close()
    return (tuple(held), [*held.values()]) if len(held) == count else (tuple(cores), [*held.values()])
