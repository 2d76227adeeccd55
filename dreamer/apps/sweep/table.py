"""The state of a sweep as a table: progress, return, rate and time left of each trial. Imports no jax."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.apps.sweep import state
from dreamer.apps.sweep.state import Known, Standing
from dreamer.runtime.files.run_dir import METRICS

TAIL = 1 << 16  # bytes of metrics that are read from the end
RETURNS = ("eval/return", "episode/return")


class Line(NamedTuple):
    """A trial in the table. steps, of: env steps made, and to make | value, rate: None if they are unknown.

    left: seconds until the end, None if unknown | cause: why the trial failed, or was stopped early
    """

    trial: str
    standing: Standing
    steps: int
    of: int
    value: float | None
    rate: float | None
    left: float | None
    cause: str


def lines_of(root: Path, known: Known, env_steps: Mapping[str, int]) -> list[Line]:
    """Returns a line for each trial. env_steps {trial: the length of its run}."""
    found = []
    for trial in known.trials:
        standing = state.standing(root, known, trial, env_steps[trial])
        rows = newest(known.run_dir(root, trial) / METRICS)
        last = rows[-1] if rows else {}
        steps, of = int(last.get("env_steps", 0)), env_steps[trial]
        value = next((row[name] for row in reversed(rows) for name in RETURNS if row.get(name) is not None), None)
        rate = last.get("speed/env_steps") if standing == "running" else None
        left = (of - steps) / rate if rate else None
        failure, early = state.failure(root, trial), state.early(root, trial) if standing == "stopped early" else None
        cause = failure.cause if failure else str(early or "")
        found.append(Line(trial, standing, steps, of, value, rate, left, cause))
    return found


def newest(path: Path) -> list[dict[str, Any]]:
    """Returns the last lines of a metrics file, oldest first; [] if there are none. Skips damaged lines."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            texts = file.read().splitlines()
    except OSError:
        return []
    rows = []
    for text in texts:
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def written(lines: Sequence[Line], most: int = 0) -> str:
    """Returns the table as text. most: the number of trials to show, those that run first; 0: all."""
    order = {"running": 0, "failed": 1, "stopped": 2, "waiting": 3, "stopped early": 4, "done": 5}
    shown = sorted(lines, key=lambda line: order[line.standing])[: most or None] if most else lines
    width = max([len("trial"), *(len(line.trial) for line in shown)])
    head = f"{'trial':{width}}  {'state':13} {'progress':>22} {'return':>9} {'steps/s':>8} {'left':>8}"
    body = [
        f"{line.trial:{width}}  {line.standing:13} {f'{line.steps:,}/{line.of:,} ({line.steps / line.of:4.0%})':>22} "
        f"{_number(line.value):>9} {_number(line.rate):>8} {_time(line.left):>8}  {line.cause}".rstrip()
        for line in shown
    ]
    return "\n".join([head, *body, summary(lines)])


def summary(lines: Sequence[Line]) -> str:
    """Returns one line: the number of trials of each status, the steps made, and the time left."""
    counts: dict[str, int] = {}
    for line in lines:
        counts[line.standing] = counts.get(line.standing, 0) + 1
    parts = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    done, of = sum(line.steps for line in lines), sum(line.of for line in lines)
    rate = sum(line.rate or 0 for line in lines)
    never = sum(line.of - line.steps for line in lines if line.standing in ("failed", "stopped early"))
    left = f", about {_time((of - done - never) / rate)} left at {rate:,.0f} steps/s" if rate else ""
    return f"{len(lines)} trials: {parts}; {done:,} of {of:,} env steps ({done / max(1, of):.0%}){left}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def clear_and_show(text: str, out: Any) -> None:
    """Writes the table; on a terminal, in the place of the table before."""
    if out.isatty():
        out.write("\033[H\033[J")
    out.write(f"{time.strftime('%H:%M:%S')}\n{text}\n")
    out.flush()
