"""Runs the programs of a sweep on this machine, as many at once as there is room for. Imports no jax."""

from __future__ import annotations

import collections
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dreamer.apps.sweep import state
from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.state import Failure
from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files, lock

POLL = 0.5  # seconds
PATIENCE = 120.0  # seconds that a program has to save after a signal
MOST_LOSSES = 3  # times that a program may die without progress before it counts as failed
CHILD = "dreamer.apps.sweep.child"  # the module that runs a program
REQUEUED = {143, 138}  # exit codes after SIGTERM and SIGUSR1: the program has saved and must start again


class Place(NamedTuple):
    """Where a program runs: on some cores of the CPU, and on one accelerator; None: on all devices."""

    cores: tuple[int, ...]
    device: int | None = None


def places(jobs: int, cores: Sequence[int], accelerators: int) -> list[Place]:
    """Returns a place for each of `jobs` programs. Cores and accelerators are shared out evenly."""
    found = []
    for job in range(jobs):
        own = cores[job * len(cores) // jobs : (job + 1) * len(cores) // jobs] or [cores[job % len(cores)]]
        found.append(Place(tuple(own), job % accelerators if accelerators > 1 else None))
    return found


class Launched(NamedTuple):
    """A running program: its process, its place, and the sum of the env steps that were saved when it started."""

    program: Program
    process: subprocess.Popen
    place: Place
    saved: int


class Launcher:
    """Owns the processes of a sweep's programs. Use as a context manager, which ends all of them."""

    def __init__(
        self, root: Path, known: state.Known, lengths: Mapping[str, int], command: Sequence[str],
        environment: Mapping[str, str], where: Sequence[Place], report: Callable[[str], None], module: str = CHILD,
    ):  # fmt: skip
        """root: the directory of the sweep | known: its trials and programs | lengths: env steps of each trial

        command: the words after `dreamer`, to which the name of a program is added
        environment: the environment variables of the processes
        where: the places of programs that run at the same time | report: called with a line of text
        module: called with the arguments of `child`
        """
        self._root, self._known, self._command, self._report = root, known, command, report
        self._environment, self._lengths, self._module = environment, lengths, module
        self._free = [*where]
        self._running: list[Launched] = []
        self._losses: dict[str, int] = {}
        (root / state.LOGS).mkdir(parents=True, exist_ok=True)

    def run(self, programs: Sequence[Program], check: Callable[[], None], tick: Callable[[], None]) -> None:
        """Runs programs until all have ended or failed. check: raises when the sweep must stop | tick: shows progress.

        A program whose run directory another process holds waits until that process ends.
        """
        waiting = collections.deque(programs)
        while waiting or self.running:
            check()
            self.advance(waiting)
            tick()
            time.sleep(POLL)

    @property
    def running(self) -> int:
        """The number of programs that run."""
        return len(self._running)

    def advance(self, waiting: collections.deque[Program]) -> None:
        """Starts programs that wait, as there is room, and handles those that have ended. Does not wait for any."""
        for _ in range(len(waiting)):
            program = waiting.popleft()
            free = self._free and not held(self._root, self._known, program)
            if not (free and self._start(program)):
                waiting.append(program)
        for one in [*self._running]:
            if one.process.poll() is not None and self._ended(one):
                waiting.append(one.program)

    def close(self) -> None:
        """Asks the running programs to save and to end, and kills those that do not within PATIENCE seconds."""
        for one in self._running:
            one.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for one in self._running:
            try:
                one.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._report(f"{one.program.name} does not end; it is killed")
                one.process.kill()
                one.process.wait()
        self._running.clear()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, program: Program) -> bool:
        """Starts the process of a program, unless that of an earlier launcher still runs. Returns whether it did."""
        with open(log_of(self._root, program), "ab") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process inherits it, and holds it until its end
            except BlockingIOError:
                return False
            place = self._free.pop(0)
            environment = dict(self._environment)
            if place.device is not None:
                environment["CUDA_VISIBLE_DEVICES"] = str(place.device)
            words = [str(os.getpid()), ",".join(map(str, place.cores)), *self._command, program.name]
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, *words], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip
        self._running.append(Launched(program, process, place, self._saved(program)))
        self._report(f"{program.name} started ({len(program.trials)} trials): {', '.join(_few(program.trials))}")
        return True

    def _ended(self, one: Launched) -> bool:
        """Handles the end of a process. Returns whether its program must start again."""
        self._running.remove(one)
        self._free.append(one.place)
        code = one.process.returncode
        if code in (0, 1) and all(self._settled(trial) for trial in one.program.trials):
            self._report(f"{one.program.name} is done")
            return False
        if code not in REQUEUED and code >= 0:
            cause = last_error(log_of(self._root, one.program)) or f"its process ended with exit code {code}"
            self._fail(one.program, Failure(cause, code))
            return False
        progress = self._saved(one.program) > one.saved
        losses = self._losses[one.program.name] = 1 if progress else self._losses.get(one.program.name, 0) + 1
        how = f"was stopped with exit code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
        if losses > MOST_LOSSES:
            self._fail(one.program, Failure(f"its process {how}, {losses} times without a new checkpoint", code))
            return False
        self._report(f"{one.program.name} {how}; it continues from its last checkpoint")
        return True

    def _settled(self, trial: str) -> bool:
        run_dir = self._known.run_dir(self._root, trial)
        return state.failure(self._root, trial) is not None or state.ended(run_dir, self._lengths[trial])

    def _fail(self, program: Program, why: Failure) -> None:
        for trial in program.trials:
            if not self._settled(trial):
                state.set_failed(self._root, trial, why)
        self._report(f"{program.name} failed, the others continue: {why.cause}")

    def _saved(self, program: Program) -> int:
        dirs = (self._known.run_dir(self._root, trial) for trial in program.trials)
        return sum((checkpoint_files.steps(run_dir) or [0])[-1] for run_dir in dirs)


def held(root: Path, known: state.Known, program: Program) -> bool:
    """Returns whether a process, here or on another machine, trains one of the program's trials."""
    for trial in program.trials:
        run_dir = known.run_dir(root, trial)
        found = lock.look(run_dir) if run_dir.is_dir() else None
        if found and not found.stale:
            return True
    return False


def log_of(root: Path, program: Program) -> Path:
    """Returns the file with what the process of a program prints."""
    return root / state.LOGS / f"{program.name}.log"


def last_error(log: Path) -> str:
    """Returns the last error line in the log of a program, or "" if there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
    found = [line for line in lines if line.startswith("dreamer: error: ")]
    return found[-1].removeprefix("dreamer: error: ") if found else ""


def check_linux() -> None:
    """Raises UserError where processes cannot be tied to the launcher."""
    if not sys.platform.startswith("linux"):
        raise UserError("dreamer sweep --on local needs Linux; elsewhere start each program with --index")


def _few(names: Sequence[str], most: int = 3) -> list[str]:
    return [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
