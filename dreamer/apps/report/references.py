"""Reads published curves, and the scores that become 0 and 1 after normalisation, from CSV files. Imports no jax.

A file of curves is a .csv or .csv.gz with the columns suite, task, method, seed, env_steps, score. env_steps is the
right edge of a bin in environment frames (action repeat included); score is the mean over the bin of the undiscounted
returns of training episodes. The seed "all" marks a mean over seeds that were not published one by one.
`normalisation.csv` has the columns task, low, high: a normalised score is (score - low) / (high - low). Its columns
low_is and high_is say what these two scores are, such as "random" and "human". The column `unless` names an environment
option: the scores are not used for runs with this option.
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
    """The published curves of one method in one task. seeds: {name of a seed: its points, whose x counts frames}."""

    suite: str
    method: str
    seeds: Mapping[str, Points]

    @property
    def mean_only(self) -> bool:
        """Whether only a mean over seeds was published."""
        return set(self.seeds) == {MEAN_ONLY}


class Ends(NamedTuple):
    """The two scores of a task that become 0 (low) and 1 (high) after normalisation.

    low_is, high_is: what the scores are, such as "random" or "human"; "": the panels draw no line for the score
    unless: an environment option; the scores do not hold for runs with this option; "": the scores always hold
    """

    low: float
    high: float
    low_is: str = ""
    high_is: str = ""
    unless: str = ""


class Level(NamedTuple):
    """A score to compare returns with. name: what the score is, such as "human" or "dreamerv3 at 250k env steps"."""

    name: str
    value: float


def task_key(env: str) -> str:
    """Returns the name of a task in the CSV files: "dmc:ball_in_cup-catch" becomes "dmc_ball_in_cup_catch"."""
    return re.sub(r"\W", "_", env).lower()


def read(folder: Path, wanted: Callable[[str], bool] = lambda task: True) -> dict[str, list[Published]]:
    """Reads the published curves in a folder. Returns {task: its curves} for the tasks for which `wanted` is True.

    Raises UserError when a file cannot be read or is malformed; the error names the file and the line.
    """
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
    """Returns the published curves of a task from the suite (such as "dmc_vision") that fits its runs best.

    Suites with "proprio" in their name are only for runs without env_options.image, and suites with "vision" only for
    runs with it. Of the remaining suites, the function takes the one whose number of frames is closest, as a
    ratio, to env_steps * action_repeat of the runs.
    """
    unfit = "proprio" if task.options.get("image") is True else "vision"
    candidates = [one for one in published.get(task_key(task.env), []) if unfit not in one.suite]
    if not candidates:
        return []
    frames = max(run.config.length * run.config.action_repeat for group in task.groups for run in group.runs)
    ends: dict[str, float] = {}
    for one in candidates:
        ends[one.suite] = max(ends.get(one.suite, 1), *(points.x[-1] for points in one.seeds.values()))
    suite = min(ends, key=lambda name: abs(math.log(ends[name] / frames)))
    return [one for one in candidates if one.suite == suite]


def normalisation(folder: Path) -> dict[str, Ends]:
    """Reads {task: its Ends} from normalisation.csv; {} if there is no such file. Raises UserError if it is faulty."""
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
    """Returns the ends that hold for these tasks. Leaves out the ends of a task that sets their option `unless`."""
    set_options = {(task_key(task.env), option) for task in tasks for option in task.options}
    return {key: one for key, one in ends.items() if (key, one.unless) not in set_options}


def levels(ends: Mapping[str, Ends], published: Sequence[Published], task: Task) -> list[Level]:
    """Returns the scores to compare a task's returns with: its named ends, then published means without curves."""
    found = []
    if one := ends.get(task_key(task.env)):
        found = [Level(name, value) for name, value in ((one.low_is, one.low), (one.high_is, one.high)) if name]
    means = [(one.method, one.seeds[MEAN_ONLY].y[-1]) for one in published if one.mean_only]
    return found + [Level(f"{method}, published", float(value)) for method, value in means]


def data_levels(task: Task) -> list[Level]:
    """Returns the best and the mean return in the datasets that the runs of a task have learned from."""
    found: dict[tuple[str, ...], list[tuple[str, float]]] = {}
    for run in task.runs:
        own = [(name, run.metrics.get(f"data/return_{name}")) for name in ("best", "mean")]
        found.setdefault(run.config.data, []).extend((name, float(one.y[-1])) for name, one in own if one is not None)
    several = sum(map(bool, found.values())) > 1
    named = {
        f"{name} return of {', '.join(data) if several else 'the data'}": value
        for data, values in found.items() for name, value in values
    }  # fmt: skip
    return [Level(name, value) for name, value in named.items()]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("file:line", row) for each row of a CSV file. Raises UserError when a column or a value is missing."""
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
    """Returns the text stream of an open file, decompressed if `path` ends in .gz."""
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
