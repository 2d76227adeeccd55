"""Makes the table of final scores of each group, in each task and over all tasks. Imports no jax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.apps.report.curves import EVALUATION, TRAINING, Panel, last_evaluations, last_tenth
from dreamer.apps.report.groups import Task
from dreamer.apps.report.references import Level, task_key
from dreamer.apps.report.runs import Run
from dreamer.apps.statistics import bootstrap, iqm, standard_error

RESAMPLES = 10_000
WORDS = {EVALUATION: "last evaluation", TRAINING: "training, last tenth"}
NONE, RANDOM = "-", "random"


class Score(NamedTuple):
    """The final scores of one group, or of one published curve, in one task.

    key: the name of the task in the references | scores [S]: one for each seed
    episodes: the number of episodes behind the scores; None: unknown
    at: the scores cover the span (from, to) of the x axis | counted: the unit of the x axis
    levels: other scores to compare with | runs: the runs behind the scores; () for a published curve
    """

    task: str
    key: str
    group: str
    metric: str
    scores: np.ndarray
    episodes: int | None
    at: tuple[float, float]
    counted: str
    levels: tuple[Level, ...] = ()
    runs: tuple[Run, ...] = ()


class Row(NamedTuple):
    """A row of the table of scores. Its fields are the columns, as text."""

    task: str
    group: str
    measured: str
    seeds: str
    episodes: str
    mean: str
    error: str
    iqm: str
    interval: str
    random: str = NONE
    others: str = NONE
    env_steps: str = NONE
    wall_clock: str = NONE


# The columns of the table on the page, and those of the table in the terminal, which has less room.
COLUMNS = {
    "task": "task", "group": "group", "measured": "score of", "mean": "final",
    "iqm": "IQM", "interval": "95 % interval", "random": "random",
    "others": "best or published", "env_steps": "env steps", "wall_clock": "wall-clock", "seeds": "seeds",
    "episodes": "episodes",
}  # fmt: skip
TERMINAL = {
    "task": "task", "group": "group", "measured": "score", "seeds": "seeds", "episodes": "episodes", "mean": "mean",
    "error": "standard error", "iqm": "IQM", "interval": "95 % interval of the IQM",
}  # fmt: skip


def scores(task: Task, panel: Panel) -> list[Score]:
    """Returns the final scores of the groups in a panel of returns, then those of its published curves.

    In a panel of evaluations, published curves have no scores, because they show training episodes.
    """
    runs = {group.name: tuple(run for run in group.runs if panel.metric in run.metrics) for group in task.groups}
    evaluation = panel.metric == EVALUATION
    found = []
    for line, values, at in last_evaluations(panel) if evaluation else last_tenth(panel):
        values = values[~np.isnan(values)]
        own = () if line.published else runs[line.name]
        if len(values):
            found.append(
                Score(
                    task.name, task_key(task.env), line.name, panel.metric, values,
                    sum(run.config.eval.episodes for run in own) if evaluation else None, at, panel.counted,
                    tuple(panel.levels), own,
                )
            )  # fmt: skip
    return found


def rows(found: Sequence[Score]) -> list[Row]:
    """Returns the rows of the table, one for each Score."""
    return [_row(score) for score in found]


def over_tasks(found: Sequence[Score], ends: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Returns a row for each group and metric: statistics of the normalised scores over all tasks.

    A group gets a row only if each task has ends and a score of the group. One task alone gives no rows.
    ends: {name of a task in the references: (low, high, ..)}, the scores that become 0 and 1 after normalisation
    The interval is stratified: seeds are drawn with replacement within each task.
    """
    tasks = {score.task for score in found}
    table: dict[tuple[str, str], list[Score]] = {}
    for score in found:
        table.setdefault((score.metric, score.group), []).append(score)
    out: list[Row] = []
    for (metric, group), own in table.items():
        if len(tasks) < 2 or len(own) < len(tasks) or any(score.key not in ends for score in own):
            continue
        strata = [normalised(score.scores, ends[score.key]) for score in own]
        every = np.concatenate(strata)
        fewest, most = min(map(len, strata)), max(map(len, strata))
        episodes = sum(score.episodes or 0 for score in own)
        out.append(
            Row(
                f"all {len(tasks)} tasks, normalised", group, WORDS[metric],
                f"{fewest}" if fewest == most else f"{fewest} to {most}", f"{episodes or NONE}",
                text(every.mean()), NONE, text(float(iqm(every))), _interval(strata),
                env_steps=_steps([run for score in own for run in score.runs]),
                wall_clock=_clock([run for score in own for run in score.runs]),
            )
        )  # fmt: skip
    return out


def normalised(scores: np.ndarray, ends: Sequence[Any]) -> np.ndarray:
    """Scales scores [S] so that the low score ends[0] becomes 0 and the high score ends[1] becomes 1."""
    return (scores - ends[0]) / (ends[1] - ends[0])


def _row(score: Score) -> Row:
    values = score.scores
    start, end = score.at
    at = f"{end:,.0f}" if start >= end else f"{start:,.0f} to {end:,.0f}"
    others = [level for level in score.levels if level.name != RANDOM]
    return Row(
        score.task, score.group, f"{WORDS[score.metric]}, at {at} {score.counted}", f"{len(values)}",
        NONE if score.episodes is None else f"{score.episodes}", text(values.mean()), text(standard_error(values)),
        text(float(iqm(values))), _interval([values]),
        next((text(level.value) for level in score.levels if level.name == RANDOM), NONE),
        "; ".join(f"{text(level.value)} ({level.name})" for level in others) or NONE,
        _steps(score.runs), _clock(score.runs),
    )  # fmt: skip


def _interval(strata: Sequence[np.ndarray]) -> str:
    ends = bootstrap(strata, resamples=RESAMPLES)
    return f"{text(float(ends.low))} to {text(float(ends.high))}" if ends else "none: 1 seed"


def text(value: float) -> str:
    """Returns a score as text with two decimals. Scores from 100 have one decimal, those from 10,000 none."""
    if math.isnan(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Returns a number of seconds as text: 45 s, 12 min or 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def _steps(runs: Sequence[Run]) -> str:
    """Returns the env steps of runs as text: one number if all runs agree, else the least and the most."""
    counts = sorted({run.env_steps for run in runs if not run.config.updates})
    return " to ".join(f"{count:,}" for count in dict.fromkeys([*counts[:1], *counts[-1:]])) or NONE


def _clock(runs: Sequence[Run]) -> str:
    """Returns the mean wall-clock time of runs as text."""
    return duration(float(np.mean([run.seconds for run in runs]))) if runs else NONE
