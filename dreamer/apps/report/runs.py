"""Reads run directories for a report: their metrics, their groups, and the settings that differ. No jax.

Only reads: a run that has not ended is read up to its last whole line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from dreamer.coerce import Dumper
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.fields import SAME_GROUP, get, has_mark, keys
from dreamer.runtime.files.run_dir import CONFIG, METRICS, existing_run_dir
from dreamer.runtime.files.safe_files import json_value, open_regular
from dreamer.runtime.log.logger import RESERVED
from dreamer.runtime.run.run_config import load_plain
from dreamer.runtime.run.verifying import newest_metrics_fault

TASK = ("env", "env_options")
ONE_GROUP = "all runs"
MOST_NAMED = 3  # settings in the name of a group


class Points(NamedTuple):
    """Measured points: x [N], ascending, in the units of an axis | y [N] float64."""

    x: np.ndarray
    y: np.ndarray


class Run(NamedTuple):
    """The contents of a run directory so far.

    metrics: {name: Points over env_steps}, values that are not finite left out
    env_steps, updates, seconds: of the last line, 0 without lines | notes: one line on each irregularity
    """

    path: Path
    config: Config
    metrics: Mapping[str, Points]
    env_steps: int
    updates: int
    seconds: float
    notes: tuple[str, ...]


class Group(NamedTuple):
    """Runs that differ in their seed alone, or that the user has grouped."""

    name: str
    runs: list[Run]


class Task(NamedTuple):
    """One environment with its options, and the groups that were trained in it."""

    name: str
    env: str
    options: Mapping[str, Any]
    groups: list[Group]


# Reading --------------------------------------------------------------------------------------------------------------


def find_runs(path: str | os.PathLike) -> list[Path]:
    """The run directory at `path`, or those in the folder at any depth. Raises UserError when there is none."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"no run at {root}: there is no such directory")
    found = []
    for folder, inside, files in os.walk(root):
        inside.sort()
        if CONFIG in files:
            found.append(Path(folder))
            inside.clear()  # folders inside a run are not searched
    if not found:
        raise UserError(f"no run in {root}: neither it nor a folder in it holds a {CONFIG}")
    return found


def read_run(path: str | os.PathLike) -> Run:
    """The config and the metrics of a run directory. Raises UserError if missing, or for a damaged or foreign line."""
    run_dir = existing_run_dir(Path(path))
    config = load_plain(run_dir)
    if fault := newest_metrics_fault(run_dir):
        raise UserError(f"{fault}; dreamer verify {run_dir} says what can be done")
    rows, notes = read_lines(run_dir / METRICS)
    last = rows[-1] if rows else {}
    if not rows:
        notes.append(f"{run_dir} has no metrics yet")
    metrics: dict[str, tuple[list[float], list[float]]] = {}
    left_out: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if name in RESERVED:
                continue
            if value is None:
                left_out[name] = left_out.get(name, 0) + 1
                continue
            xs, ys = metrics.setdefault(name, ([], []))
            xs.append(row["env_steps"])
            ys.append(value)
    notes += [f"{run_dir}: {name} is not finite in {n} lines, left out" for name, n in sorted(left_out.items())]
    return Run(
        run_dir, config, {name: Points(np.array(x, np.float64), np.array(y)) for name, (x, y) in metrics.items()},
        int(last.get("env_steps", 0)), int(last.get("updates", 0)), float(last.get("time", 0.0)), tuple(notes),
    )  # fmt: skip


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a metrics.jsonl, and a note when its last line is only half written.

    Raises UserError naming a line that is not an object of numbers, has no env_steps, or smaller ones than before.
    """
    try:
        with open_regular(path) as file:
            *whole, rest = file.read().split(b"\n")
    except FileNotFoundError:
        raise UserError(f"no metrics of the run {path.parent}: it holds no {METRICS}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    rows, notes = [_row(line, f"{path}:{number}") for number, line in enumerate(whole, 1)], []
    if rest:
        try:
            rows.append(_row(rest, f"{path}:{len(whole) + 1}"))
        except UserError:
            notes.append(f"{path}: the last line is half written and left out")
    for number, (before, after) in enumerate(zip(rows, rows[1:], strict=False), 2):
        if after["env_steps"] < before["env_steps"]:
            steps = f"from {before['env_steps']} to {after['env_steps']}"
            raise UserError(f"{path}:{number}: env_steps goes back {steps}: these are the lines of more than one run")
    return rows, notes


def _row(line: bytes, where: str) -> dict[str, Any]:
    """One line of metrics as an object."""
    try:
        row = json_value(line)
    except ValueError as error:
        raise UserError(f"{where}: damaged line of metrics: {error}") from None
    if not isinstance(row, dict) or not _is_number(row.get("env_steps")):
        raise UserError(f"{where}: not a line of metrics: it is no JSON object with a number env_steps")
    for name, value in row.items():
        if name != "nonfinite" and value is not None and not _is_number(value):
            raise UserError(f"{where}: not a line of metrics: {name!r} is no number but {str(value)[:40]!r}")
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


# Grouping -------------------------------------------------------------------------------------------------------------


def tasks(runs: Sequence[Run], named: Sequence[Group] = ()) -> list[Task]:
    """The tasks in the order of their names, each with its groups: those of `runs` by their settings, then `named`.

    A group is the runs of one task whose configs agree in all fields except those marked SAME_GROUP; its name lists
    the settings in which the groups of a task differ, and is the same in every task.
    """
    names = group_names(runs)
    found: dict[str, tuple[Run, dict[str, list[Run]]]] = {}
    given = [(group.name, run) for group in named for run in group.runs]
    for name, run in [*zip(names, runs, strict=True), *given]:
        _, groups = found.setdefault(task_name(run.config), (run, {}))
        groups.setdefault(name, []).append(run)
    return [
        Task(name, run.config.env, run.config.env_options, [Group(*group) for group in groups.items()])
        for name, (run, groups) in sorted(found.items())
    ]


def task_name(config: Config) -> str:
    """The environment and its options, such as "dmc:cheetah-run {image: true}"."""
    options = yaml.dump(dict(config.env_options), Dumper=Dumper, default_flow_style=True, width=1000).strip()
    return f"{config.env} {options}" if config.env_options else config.env


def group_names(runs: Sequence[Run]) -> list[str]:
    """The name of each run's group: the settings that differ within a task, with the run's values."""
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(task_name(run.config), []).append(run)
    varying = dict.fromkeys(key for members in by_task.values() for key in differences(members))
    if not varying:
        return [ONE_GROUP] * len(runs)
    own = [
        tuple(f"{key}={show(value)}" for key, value in settings(run.config).items() if key in varying) for run in runs
    ]
    if len(varying) <= MOST_NAMED:
        return [", ".join(parts) for parts in own]
    numbers = {parts: number for number, parts in enumerate(dict.fromkeys(own), 1)}
    more = len(varying) - MOST_NAMED
    return [f"{numbers[parts]}: {', '.join(parts[:MOST_NAMED])} and {more} more" for parts in own]


def settings(config: Config) -> dict[str, Any]:
    """The settings, by dotted key, that define a group."""
    return {
        key: get(config, key) for key in keys(config) if key not in TASK and not has_mark(config, key, SAME_GROUP)
    }


def differences(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """The settings that differ, {dotted key: the value of each run, None where its plug-in has no such key}."""
    all_settings = [settings(run.config) for run in runs]
    names = dict.fromkeys(key for one in all_settings for key in one)
    values = {key: [one.get(key) for one in all_settings] for key in names}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def show(value: Any) -> str:
    """A setting in a few characters: 0.0003, 4e-05, [2, 3], true, auto."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)
