"""Makes the charts of a sweep besides its curves: heat map, parallel coordinates, values against scores.

This module imports no jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamer.apps.report import axes as plot_axes
from dreamer.apps.report.groups import show
from dreamer.apps.report.ranking import Ranking, Result
from dreamer.apps.report.scores import text
from dreamer.apps.report.sweep_axes import MOST_VALUES, Axis, Scale, labels, number_scale, same, scale, value_of

SCORE = "final score"


class Heat(NamedTuple):
    """A heat map of two axes. means [rows of y][columns of x]: the mean final score of a setting; None: it has none."""

    title: str
    x_label: str
    y_label: str
    x: list[str]
    y: list[str]
    means: list[list[float | None]]


class Parallel(NamedTuple):
    """Parallel coordinates: each setting is a line over all axes, to its mean final score.

    scales: for each axis its label and its Scale, with one place for each setting; the last one is the score
    names: for each setting its values as text
    """

    title: str
    scales: list[tuple[str, Scale]]
    names: list[str]


class Scatter(NamedTuple):
    """The values of an axis against the final scores of the trials.

    x, y [N]: one point for each scored trial | names [N]: of the trials | log: whether x is logarithmic
    lost: the values of the trials that diverged or failed | y_bounds: of the y axis
    """

    title: str
    x_label: str
    x: list[float]
    y: list[float]
    names: list[str]
    log: bool
    lost: list[float]
    y_bounds: tuple[float, float]


Chart = Heat | Parallel | Scatter


def charts(axes: Sequence[Axis], ranking: Ranking) -> list[Chart]:
    """Returns the charts of the axes that vary.

    Two axes of few values give a heat map, other sets of two or more axes parallel coordinates. Each axis with drawn
    numbers gives its values against scores.
    """
    found: list[Chart] = []
    if len(axes) == 2 and all(len(axis.values) <= MOST_VALUES and not axis.drawn for axis in axes):
        found.append(heat(axes[0], axes[1], ranking))
    elif len(axes) > 1:
        found.append(parallel(axes, ranking))
    return found + [scatter(axis, ranking) for axis in axes if axis.drawn]


def heat(x: Axis, y: Axis, ranking: Ranking) -> Heat:
    """Returns the heat map of two axes. Its y values ascend from bottom to top."""

    def mean(column: object, row: object) -> float | None:
        fitting = (
            one.mean for one in ranking.results
            if same(value_of(one.setting.trials[0], x.key), column)
            and same(value_of(one.setting.trials[0], y.key), row)
        )  # fmt: skip
        return next(fitting, None)

    means = [[mean(column, row) for column in x.values] for row in y.values]
    return Heat(f"Mean {SCORE}", x.name, y.name, labels(x), labels(y), means)


def parallel(axes: Sequence[Axis], ranking: Ranking) -> Parallel:
    """Returns the parallel coordinates of all scored settings, the worst first, so that the best is drawn on top."""
    results = ranking.results[::-1]
    scales = [(axis.name, scale(axis, [value_of(one.setting.trials[0], axis.key) for one in results])) for axis in axes]
    means = [one.mean for one in results]
    scores = number_scale(means, min(means), max(means), words=text)
    return Parallel("All settings", [*scales, (SCORE, scores)], [setting_name(one, axes) for one in results])


def scatter(axis: Axis, ranking: Ranking) -> Scatter:
    """Returns the values of a numeric axis against the final score of each trial."""
    scored = ranking.scored()
    settings = [one.setting for one in ranking.results] + ranking.unscored
    lost = [
        float(value_of(trial, axis.key))
        for setting in settings for trial in setting.trials if trial.status in ("diverged", "failed")
    ]  # fmt: skip
    y = [score for _, score in scored]
    return Scatter(
        f"{axis.name} against {SCORE}", axis.name, [float(value_of(trial, axis.key)) for trial, _ in scored], y,
        [trial.name for trial, _ in scored], axis.log, lost, plot_axes.y_bounds(np.array(y), [], False),
    )  # fmt: skip


def setting_name(result: Result, axes: Sequence[Axis]) -> str:
    """Returns the values of a setting and its mean final score as text."""
    values = (f"{axis.name}={show(value_of(result.setting.trials[0], axis.key))}" for axis in axes)
    return f"{', '.join(values)}: {text(result.mean)}"


def explanation(chart: Chart) -> str:
    """Returns a sentence that explains a chart."""
    if isinstance(chart, Heat):
        return "Each cell is a setting; empty: no trial has a score."
    if isinstance(chart, Parallel):
        return "Each line is a setting, from its values to its mean final score; the brighter, the better."
    lost = " Crosses below: trials that diverged or failed." if chart.lost else ""
    return f"Each point is a trial.{lost}"
