"""Reads published curves and the ends for normalised scores from the CSV files of a folder. No jax.

A file of curves is a .csv or .csv.gz with the columns suite, task, method, seed, env_steps, score: env_steps in
environment frames (action repeat included), the right edge of the bin; score the undiscounted return of training
episodes, mean of the bin. The seed "all" is a mean over seeds that were not published one by one.
`normalisation.csv` has the columns task, low, high: a normalised score is (score - low) / (high - low). Its columns
low_is and high_is name these scores, and `unless` names an environment option with which they do not hold.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np

from dreamer.apps.report.groups import Task
from dreamer.apps.report.runs import Points
from dreamer.errors import UserError
from dreamer.runtime.files.safe_files import open_regular

COLUMNS = ("suite", "task", "method", "seed", "env_steps", "score")
NORMALISATION = "normalisation.csv"
MEAN_ONLY = "all"  # the seed of a published mean


class Published(NamedTuple):
    """One published method in one task: {seed: Points over frames}."""

    suite: str
    method: str
    seeds: Mapping[str, Points]

    @property
    def mean_only(self) -> bool:
        """Whether only a mean over seeds was published."""
        return set(self.seeds) == {MEAN_ONLY}


class Ends(NamedTuple):
    """The scores that are 0 and 1 after normalising, what they are ("random", "human", "" = not worth a line), and the
    environment option with which they do not hold, "" = always."""

    low: float
    high: float
    low_is: str = ""
    high_is: str = ""
    unless: str = ""


class Level(NamedTuple):
    """A score that a reader compares returns with, and what it is: "random", "human", "dreamerv3 at 250k env steps"."""

    name: str
    value: float


def task_key(env: str) -> str:
    """The name of a task in the files: "dmc:ball_in_cup-catch" is "dmc_ball_in_cup_catch"."""
    return re.sub(r"\W", "_", env).lower()


def read(folder: Path, wanted: Callable[[str], bool] = lambda task: True) -> dict[str, list[Published]]:
    """{task: its published curves} for the wanted tasks of all files. Raises UserError naming file and line."""
    found: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = {}
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")]):
        if path.name == NORMALISATION:
            continue
        for where, row in _rows(path, COLUMNS):
            if wanted(row["task"]):
                key = row["task"], row["suite"], row["method"]
                point = _number(row["env_steps"], where), _number(row["score"], where)
                found.setdefault(key, {}).setdefault(row["seed"], []).append(point)
    by_task: dict[str, list[Published]] = {}
    for (task, suite, method), seeds in found.items():
        curves = {seed: Points(*np.array(sorted(points)).T) for seed, points in seeds.items()}
        by_task.setdefault(task, []).append(Published(suite, method, curves))
    return by_task


def of_task(published: Mapping[str, list[Published]], task: Task) -> list[Published]:
    """The published curves of a task from the suite that fits its runs best.

    Suites with "proprio" in their name do not apply to runs with env_options.image, suites with "vision" only to these.
    Among the remaining suites, takes the one whose last step is nearest to the runs' env_steps * action_repeat.
    """
    unfit = "proprio" if task.options.get("image") is True else "vision"
    candidates = [one for one in published.get(task_key(task.env), []) if unfit not in one.suite]
    if not candidates:
        return []
    frames = max(run.config.env_steps * run.config.action_repeat for group in task.groups for run in group.runs)
    ends: dict[str, float] = {}
    for one in candidates:
        ends[one.suite] = max(ends.get(one.suite, 1), *(points.x[-1] for points in one.seeds.values()))
    suite = min(ends, key=lambda name: abs(math.log(ends[name] / frames)))
    return [one for one in candidates if one.suite == suite]


def normalisation(folder: Path) -> dict[str, Ends]:
    """{task: its Ends} of normalisation.csv; empty when there is none. Raises UserError."""
    path = folder / NORMALISATION
    if not path.is_file():
        return {}
    ends = {}
    for where, row in _rows(path, ("task", "low", "high")):
        low, high = _number(row["low"], where), _number(row["high"], where)
        if low == high:
            raise UserError(f"{where}: low and high are both {low}")
        words = (row.get(name) or "" for name in ("low_is", "high_is", "unless"))
        ends[row["task"]] = Ends(low, high, *words)
    return ends


def valid_ends(ends: Mapping[str, Ends], tasks: Iterable[Task]) -> dict[str, Ends]:
    """The ends that hold for all of these tasks: without those of a task whose runs have the option `unless`."""
    set_options = {(task_key(task.env), option) for task in tasks for option in task.options}
    return {key: one for key, one in ends.items() if (key, one.unless) not in set_options}


def levels(ends: Mapping[str, Ends], published: Sequence[Published], task: Task) -> list[Level]:
    """The scores to compare the returns of a task with: its named ends, then means published without curves."""
    found = []
    if one := ends.get(task_key(task.env)):
        found = [Level(name, value) for name, value in ((one.low_is, one.low), (one.high_is, one.high)) if name]
    means = [(one.method, one.seeds[MEAN_ONLY].y[-1]) for one in published if one.mean_only]
    return found + [Level(f"{method}, published", float(value)) for method, value in means]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", row) for each row of a CSV with these columns."""
    try:
        with open_regular(path, follow=True) as data, _text_of(path, data) as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} is no file of references: it has no column {missing[0]!r}")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if any(row[name] is None for name in columns):
                    raise UserError(f"{where}: fewer values than columns")
                yield where, row
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _text_of(path: Path, data: BinaryIO) -> TextIO:
    """The text in an open file, decompressed if its name ends in .gz."""
    unpacked = gzip.GzipFile(fileobj=data) if path.suffix == ".gz" else data
    return io.TextIOWrapper(unpacked, newline="")  # type: ignore[arg-type]


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {text!r} is no number")
    return number
