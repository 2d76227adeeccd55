"""Reads run directories for a report: their configs and their metrics. Imports no jax.

Nothing is written. Damaged or unknown contents are left out, and a note names the file and the line. A report can
therefore include runs that still train, runs with a damaged line and runs of other versions.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.files.run_dir import CONFIG, METRICS, existing_run_dir
from dreamer.runtime.files.safe_files import json_value, open_regular
from dreamer.runtime.log.logger import RESERVED
from dreamer.runtime.run.run_config import load_plain
from dreamer.runtime.run.verifying import newest_metrics_fault

MOST_LINES = 5  # the most damaged lines of a file that notes name; the others are only counted


class Points(NamedTuple):
    """Measured points, both float64. x [N]: ascending positions, in env steps or frames | y [N]: the values."""

    x: np.ndarray
    y: np.ndarray


class Run(NamedTuple):
    """The contents of a run directory; the run may still train.

    metrics: {name: Points whose x counts env_steps}; only finite values
    env_steps, updates, seconds: from the last line of metrics; 0 if there are no lines | notes: one for each fault
    """

    path: Path
    config: Config
    metrics: Mapping[str, Points]
    env_steps: int
    updates: int
    seconds: float
    notes: tuple[str, ...]


def find_runs(path: str | os.PathLike) -> list[Path]:
    """Returns `path` if it is a run directory, else all run directories in it, at any depth.

    Those of one folder are in the order of `by_number`. Raises UserError when there is none.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"no run at {root}: there is no such directory")
    found = []
    for folder, inside, files in os.walk(root):
        inside.sort(key=by_number)
        if CONFIG in files:
            found.append(Path(folder))
            inside.clear()  # folders inside a run are not searched
    if not found:
        raise UserError(f"no run in {root}: neither it nor a folder in it holds a {CONFIG}")
    return found


def by_number(name: str) -> list[str | int]:
    """Returns a key that sorts names with their numbers in order: seed2 before seed10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def read_all(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Reads the runs at these paths, each once. Also returns a note about each run that cannot be read."""
    runs, notes = [], []
    for path in {path.resolve(): path for path in paths}.values():
        try:
            runs.append(read_run(path))
        except UserError as error:
            notes.append(f"{path} is left out: {error}")
    return runs, notes


def read_run(path: str | os.PathLike) -> Run:
    """Reads the config and the metrics of a run directory. Raises UserError when the config cannot be read."""
    run_dir = existing_run_dir(Path(path))
    notes: list[str] = []
    config = load_plain(run_dir, unknown=notes.append)
    if fault := newest_metrics_fault(run_dir):
        notes.append(f"{fault}; dreamer verify {run_dir} says what can be done")
    try:
        rows, damaged = read_lines(run_dir / METRICS)
        notes += damaged
    except UserError as error:
        rows = []
        notes.append(str(error))
    else:
        if not rows:
            notes.append(f"{run_dir} has no metrics yet")
    last = rows[-1] if rows else {}
    metrics, unfinite = _by_name(rows)
    notes += [f"{run_dir}: {name} is not finite in {n} lines, left out" for name, n in sorted(unfinite.items())]
    return Run(
        run_dir, config, metrics, int(last.get("env_steps", 0)), int(last.get("updates") or 0),
        float(last.get("time") or 0.0), tuple(notes),
    )  # fmt: skip


def _by_name(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Points], dict[str, int]]:
    """Returns {metric: its Points over env_steps}, and {metric: the number of lines in which it is not finite}."""
    metrics: dict[str, tuple[list[float], list[float]]] = {}
    unfinite: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if name in RESERVED:
                continue
            if value is None:
                unfinite[name] = unfinite.get(name, 0) + 1
                continue
            xs, ys = metrics.setdefault(name, ([], []))
            xs.append(row["env_steps"])
            ys.append(value)
    points = {name: Points(np.array(x, np.float64), np.array(y, np.float64)) for name, (x, y) in metrics.items()}
    return points, unfinite


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the JSON objects of a metrics.jsonl. Also returns notes about the lines that are left out.

    Lines are left out if they are damaged, or if env_steps is smaller than in the lines before.
    Raises UserError when the file is missing or cannot be read.
    """
    try:
        with open_regular(path) as file:
            *whole, rest = file.read().split(b"\n")
    except FileNotFoundError:
        raise UserError(f"no metrics of the run {path.parent}: it holds no {METRICS}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    rows: list[dict[str, Any]] = []
    faults = []
    for number, line in enumerate(whole, 1):
        try:
            rows.append(_next_row(line, rows))
        except ValueError as error:
            faults.append(f"{path}:{number}: {error}; the line is left out")
    notes = faults[:MOST_LINES]
    if len(faults) > MOST_LINES:
        notes.append(f"{path}: {len(faults) - MOST_LINES} more lines are left out")
    if rest:
        try:
            rows.append(_next_row(rest, rows))
        except ValueError:
            notes.append(f"{path}: the last line is half written and left out")
    return rows, notes


def _next_row(line: bytes, before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reads one line of metrics. Raises ValueError when it is damaged, or its env_steps is below that of the last row.

    before: the rows from the lines before this one
    """
    try:
        row = json_value(line)
    except ValueError as error:
        raise ValueError(f"damaged line of metrics: {error}") from None
    if not isinstance(row, dict) or not _is_number(row.get("env_steps")):
        raise ValueError("not a line of metrics: it is no JSON object with a number env_steps")
    for name, value in row.items():
        if name != "nonfinite" and value is not None and not _is_number(value):
            raise ValueError(f"not a line of metrics: {name!r} is no number but {str(value)[:40]!r}")
    if before and row["env_steps"] < before[-1]["env_steps"]:
        steps = f"from {before[-1]['env_steps']} to {row['env_steps']}"
        raise ValueError(f"env_steps goes back {steps}: these are the lines of more than one run")
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
