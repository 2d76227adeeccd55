"""The steps in which a run starts. Nothing on the disk changes before everything that can fail has succeeded.

    look             read the config, the checkpoints and the lock                        `decide`
    decide           which run, from which checkpoint, or why not                         `decide`
    lock             keep every other process out                                         `lock.RunLock`
    look again       files read before the lock may have changed                          `decide`
    into memory      environments, agent, replay, weights: everything that can still fail `build.open_run`
    change           move aside what a resume replaces, write the config, open the logs   `change`

`build.open_run` executes these steps. A new run has no directory to lock, so it is first built in memory; then
`Created` creates the directory, locks it and looks again. Files that are moved aside stay in the folder ASIDE until the
next checkpoint is on the disk. See docs/run-directory.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.plugins import EnvName
from dreamer.runtime.files import checkpoint_files, lock
from dreamer.runtime.files.atomic import UNFINISHED, disk_error
from dreamer.runtime.files.run_dir import (
    ASIDE,
    CHECKPOINTS,
    CONFIG,
    ERROR,
    HOSTS,
    LOCK,
    METRICS,
    PICTURES,
    ROWS,
    existing_run_dir,
    refuse_used,
)
from dreamer.runtime.log.logger import Resumed
from dreamer.runtime.log.sinks import Tail, lines_damage, tail_of
from dreamer.runtime.log.wandb_runs import wandb_ready
from dreamer.runtime.replay import disk_tier
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run import header, resume, run_config
from dreamer.runtime.run.resume import Found, Restored
from dreamer.runtime.run.schedule import NEVER

# The files and folders that a run creates in its directory.
OF_A_RUN = (
    CONFIG, f"{CONFIG}{UNFINISHED}", METRICS, CHECKPOINTS, ROWS, HOSTS, PICTURES, ASIDE, ERROR, f"{disk_tier.FOLDER}-*",
    "events.out.tfevents.*", "wandb",
)  # fmt: skip


class Decision(NamedTuple):
    """What `train` will do.

    config: the config, with the absolute run directory | given: the config from the user, which will be written
    env: the name of the environment, or a function that makes it | resume, step: as the user requested
    used: whether the directory contains this run already | found: the checkpoint to resume from; None: there is none
    trust: whether the user trusts the files of the run | longer: whether env_steps is larger than in the run's config
    """

    config: Config
    given: Config
    env: EnvName
    resume: str
    step: int | None
    used: bool
    found: Found | None
    trust: bool = False
    longer: bool = False

    @property
    def run_dir(self) -> Path:
        """Returns the absolute run directory."""
        return Path(self.config.run_dir)

    @property
    def resumed_at(self) -> int:
        """Returns the step of the checkpoint to resume from, or NEVER (-1) if there is none."""
        return self.found.step if self.found else NEVER

    @property
    def done(self) -> bool:
        """Whether the run has already made all its steps and its last evaluation."""
        return bool(self.found and self.found.env_steps >= self.config.length and self.found.ended)


def decide(
    config: Config, env: EnvName | None = None, resume_: str = "no", step: int | None = None, *, trust: bool = False,
    own_lock: bool = False,
) -> Decision:  # fmt: skip
    """Decides whether `config` starts a new run or resumes the run in its run directory. Only reads.

    env: the environment to use instead of config.env | resume_: "no", "yes" or "auto", as in `train`
    step: the number of the checkpoint to resume from; None: the newest
    trust: whether the user trusts the files of the run | own_lock: whether the caller holds the lock of the directory
    Raises UserError for every reason not to start or resume that can be found on the disk.
    """
    place = config.run_dir or header.default_run_dir(config)
    run_dir = Path(os.path.abspath(os.path.expanduser(place)))
    given, config = config, dataclasses.replace(config, run_dir=str(run_dir))
    decision = Decision(config, given, env or config.env, resume_, step, False, None, trust)
    if resume_ != "no" and not given.run_dir:
        raise UserError("resume needs the run directory: --run-dir runs/NAME")
    if resume_ == "no" or (resume_ == "auto" and not (run_dir / CONFIG).exists()):
        if step is not None:
            raise UserError(f"resume_from {step}: there is no run at {run_dir}")
        if given.run_dir:
            _refuse_held(run_dir, own_lock)  # first: one that ends at once removes its files one after the other
            refuse_used(run_dir)
        _check_place(run_dir)
        return decision
    existing_run_dir(run_dir)
    _refuse_held(run_dir, own_lock)
    own = resume.check_config(config, run_dir, trust)
    found = resume.find(run_dir, step)
    if found:
        run_config.check_same_run(own, found.manifest, found.step)
    else:
        _refuse_without_checkpoint(run_dir)
    _check_place(run_dir)
    longer = config.env_steps > own.layer().values.get("env_steps", config.env_steps)
    return decision._replace(used=True, found=found, longer=longer)


def check_sinks(config: Config) -> None:
    """Raises UserError if the config asks for Weights & Biases, but its package or account is missing."""
    if config.log.wandb != "off":
        wandb_ready(config.log.wandb)


def check_seen(run_dir: Path) -> None:
    """Raises UserError if a process does not see the run directory that process 0 has created."""
    if not (run_dir / LOCK).exists():
        raise UserError(
            f"run_dir {run_dir} of process 0 does not exist on {socket.gethostname()}: all processes need a folder on "
            "a file system that they share"
        )


class Created:
    """Owns a new run directory and its lock, from its creation until the run ends. Use as a context manager.

    If the context ends before a call of `keep`, it removes what the run has created.
    """

    def __init__(
        self, run_dir: Path, own_name: bool, report: Callable[[str], None] = print,
        lost: Callable[[UserError], None] = print,
    ):  # fmt: skip
        """own_name: whether this program chose the name. If the directory exists, a number is then appended to it.

        report, lost: arguments of `RunLock`.
        Raises UserError if the directory cannot be created, contains a run, or is locked by another process.
        """
        self.path, self._kept = run_dir, False
        self._made: list[Path] = []  # created folders, innermost first
        try:
            self._make(own_name)
            self._lock = lock.RunLock(self.path, report, lost)
        except OSError as error:
            self._remove_folders()
            raise disk_error(error, self.path) from error
        except UserError:
            self._remove_folders()
            raise
        try:
            refuse_used(self.path)  # again, because the directory is locked now
            self._before = {path.name for path in self.path.iterdir()}
        except UserError:
            self._lock.close()
            self._remove_folders()
            raise

    def keep(self) -> None:
        """Keeps the new directory: the files of the run stay when the context ends."""
        self._kept = True

    def unlock(self) -> None:
        """Releases the lock, if it is still held; for a process that ends at once."""
        self._lock.close()

    def __enter__(self) -> Created:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._kept:
            self._undo()
        self._lock.close()
        if not self._kept:
            self._remove_folders()

    def _make(self, own_name: bool) -> None:
        first, number = self.path, 1
        missing = [parent for parent in first.parents if not parent.exists()]
        first.parent.mkdir(parents=True, exist_ok=True)
        self._made = missing
        while True:
            try:
                self.path.mkdir()
            except FileExistsError:
                if not own_name and self.path.is_dir():
                    return
                if not own_name:
                    raise
                number += 1
                self.path = first.with_name(f"{first.name}-{number}")
                continue
            self._made = [self.path, *missing]
            return

    def _undo(self) -> None:
        """Removes what the run has created in its directory. Leaves older files, and files of other processes."""
        for pattern in OF_A_RUN:
            for path in self.path.glob(pattern):
                if path.name in self._before:
                    continue
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _remove_folders(self) -> None:
        """Removes the folders that this object has created, if they are empty."""
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def check_lines(found: Found, restored: Restored, run_dir: Path) -> list[str]:
    """Checks the part of metrics.jsonl that was written before the checkpoint. Returns lines to print.

    Raises UserError if it is damaged. If the file is missing, the lines say that the run starts a new file.
    """
    position = restored.head["logger"]
    what = lines_damage(run_dir / METRICS, position["bytes"], position.get("crc"))
    if what == "is missing":
        return [f"{run_dir / METRICS} is missing: a new one starts after step {found.step:,}"] * bool(position["bytes"])
    if what:
        raise UserError(
            f"{run_dir / METRICS} {what}; move it away to resume without the lines up to checkpoint {found.step}"
        )
    return []


def change(
    decision: Decision, restored: Restored | None, store: RowStore, *, steps: int, run: str,
    report: Callable[[str], None],
) -> Resumed | None:  # fmt: skip
    """Moves aside the files that a resumed run will write again, writes the config, and opens `store`.

    Returns where the log of a resumed run continues. If there is no checkpoint, `restored` and the result are None.
    steps: the number of rows that the restored replay has received. run: the id of the run.
    report: called with lines to print.
    A kill at any instant leaves a run that can be resumed: checkpoints move first, the newest of them first; then files
    of rows, the newest first; then lines of metrics.
    Raises UserError on a disk error.
    """
    found, run_dir, resumed = decision.found, decision.run_dir, None
    try:
        disk_tier.remove_left_over(run_dir)
        if found and restored:
            moved = [run_dir / CHECKPOINTS / str(step) for step in reversed(found.newer)]
            moved += [path for step in found.newer for path in store.beside(step)]
            moved += store.later() if restored.exact else []
            tail = _tail(restored, run_dir, steps)
            set_aside(run_dir, moved, tail)
            if found.newer:
                numbers = checkpoint_files.listed(found.newer)
                report(f"moved aside until the next checkpoint: the newer checkpoints {numbers}, in {run_dir / ASIDE}")
            if tail.note:
                report(tail.note)
            resumed = Resumed(restored.head["logger"], steps, later=not restored.exact, seconds=tail.seconds)
    except OSError as error:
        raise disk_error(error, run_dir) from error
    run_config.write(run_dir, decision.given, run)
    store.open()
    store.remove_unfinished()
    return resumed


def set_aside(run_dir: Path, paths: list[Path], tail: Tail) -> None:
    """Moves `paths`, and all of metrics.jsonl after its first `tail.keep` bytes, into a new folder in run_dir/aside.

    paths: files and folders of the run.
    """
    metrics = run_dir / METRICS
    cut = metrics.exists() and metrics.stat().st_size > tail.keep
    if not paths and not cut:
        return
    number = 1
    while (aside := run_dir / ASIDE / str(number)).exists():
        number += 1
    aside.mkdir(parents=True)
    for path in paths:
        target = aside / path.relative_to(run_dir)
        target.parent.mkdir(exist_ok=True)
        os.rename(path, target)
    if cut:
        with open(metrics, "rb+") as file:
            file.seek(tail.keep)
            (aside / METRICS).write_bytes(file.read())
            file.truncate(tail.keep)


def _tail(restored: Restored, run_dir: Path, steps: int) -> Tail:
    nbytes = restored.head["logger"]["bytes"]
    metrics = run_dir / METRICS
    if not metrics.exists():
        return Tail(0, 0.0, "")
    return tail_of(metrics, nbytes, None if restored.exact else steps)


def _refuse_held(run_dir: Path, own_lock: bool) -> None:
    held = None if own_lock else lock.look(run_dir)
    # Locks of other machines are checked later, with the clock of the file system.
    if held and held.runs and not held.stale:
        raise UserError(lock.refusal(run_dir, held))


def _refuse_without_checkpoint(run_dir: Path) -> None:
    """Raises UserError if a run has rows or metrics but no checkpoint to resume from."""
    metrics = run_dir / METRICS
    if any((run_dir / ROWS).glob("rows-*.dreamer")) or (metrics.is_file() and metrics.stat().st_size):
        raise UserError(
            f"{run_dir} has rows or metrics but no checkpoint: restore its {CHECKPOINTS}, or give another --run-dir"
        )


def _check_place(run_dir: Path) -> None:
    """Raises UserError if this user cannot write to the run directory, or to the folder in which to create it."""
    place = next(place for place in (run_dir, *run_dir.parents) if place.exists() or place.is_symlink())
    if not place.is_dir():
        raise UserError(f"cannot write {run_dir}: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"run_dir {run_dir} is not writable by this user")
