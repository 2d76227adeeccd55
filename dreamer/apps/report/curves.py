"""Combines metrics of several seeds into one curve with an interval, and curves into panels; no drawing. No jax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamer.apps.report.references import Published
from dreamer.apps.report.runs import Group, Points, Run, Task
from dreamer.apps.statistics import bootstrap, iqm

EVALUATION, TRAINING = "eval/return", "episode/return"
BINS = 50  # about this number in the longest run
TAIL = 0.1  # share of a curve at its end that gives the final score


class Curve(NamedTuple):
    """Seeds on common bins, and their mean and IQM in the bins where all have a value.

    x [B], seeds [S, B], nan where a seed has no value: every bin | at [C], mean [C], iqm [C]: the bins of all seeds
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
    """A curve with its name. published: from the references, not from runs; mean_only: a mean without seeds.

    points: of each seed, before binning.
    """

    name: str
    curve: Curve
    published: bool = False
    mean_only: bool = False
    points: tuple[Points, ...] = ()


class Panel(NamedTuple):
    """One metric in one task: the lines of the groups that have it, then the published ones.

    frames: whether x is in environment frames, otherwise in env_steps | width: of a bin, 0 for evaluations
    bounds: of x, what is shown | missing: groups and runs without this metric, one line each
    end: the x that every run with this metric has reached, up to which all can be compared
    """

    task: str
    metric: str
    lines: list[Line]
    frames: bool
    width: float
    bounds: tuple[float, float]
    missing: list[str]
    end: float


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
    """Evaluations moved to the env_steps at which they were due. They are made at the first row at or after a multiple
    of eval.every, and at the end of the run, so that without this seeds would differ by a few rows."""
    every = run.config.eval.every
    asked = points.x - points.x % every if every else points.x
    end = run.config.env_steps
    x = np.where(points.x >= end, np.maximum(end, asked), np.where(asked > 0, asked, points.x))
    return averaged(Points(x, points.y))


def bin_width(curves: Sequence[Points]) -> float:
    """A round width: about 50 bins in the longest curve, with hardly any empty ones."""
    wanted = max(max(points.x[-1] for points in curves) / BINS, _usual_gap(curves), 1.0)
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def published_width(curves: Sequence[Points]) -> float:
    """The width of the bins of published curves, doubled until hardly any is empty, for long episodes."""
    width = float(min((np.diff(points.x).min() for points in curves if len(points.x) > 1), default=1.0))
    while width < _usual_gap(curves):
        width *= 2
    return width


def _usual_gap(curves: Sequence[Points]) -> float:
    """The 95th percentile of the distance between neighbouring points."""
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

    published: curves drawn behind returns. width: of the bins on the x axis; 0 = as in the published curve, else
    chosen. x is in frames if a published curve is in frames or the groups differ in action repeat.
    """
    published = published if metric in (EVALUATION, TRAINING) else ()
    repeats = {run.config.action_repeat for group in task.groups for run in group.runs}
    frames = bool(published) or len(repeats) > 1
    groups: list[tuple[Group, list[Points]]] = []
    ends: dict[str, list[float]] = {}
    missing = []
    for group in task.groups:
        own = [run for run in group.runs if metric in run.metrics]
        missing += [f"{run.path} has no {metric}" for run in group.runs if metric not in run.metrics]
        if own:
            groups.append((group, [_points(run, metric, frames) for run in own]))
            ends[group.name] = [_end(run, frames) for run in own]
    if not groups:
        return None
    everything = [points for _, own in groups for points in own]
    whole = [points for one in published if not one.mean_only for points in one.seeds.values()]
    evaluation = metric.startswith("eval/")
    step = published_width(whole) if whole else 0.0
    width = 0.0 if evaluation else width or step or bin_width(everything)
    lines = []
    for group, seeds in groups:
        passed = [_passed(points, width, end) for points, end in zip(seeds, ends[group.name], strict=True)]
        lines.append(Line(group.name, curve(passed), points=tuple(seeds)))
    last = max(line.curve.x[-1] for line in lines)
    end = min(max(1.25 * last, last + step), max(last, *(points.x[-1] for points in whole))) if whole else last
    lines += [line for one in published if (line := _published(one, end, width))]
    shared = min(end for own in ends.values() for end in own)
    return Panel(task.name, metric, lines, frames, width, (0.0, float(end)), missing, shared)


def _points(run: Run, metric: str, frames: bool) -> Points:
    """A metric over the x axis; rows beyond the configured end of a run are counted at its end."""
    points = run.metrics[metric]
    if metric.startswith("eval/"):
        points = due(run, points)
    else:
        points = averaged(Points(np.minimum(points.x, run.config.env_steps), points.y))
    return Points(points.x * run.config.action_repeat, points.y) if frames else points


def _end(run: Run, frames: bool) -> float:
    """The position of a run on the x axis."""
    return float(min(run.env_steps, run.config.env_steps) * (run.config.action_repeat if frames else 1))


def _passed(points: Points, width: float, reached: float | None = None) -> Points:
    """Means of the bins that were passed completely, or of all bins if there are none. width 0: the points.

    reached: the x of their run, which may have had no recent episode; None: the last point.
    """
    if not width:
        return points
    bins = binned(points, width)
    passed = bins.x <= (points.x[-1] if reached is None else reached)
    return Points(bins.x[passed], bins.y[passed]) if passed.any() else bins


def _published(one: Published, end: float, width: float) -> Line | None:
    """A published curve up to `end`, None if it begins later; a published mean is not cut."""
    name = f"{one.method} ({one.suite}, published)"
    seeds = list(one.seeds.values())
    if not one.mean_only:
        seeds = [Points(points.x[points.x <= end], points.y[points.x <= end]) for points in seeds]
    seeds = [_passed(points, width) for points in seeds if len(points.x)]
    return Line(name, curve(seeds), True, one.mean_only) if seeds else None


# Final scores ---------------------------------------------------------------------------------------------------------


class Final(NamedTuple):
    """The final score of each seed of a line [S], nan where a seed has none, and the span of x it covers."""

    line: Line
    scores: np.ndarray
    at: tuple[float, float]


def last_evaluations(panel: Panel) -> list[Final]:
    """The last evaluation of each group, at the same x for all groups if they share one."""
    lines = [line for line in panel.lines if not line.published]
    shared = [set(line.curve.at[line.curve.at <= panel.end].tolist()) for line in lines]
    common = max(set.intersection(*([own for own in shared if own] or [set()])), default=None)
    found = []
    for line, own in zip(lines, shared, strict=True):
        if own:
            x = max(own) if common is None else common
            found.append(Final(line, line.curve.seeds[:, line.curve.x == x].mean(1), (x, x)))
    return found


def last_tenth(panel: Panel) -> list[Final]:
    """The mean of the points in the last tenth of x that all runs have reached, the same span for all groups.

    The span begins earlier where a seed has no point in it, and where published curves have longer bins, which are
    taken whole.
    """
    groups = [line for line in panel.lines if not line.published]
    published = [line for line in panel.lines if line.published and not line.mean_only]
    begin, end = (1 - TAIL) * panel.end, panel.end
    for points in (points for line in groups for points in line.points):
        inside = points.x[points.x <= end]
        begin = min(begin, np.nextafter(inside[-1], 0)) if len(inside) else begin
    for line in published:
        edges = line.curve.at[line.curve.at <= end]
        if len(edges):
            inside = edges[edges > begin]
            begin = min(begin, float(inside[0] if len(inside) else edges[-1]) - panel.width)
    found = []
    for line in groups:
        means = np.array([_mean(points, begin, end) for points in line.points])
        found.append(Final(line, means, (float(begin), end)))
    for line in published:
        edges = line.curve.at
        edges = edges[(edges - panel.width >= begin * (1 - 1e-9)) & (edges <= end)]
        if len(edges):
            means = line.curve.seeds[:, np.isin(line.curve.x, edges)].mean(1)
            found.append(Final(line, means, (float(edges[0] - panel.width), float(edges[-1]))))
    return found


def _mean(points: Points, begin: float, end: float) -> float:
    inside = points.y[(points.x > begin) & (points.x <= end)]
    return float(inside.mean()) if len(inside) else math.nan
