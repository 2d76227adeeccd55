"""Reads a sweep: its axes, its trials, and how each trial stands. Imports no jax.

    SWEEP/sweep.json           the axes, and each trial with its values, its seed and its run directory
    SWEEP/failed/NAME.json     the cause of a trial that has failed
    SWEEP/early/NAME.json      where a scheduler has stopped a trial

Nothing is written. A trial whose run directory does not exist has not started yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from dreamer.apps.report.curves import EVALUATION
from dreamer.apps.report.runs import Run, read_run
from dreamer.config import dotted, layer
from dreamer.errors import UserError
from dreamer.runtime.files import lock
from dreamer.runtime.files.run_dir import CONFIG, ERROR
from dreamer.runtime.files.safe_files import check_inside, json_value, read_text

FILE, FAILED, EARLY = "sweep.json", "failed", "early"
VERSION = 1
LARGEST = 1 << 26  # bytes of a sweep.json
TRACEBACK = "Traceback (most recent call last):\n"

Status = Literal["finished", "running", "stopped early", "diverged", "failed", "dead", "not started"]
STATUSES: tuple[Status, ...] = ("finished", "running", "stopped early", "diverged", "failed", "dead", "not started")


class Trial(NamedTuple):
    """One run of a sweep.

    values: {dotted key: value} of the axes; the seed is not among them
    run: the contents of the run directory; None: it has not started, or its config cannot be read
    status: finished: it has reached its end; running: a process trains it; stopped early: by a scheduler; diverged,
    failed: it ended with an error; dead: it has begun and no process trains it, but no error was written; not started
    cause: why the trial diverged or failed, or where it was stopped early, on one line; "": it was not
    """

    name: str
    values: Mapping[str, Any]
    seed: int
    path: Path
    run: Run | None
    status: Status
    cause: str


class Sweep(NamedTuple):
    """The contents of a sweep.

    base: its presets and settings, in words
    axes: {dotted key: the list of its values, or a mapping that is their distribution}
    gone: the number of trials that the sweep had before its file was changed; they are not among `trials`
    """

    root: Path
    base: tuple[str, ...]
    axes: Mapping[str, Any]
    trials: tuple[Trial, ...]
    gone: int = 0

    @property
    def runs(self) -> list[Run]:
        """The runs of the trials that have begun."""
        return [trial.run for trial in self.trials if trial.run]


def is_sweep(path: str | os.PathLike) -> bool:
    """Whether the folder at `path` holds a sweep."""
    return (Path(path).expanduser() / FILE).is_file()


def read_sweep(path: str | os.PathLike) -> Sweep:
    """Reads the sweep in the folder at `path`. Raises UserError when its sweep.json is damaged."""
    root = Path(path).expanduser()
    file = root / FILE
    text = read_text(file, LARGEST)
    try:
        values = json_value(text)
        _expect(values, dict, "it is no JSON object")
        if values.get("version") != VERSION:
            raise UserError(f"{file} has version {values.get('version')!r}; this dreamer reads version {VERSION}")
        axes, entries = values.get("axes"), values.get("trials")
        _expect(axes, dict, "axes must be a mapping of dotted keys")
        for key, spec in axes.items():
            _expect(spec, list | dict, f"axes: {key} must be a list of values, or a distribution")
        _expect(entries, list, "trials must be a list")
        every = [_trial(entry, number, root) for number, entry in enumerate(entries, 1)]
        for what, given in (("name", [one.name for one in every]), ("run_dir", [str(one.path) for one in every])):
            if twice := next((one for one in given if given.count(one) > 1), None):
                raise ValueError(f"trials: the {what} {twice} is given twice")
        base, gone = values.get("base", []), values.get("gone", [])
        _expect(base, list, "base must be a list of presets")
        _expect(gone, list, "gone must be a list of trials")
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None
    trials = tuple(trial for trial in every if trial.name not in gone)
    return Sweep(root, tuple(_in_words(one) for one in base), axes, trials, len(every) - len(trials))


def _trial(entry: Any, number: int, root: Path) -> Trial:
    """Reads one entry of the list of trials. Raises ValueError when it is damaged. number: counted from 1."""
    where = f"trial {number}"
    _expect(entry, dict, f"{where} is no mapping")
    fields = {"name": str, "values": dict, "seed": int, "run_dir": str}
    for name, kind in fields.items():
        _expect(entry.get(name), kind, f"{where}: {name} must be {kind.__name__}, not {entry.get(name)!r}")
    inside = PurePosixPath(entry["run_dir"])
    for what, one in (("run_dir", inside), ("name", PurePosixPath(entry["name"]))):
        if one.is_absolute() or ".." in one.parts or not one.parts:
            raise ValueError(f"{where}: {what} {entry[what]!r} is no path inside the sweep")
    path = root / inside
    check_inside(path, root)
    run, fault = _run(path)
    status, cause = _status(root, entry["name"], path, run)
    if fault and not cause:
        status, cause = "failed", fault
    return Trial(entry["name"], entry["values"], entry["seed"], path, run, status, cause)


def _expect(value: Any, kind: Any, fault: str) -> None:
    """Raises ValueError(fault) unless `value` is of `kind`. A bool is no int."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(fault)


def _run(path: Path) -> tuple[Run | None, str]:
    """Reads the run of a trial, None if it has not started. The text says why a run cannot be read."""
    if not (path / CONFIG).is_file():
        return None, ""
    try:
        return read_run(path), ""
    except UserError as error:
        return None, str(error)


def _status(root: Path, name: str, path: Path, run: Run | None) -> tuple[Status, str]:
    """Returns how a trial stands, and why it failed, if it did."""
    held = lock.look(path)
    if held and not held.stale:
        return "running", ""
    cause = _failure(root / FAILED / f"{name}.json") or _error(path / ERROR)  # a run that ends well removes its error
    if cause:
        return ("diverged" if "diverged" in cause.lower() else "failed"), cause
    if not run:
        return "not started", ""
    if _ended(run):
        return "finished", ""
    early = _early(root / EARLY / f"{name}.json")
    return ("stopped early", early) if early else ("dead", "")


def _ended(run: Run) -> bool:
    """Whether a run has reached its env_steps, and if it evaluates, made its last evaluation."""
    end, evaluations = run.config.length, run.metrics.get(EVALUATION)
    return run.env_steps >= end and (evaluations is None or evaluations.x[-1] >= end)


def _failure(file: Path) -> str:
    """Returns the cause in the file of a failed trial, on one line; "": there is no such file."""
    if not file.is_file():
        return ""
    try:
        values = json_value(read_text(file))
        cause = values.get("cause") if isinstance(values, Mapping) else None
    except (UserError, ValueError):
        cause = None
    return " ".join(str(cause).split()) if cause else f"{file} does not say why"


def _early(file: Path) -> str:
    """Returns where a scheduler has stopped a trial, on one line; "": it has not."""
    if not file.is_file():
        return ""
    try:
        values = json_value(read_text(file))
        steps, score = int(values["env_steps"]), float(values["score"])
        return " ".join(f"{values['by']} stopped it at {steps:,} steps with {score:,.4g}".split())
    except (UserError, ValueError, KeyError, TypeError):
        return f"{file} does not say where"


def _error(file: Path) -> str:
    """Returns the last exception in an error.txt, on one line; "": there is no such file."""
    if not file.is_file():
        return ""
    try:
        text = read_text(file)
    except UserError as error:
        return str(error)
    lines = [line for line in text.rpartition(TRACEBACK)[2].splitlines() if line and not line.startswith(" ")]
    return lines[0].removeprefix("dreamer.errors.UserError: ") if lines else f"see {file}"


def counts(trials: Sequence[Trial]) -> str:
    """Returns how many trials stand how, as text: "5 finished, 1 diverged"."""
    number = {status: sum(trial.status == status for trial in trials) for status in STATUSES}
    return ", ".join(f"{count} {status}" for status, count in number.items() if count)


def _in_words(base: Any) -> str:
    """Returns a preset, or settings as "env CartPole-v1, env_steps 5000"."""
    if not isinstance(base, Mapping):
        return str(base)
    leaves = [(key, value) for key, value in dotted(layer(base, "base").values) if not isinstance(value, Mapping)]
    return ", ".join(f"{key} {value}" for key, value in leaves)
