"""The directory of a sweep: its trials, how they are packed, and the status of each trial. Imports no jax.

    SWEEP/sweep.json              what the sweep file says, all trials and programs
    SWEEP/TRIAL, SWEEP/PROGRAM/TRIAL    the run directories
    SWEEP/failed/TRIAL.json       why a trial failed
    SWEEP/early/TRIAL.json        where a scheduler stopped a trial, and with which score
    SWEEP/logs/PROGRAM.log        what the process of a program printed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.trials import Trial
from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files, lock
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.files.run_dir import CONFIG
from dreamer.runtime.run import verifying

FILE, FAILED, EARLY, LOGS, VERSION = "sweep.json", "failed", "early", "logs", 1
Standing = Literal["done", "failed", "stopped early", "running", "stopped", "waiting"]
SETTLED: tuple[Standing, ...] = ("done", "failed", "stopped early")  # nothing more is trained


class Known(NamedTuple):
    """What the directory of a sweep records.

    said: the contents of the sweep file | trials {name: its entry} | programs: in the order of their numbers
    gone: trials that the sweep file no longer has; their runs stay
    """

    said: Mapping[str, Any]
    trials: Mapping[str, Mapping[str, Any]]
    programs: tuple[Program, ...]
    gone: tuple[str, ...] = ()

    def run_dir(self, root: Path, trial: str) -> Path:
        """Returns the run directory of a trial."""
        return root / self.trials[trial]["run_dir"]


def entries(trials: Sequence[Trial], programs: Sequence[Program]) -> dict[str, dict[str, Any]]:
    """Returns the entries of trials in the file of a sweep, by name."""
    home = {name: program for program in programs for name in program.trials}
    return {
        trial.name: {
            "name": trial.name, "values": dict(trial.values), "seed": trial.seed, "program": home[trial.name].name,
            "run_dir": home[trial.name].run_dir(trial.name),
        }
        for trial in trials
    }  # fmt: skip


def read(root: Path) -> Known | None:
    """Reads the file of a sweep; None: there is none. Raises UserError if it is damaged, or another version's."""
    path = root / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    try:
        if values["version"] != VERSION:
            raise UserError(f"{path} was written by another version of dreamer, with format {values['version']}")
        trials = {str(one["name"]): dict(one) for one in values["trials"]}
        programs = tuple(Program(str(one["name"]), tuple(map(str, one["trials"]))) for one in values["programs"])
        for one in trials.values():
            texts = all(isinstance(one[key], str) for key in ("program", "run_dir"))
            if not texts or not isinstance(one["values"], dict):
                raise TypeError("a trial has invalid contents")
        said = {key: value for key, value in values.items() if key not in ("version", "trials", "programs", "gone")}
        return Known(said, trials, programs, tuple(map(str, values.get("gone", ()))))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def write(root: Path, known: Known) -> None:
    """Writes the file of a sweep. Raises UserError if the disk is full."""
    values = {
        "version": VERSION, **known.said, "trials": [*known.trials.values()],
        "programs": [program._asdict() for program in known.programs], "gone": known.gone,
    }  # fmt: skip
    text = json.dumps(values, indent=1) + "\n"
    write_whole(root / FILE, lambda path: path.write_text(text, encoding="utf-8"))


class Failure(NamedTuple):
    """Why a trial failed: one line, and the exit code of its process."""

    cause: str
    code: int


def failure(root: Path, trial: str) -> Failure | None:
    """Returns why a trial failed; None: it did not."""
    try:
        values = json.loads((root / FAILED / f"{trial}.json").read_text(encoding="utf-8"))
        return Failure(str(values["cause"]), int(values["code"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Failure(f"its record is damaged: {error}", 1)


def set_failed(root: Path, trial: str, why: Failure) -> None:
    """Records that a trial failed. Raises UserError if the disk is full."""
    (root / FAILED).mkdir(exist_ok=True)
    text = json.dumps(why._asdict()) + "\n"
    write_whole(root / FAILED / f"{trial}.json", lambda path: path.write_text(text, encoding="utf-8"))


def clear_failed(root: Path, trials: Sequence[str]) -> None:
    """Removes the record that these trials failed."""
    for trial in trials:
        (root / FAILED / f"{trial}.json").unlink(missing_ok=True)


class Early(NamedTuple):
    """Where a scheduler stopped a trial.

    by: the scheduler | env_steps, score: of the trial at that moment
    """

    by: str
    env_steps: int
    score: float

    def __str__(self) -> str:
        return f"{self.by} stopped it at {self.env_steps:,} steps with {self.score:,.4g}"


def early(root: Path, trial: str) -> Early | None:
    """Returns where a scheduler stopped a trial; None: it did not. Raises UserError if the record is damaged."""
    path = root / EARLY / f"{trial}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Early(str(values["by"]), int(values["env_steps"]), float(values["score"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def set_early(root: Path, trial: str, stop: Early) -> None:
    """Records that a scheduler stops a trial. Its process sees this, saves and ends."""
    (root / EARLY).mkdir(exist_ok=True)
    text = json.dumps(stop._asdict()) + "\n"
    write_whole(root / EARLY / f"{trial}.json", lambda path: path.write_text(text, encoding="utf-8"))


def standing(root: Path, known: Known, trial: str, env_steps: int) -> Standing:
    """Returns the status of a trial. env_steps: the length of its run."""
    run_dir = known.run_dir(root, trial)
    if failure(root, trial):
        return "failed"
    if ended(run_dir, env_steps):
        return "done"
    held = lock.look(run_dir) if run_dir.is_dir() else None
    if held and not held.stale:
        return "running"
    if early(root, trial):
        return "stopped early"
    return "stopped" if (run_dir / CONFIG).exists() else "waiting"


def ended(run_dir: Path, env_steps: int) -> bool:
    """Returns whether a run has made `env_steps` steps and its last evaluation."""
    steps = checkpoint_files.steps(run_dir)
    if not steps or steps[-1] < env_steps:
        return False
    try:
        return verifying.end_of(run_dir, checkpoint_files.read_manifest(run_dir, steps[-1])) is not None
    except UserError:
        return False
