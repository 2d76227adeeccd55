"""Metrics of several seeds become one curve with an interval; the panels of a report, without drawing them. No jax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamer.apps.references import Published
from dreamer.apps.runs import Group, Points, Run, Task
from dreamer.apps.statistics import bootstrap, iqm

EVALUATION, TRAINING = "eval/return", "episode/return"
BINS = 50  # about so many in the longest run
TAIL = 0.1  # share of a curve, its end, that makes the final score


class Curve(NamedTuple):
    """Seeds on common bins, and what stands for them where all have a value.

    x [B], seeds [S, B] nan where a seed has none: every bin | at [C], mean [C], iqm [C]: the bins that all seeds share
    low, high [C]: 95 % bootstrap interval of the IQM over seeds, None with one seed
    """

    x: np.ndarray
    seeds: np.ndarray
    at: np.ndarray
    mean: np.ndarray
    iqm: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


class Line(NamedTuple):
    """A curve with its name. published: not of the runs but from the references; mean_only: a mean without seeds."""

    name: str
    curve: Curve
    published: bool = False
    mean_only: bool = False


class Panel(NamedTuple):
    """One metric in one task: the lines of the groups that have it, then the published ones.

    frames: whether x is in environment frames, otherwise in env_steps | width: of a bin, 0 for evaluations
    bounds: of x, what is shown | missing: groups and runs without this metric, one line each
    """

    task: str
    metric: str
    lines: list[Line]
    frames: bool
    width: float
    bounds: tuple[float, float]
    missing: list[str]


# Bins -----------------------------------------------------------------------------------------------------------------


def binned(points: Points, width: float) -> Points:
    """Means in bins of a width, named by their right edge, which belongs to the bin; empty bins are left out."""
    edges = np.ceil(points.x / width) * width
    return averaged(Points(edges, points.y))


def averaged(points: Points) -> Points:
    """Points of equal x averaged; x [N] ascending, each once."""
    x, inverse = np.unique(points.x, return_inverse=True)
    counts = np.bincount(inverse, minlength=len(x))
    return Points(x, np.bincount(inverse, points.y, minlength=len(x)) / counts)


def due(run: Run, points: Points) -> Points:
    """Evaluations at the env_steps at which they were due: one is made by the first row at or after a multiple of
    eval.every, and at the end of the run, so that seeds would differ by a few rows."""
    every = run.config.eval.every
    asked = points.x - points.x % every if every else points.x
    end = run.config.env_steps
    x = np.where(points.x >= end, np.maximum(end, asked), np.where(asked > 0, asked, points.x))
    return averaged(Points(x, points.y))


def bin_width(curves: Sequence[Points]) -> float:
    """A round width: about 50 bins in the longest curve, and hardly one that is empty."""
    wanted = max(max(points.x[-1] for points in curves) / BINS, _usual_gap(curves), 1.0)
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def published_width(curves: Sequence[Points]) -> float:
    """The width of the bins of published curves, doubled until hardly one is empty, as where episodes are long."""
    width = float(min((np.diff(points.x).min() for points in curves if len(points.x) > 1), default=1.0))
    while width < _usual_gap(curves):
        width *= 2
    return width


def _usual_gap(curves: Sequence[Points]) -> float:
    """What 95 of 100 neighbouring points do not exceed in distance."""
    gaps = np.concatenate([np.diff(points.x) for points in curves])
    return float(np.quantile(gaps, 0.95)) if len(gaps) else 0.0


def curve(seeds: Sequence[Points]) -> Curve:
    """The points of at least one seed, already in bins, as one curve."""
    x = np.unique(np.concatenate([points.x for points in seeds]))
    table = np.full((len(seeds), len(x)), np.nan)
    for row, points in zip(table, seeds, strict=True):
        row[np.searchsorted(x, points.x)] = points.y
    shared = ~np.isnan(table).any(0)
    common = table[:, shared]
    ends = bootstrap([common]) if common.size else None
    return Curve(
        x, table, x[shared], common.mean(0), iqm(common), ends.low if ends else None, ends.high if ends else None
    )


# Panels ---------------------------------------------------------------------------------------------------------------


def panel(task: Task, metric: str, published: Sequence[Published] = (), width: float = 0.0) -> Panel | None:
    """The panel of a metric in a task, None when no run of it has the metric.

    published: what is drawn behind returns. width: of the bins on the x axis; 0 = that of the published curve, else
    chosen. x is in frames where something published is in frames or the groups repeat actions differently.
    """
    published = published if metric in (EVALUATION, TRAINING) else ()
    repeats = {run.config.action_repeat for group in task.groups for run in group.runs}
    frames = bool(published) or len(repeats) > 1
    groups: list[tuple[Group, list[Points]]] = []
    missing = []
    for group in task.groups:
        own = [run for run in group.runs if metric in run.metrics]
        missing += [f"{run.path} has no {metric}" for run in group.runs if metric not in run.metrics]
        if own:
            groups.append((group, [_points(run, metric, frames) for run in own]))
    if not groups:
        return None
    everything = [points for _, own in groups for points in own]
    whole = [points for one in published if not one.mean_only for points in one.seeds.values()]
    evaluation = metric.startswith("eval/")
    step = published_width(whole) if whole else 0.0
    width = 0.0 if evaluation else width or step or bin_width(everything)
    lines = [Line(group.name, curve([_passed(points, width) for points in own])) for group, own in groups]
    last = max(line.curve.x[-1] for line in lines)
    end = min(max(1.25 * last, last + step), max(last, *(points.x[-1] for points in whole))) if whole else last
    lines += [line for one in published if (line := _published(one, end, width))]
    return Panel(task.name, metric, lines, frames, width, (0.0, float(end)), missing)


def _points(run: Run, metric: str, frames: bool) -> Points:
    points = run.metrics[metric]
    points = due(run, points) if metric.startswith("eval/") else averaged(points)
    return Points(points.x * run.config.action_repeat, points.y) if frames else points


def _passed(points: Points, width: float) -> Points:
    """Points in the bins that were wholly passed; what there is where none was. width 0: the points themselves."""
    if not width:
        return points
    bins = binned(points, width)
    passed = bins.x <= points.x[-1]
    return Points(bins.x[passed], bins.y[passed]) if passed.any() else bins


def _published(one: Published, end: float, width: float) -> Line | None:
    """A published curve up to `end`, None where it begins later; of a published mean all there is."""
    name = f"{one.method} ({one.suite}, published)"
    seeds = list(one.seeds.values())
    if not one.mean_only:
        seeds = [Points(points.x[points.x <= end], points.y[points.x <= end]) for points in seeds]
    seeds = [_passed(points, width) for points in seeds if len(points.x)]
    return Line(name, curve(seeds), True, one.mean_only) if seeds else None


# Final scores ---------------------------------------------------------------------------------------------------------


def final_scores(curve: Curve, evaluation: bool, until: float = math.inf) -> tuple[np.ndarray, float, float]:
    """The score of each seed [S] at the end of what they share (at most `until`), and from and to which x it is.

    evaluation: the last one; otherwise the mean over the last tenth of the bins, at least the last.
    A seed that shares nothing with the others has nan.
    """
    x = curve.at[curve.at <= until]
    if not len(x):
        return np.full(len(curve.seeds), np.nan), math.nan, math.nan
    tail = x[-1:] if evaluation else x[x > x[-1] * (1 - TAIL)]
    return curve.seeds[:, np.isin(curve.x, tail)].mean(1), float(tail[0]), float(tail[-1])
