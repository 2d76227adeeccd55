"""The table of final scores of each group in each task, and over all tasks. No jax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dreamer.apps.report.curves import EVALUATION, TRAINING, Panel, last_evaluations, last_tenth
from dreamer.apps.report.references import task_key
from dreamer.apps.report.runs import Task
from dreamer.apps.statistics import bootstrap, iqm, standard_error

RESAMPLES = 10_000
HEADER = ("task", "group", "score", "seeds", "episodes", "mean", "standard error", "IQM", "95 % interval of the IQM")
WORDS = {EVALUATION: "last evaluation", TRAINING: "training, last tenth"}
NONE = "-"


class Score(NamedTuple):
    """The final scores of one group in one task.

    scores [S]: one per seed, over the span `at` (from, to) of the x axis | episodes: averaged over, None if unknown
    key: the name of the task in the references | counted: the unit of x
    """

    task: str
    key: str
    group: str
    metric: str
    scores: np.ndarray
    episodes: int | None
    at: tuple[float, float]
    counted: str


def scores(task: Task, panel: Panel) -> list[Score]:
    """The final scores of a panel of returns, over one span for all: its groups, then the published curves.

    Published curves are of training episodes; they have no evaluations.
    """
    episodes = {
        group.name: sum(run.config.eval.episodes for run in group.runs if panel.metric in run.metrics)
        for group in task.groups
    }
    evaluation = panel.metric == EVALUATION
    counted = "frames" if panel.frames else "env steps"
    found = []
    for line, values, at in last_evaluations(panel) if evaluation else last_tenth(panel):
        values = values[~np.isnan(values)]
        if len(values):
            known = episodes[line.name] if evaluation else None
            found.append(Score(task.name, task_key(task.env), line.name, panel.metric, values, known, at, counted))
    return found


def rows(found: Sequence[Score]) -> list[tuple[str, ...]]:
    """The table as text, one row per score, with the columns of HEADER."""
    return [_row(score) for score in found]


def over_tasks(found: Sequence[Score], ends: Mapping[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    """A row for each group and metric that has a score in every task, of which there are at least two.

    ends: {task as named in the references: (low, high)} to normalise scores by; a row needs all tasks.
    The interval is stratified: seeds are drawn with replacement within each task.
    """
    tasks = {score.task for score in found}
    table: dict[tuple[str, str], list[Score]] = {}
    for score in found:
        table.setdefault((score.metric, score.group), []).append(score)
    out: list[tuple[str, ...]] = []
    for (metric, group), own in table.items():
        if len(tasks) < 2 or len(own) < len(tasks) or any(score.key not in ends for score in own):
            continue
        strata = [normalised(score.scores, ends[score.key]) for score in own]
        every = np.concatenate(strata)
        fewest, most = min(map(len, strata)), max(map(len, strata))
        episodes = sum(score.episodes or 0 for score in own)
        out.append(
            (
                f"all {len(tasks)} tasks, normalised", group, WORDS[metric],
                f"{fewest}" if fewest == most else f"{fewest} to {most}", f"{episodes or NONE}",
                _text(every.mean()), NONE, _text(float(iqm(every))), _interval(strata),
            )
        )  # fmt: skip
    return out


def normalised(scores: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """Scores [..] scaled to 0 at the low and 1 at the high end, of shape [S] for S seeds."""
    return (scores - ends[0]) / (ends[1] - ends[0])


def _row(score: Score) -> tuple[str, ...]:
    values = score.scores
    start, end = score.at
    at = f"{end:,.0f}" if start >= end else f"{start:,.0f} to {end:,.0f}"
    return (
        score.task, score.group, f"{WORDS[score.metric]}, at {at} {score.counted}", f"{len(values)}",
        NONE if score.episodes is None else f"{score.episodes}", _text(values.mean()), _text(standard_error(values)),
        _text(float(iqm(values))), _interval([values]),
    )  # fmt: skip


def _interval(strata: Sequence[np.ndarray]) -> str:
    ends = bootstrap(strata, resamples=RESAMPLES)
    return f"{_text(float(ends.low))} to {_text(float(ends.high))}" if ends else "none: 1 seed"


def _text(value: float) -> str:
    """A score with at most two decimals, fewer the larger it is."""
    if math.isnan(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}"
