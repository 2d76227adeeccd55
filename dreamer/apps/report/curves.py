"""Combines the seeds of a metric into a curve with an interval, and curves into panels (plots). Imports no jax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamer.apps.report.axes import short, x_bounds, y_bounds
from dreamer.apps.report.groups import Task
from dreamer.apps.report.references import Level, Published
from dreamer.apps.report.runs import Points, Run
from dreamer.apps.statistics import bootstrap, iqm

EVALUATION, TRAINING = "eval/return", "episode/return"
PUBLISHED = ", published"  # ends the name of a published curve
BINS = 50  # the longest run has at most this number of bins
TAIL = 0.1  # the final score is the mean over this last share of a curve


class Curve(NamedTuple):
    """The values of several seeds in common bins, and statistics of the bins in which all seeds have a value.

    x [B]: the positions of all bins | seeds [S, B]: the values; nan where a seed has no value
    at [C]: the positions of the bins in which all seeds have a value
    mean, iqm [C]: the mean and the interquartile mean (IQM) over the seeds
    low, high [C]: the 95 % bootstrap interval of the IQM over seeds; None: there is only one seed, or C is 0
    std [C]: the standard deviation over the episodes of an evaluation, root mean square over seeds; None: not known
    """

    x: np.ndarray
    seeds: np.ndarray
    at: np.ndarray
    mean: np.ndarray
    iqm: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    std: np.ndarray | None = None


class Line(NamedTuple):
    """A curve with its name.

    published: whether this is a published curve; False: the curve of a group of runs
    points: for each seed, its points before they are put into bins; () for a published curve
    """

    name: str
    curve: Curve
    published: bool = False
    points: tuple[Points, ...] = ()


class Panel(NamedTuple):
    """The plot of one metric in one task. lines: those of the groups that have the metric, then the published curves.

    frames: whether x counts environment frames; False: env_steps | width: the width of a bin; 0 for evaluations
    bounds, y_bounds: the bounds of the two axes | missing: a note for each run or curve that is not shown
    end: the largest x that every run with this metric has reached; up to it, all runs can be compared
    levels: scores, shown as horizontal lines | member: what each thin line of a curve is, "seed" or "trial"
    updates: whether x counts updates, since all runs have learned from data only
    """

    task: str
    metric: str
    lines: list[Line]
    frames: bool
    width: float
    bounds: tuple[float, float]
    y_bounds: tuple[float, float]
    missing: list[str]
    end: float
    levels: list[Level]
    member: str = "seed"
    updates: bool = False

    @property
    def counted(self) -> str:
        """The unit of the x axis."""
        return "updates" if self.updates else unit(self.frames)


# Bins -----------------------------------------------------------------------------------------------------------------


def binned(points: Points, width: float) -> Points:
    """Averages points in bins. The x of a bin is its right edge, which belongs to the bin. Empty bins are left out."""
    edges = np.ceil(points.x / width) * width
    return averaged(Points(edges, points.y))


def averaged(points: Points) -> Points:
    """Averages the points that have equal x. Each x of the result occurs only once, in ascending order."""
    x, inverse = np.unique(points.x, return_inverse=True)
    counts = np.bincount(inverse, minlength=len(x))
    return Points(x, np.bincount(inverse, points.y, minlength=len(x)) / counts)


def due(run: Run, points: Points) -> Points:
    """Moves evaluations to the env_steps at which they were due.

    A run evaluates as soon as its env_steps reach or pass a multiple of eval.every, and at its end. Seeds therefore
    evaluate at slightly different env_steps, and could not be compared without this function.
    """
    every = run.config.eval.every
    asked = points.x - points.x % every if every else points.x
    end = run.config.length
    x = np.where(points.x >= end, np.maximum(end, asked), np.where(asked > 0, asked, points.x))
    return averaged(Points(x, points.y))


def bin_width(curves: Sequence[Points]) -> float:
    """Returns a width for bins: 1, 2 or 5 times a power of ten. It gives at most 50 bins, few of which are empty."""
    wanted = max(max(points.x[-1] for points in curves) / BINS, _usual_gap(curves), 1.0)
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def published_width(curves: Sequence[Points]) -> float:
    """Returns the width of bins for published curves: the least gap of points, doubled until few bins are empty."""
    width = float(min((np.diff(points.x).min() for points in curves if len(points.x) > 1), default=1.0))
    while width < _usual_gap(curves):
        width *= 2
    return width


def _usual_gap(curves: Sequence[Points]) -> float:
    """Returns the 95th percentile of the distances between neighbouring points of a curve; 0 if there are none."""
    gaps = np.concatenate([np.diff(points.x) for points in curves])
    return float(np.quantile(gaps, 0.95)) if len(gaps) else 0.0


def curve(seeds: Sequence[Points]) -> Curve:
    """Combines the points of one or more seeds, which are already in bins, into one curve."""
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


def panel(
    task: Task, metric: str, published: Sequence[Published] = (), width: float = 0.0, *,
    levels: Sequence[Level] = (), frames: bool = False,
) -> Panel | None:  # fmt: skip
    """Makes the panel of a metric in a task. Returns None if no run of the task has the metric.

    published: curves whose x counts frames; used for returns only | levels: used for returns only
    width: the width of bins, not used for evaluations; 0: that of the published curves, else chosen by `bin_width`
    frames: whether x counts environment frames; False: env steps
    """
    returns = metric in (EVALUATION, TRAINING)
    groups = [(group, own) for group in task.groups if (own := [run for run in group.runs if metric in run.metrics])]
    missing = [f"{run.path} has no {metric}" for run in task.runs if metric not in run.metrics]
    if not groups:
        return None
    behind, unplaced = _behind(task, published, frames) if returns else ([], [])
    points = {group.name: [_points(run, metric, frames) for run in own] for group, own in groups}
    ends = {group.name: [_end(run, frames) for run in own] for group, own in groups}
    whole = [seed for _, seeds in behind for seed in seeds]
    step = published_width(whole) if whole else 0.0
    if metric.startswith("eval/"):
        width = 0.0
    else:
        width = width or step or bin_width([one for seeds in points.values() for one in seeds])
    lines = []
    for group, own in groups:
        pairs = zip(points[group.name], ends[group.name], strict=True)
        drawn = curve([_passed(one, width, end) for one, end in pairs])
        drawn = drawn._replace(std=_episode_std(own, metric, frames, drawn.at))
        lines.append(Line(group.name, drawn, points=tuple(points[group.name])))
    last = max(line.curve.x[-1] for line in lines)
    end = min(max(1.25 * last, last + step), max(last, *(points.x[-1] for points in whole))) if whole else last
    lines += [line for name, seeds in behind if (line := _published(name, seeds, end, width))]
    shown = [*levels, *_ahead(behind, end, frames)] if returns else []
    return Panel(
        task.name, metric, lines, frames, width, x_bounds(end), y_bounds(_values(lines), shown, returns),
        missing + unplaced, min(end for own in ends.values() for end in own), shown, updates=task.offline,
    )  # fmt: skip


def _points(run: Run, metric: str, frames: bool) -> Points:
    """Returns the points of a run's metric, with x in the unit of the x axis.

    Evaluations are moved as in `due`. Other points beyond the configured end of the run are moved to this end.
    """
    points = run.metrics[metric]
    if metric.startswith("eval/"):
        points = due(run, points)
    else:
        points = averaged(Points(np.minimum(points.x, run.config.length), points.y))
    return Points(points.x * run.config.action_repeat, points.y) if frames and not run.config.updates else points


def _episode_std(runs: Sequence[Run], metric: str, frames: bool, at: np.ndarray) -> np.ndarray | None:
    """Returns the standard deviation over the episodes of the evaluations at x = `at` [C], root mean square over runs.

    Returns None if the metric does not come from evaluations, or if a run has no value at one of these x.
    """
    name = f"{metric}_std"
    if not metric.startswith("eval/") or any(name not in run.metrics for run in runs) or not len(at):
        return None
    table = np.full((len(runs), len(at)), np.nan)
    for row, run in zip(table, runs, strict=True):
        own = _points(run, name, frames)
        places = np.isin(own.x, at)
        row[np.searchsorted(at, own.x[places])] = own.y[places]
    return None if np.isnan(table).any() else np.sqrt((table**2).mean(0))


def _end(run: Run, frames: bool) -> float:
    """Returns the x that a run has reached, at most the configured end of the run."""
    repeat = run.config.action_repeat if frames and not run.config.updates else 1
    return float(min(run.env_steps, run.config.length) * repeat)


def _passed(points: Points, width: float, reached: float | None = None) -> Points:
    """Averages the points in bins, and returns the complete bins, or all bins if none is complete.

    A bin is complete if its right edge is at most `reached`. If `width` is 0, returns `points` unchanged.
    reached: the x that the run has reached, at or after its last point; None: the x of the last point
    """
    if not width:
        return points
    bins = binned(points, width)
    passed = bins.x <= (points.x[-1] if reached is None else reached)
    return Points(bins.x[passed], bins.y[passed]) if passed.any() else bins


def _behind(
    task: Task, published: Sequence[Published], frames: bool
) -> tuple[list[tuple[str, list[Points]]], list[str]]:
    """Returns the published curves of a task as (name, seeds), with x in the unit of the x axis, and notes.

    Published curves count frames. If x counts env steps and the runs differ in action_repeat, returns only a note.
    """
    curves = [one for one in published if not one.mean_only]
    repeats = {run.config.action_repeat for run in task.runs}
    if curves and not frames and len(repeats) > 1:
        each = ", ".join(map(str, sorted(repeats)))
        return [], [f"{task.name}: runs differ in action_repeat ({each}), and published curves count frames; "
                    "--frames draws both over frames"]  # fmt: skip
    repeat = 1 if frames else repeats.pop()
    return [
        (one.method + PUBLISHED, [Points(points.x / repeat, points.y) for points in one.seeds.values()])
        for one in curves
    ], []


def _published(name: str, seeds: Sequence[Points], end: float, width: float) -> Line | None:
    """Returns the line of a published curve up to x = `end`, or None if the curve begins later."""
    inside = [Points(points.x[points.x <= end], points.y[points.x <= end]) for points in seeds]
    passed = [_passed(points, width) for points in inside if len(points.x)]
    return Line(name, curve(passed), True) if passed else None


def _ahead(behind: Sequence[tuple[str, list[Points]]], end: float, frames: bool) -> list[Level]:
    """Returns a level for each published curve that continues beyond x = `end`: its mean over seeds at its last x."""
    found = []
    for name, seeds in behind:
        last = max(points.x[-1] for points in seeds)
        final = [points.y[-1] for points in seeds if points.x[-1] == last]
        if last > end:
            words = f"{name.removesuffix(PUBLISHED)} at {short(last)} {unit(frames)}"
            found.append(Level(words, float(np.mean(final))))
    return found


def unit(frames: bool) -> str:
    """Returns the unit of the x axis: "frames" or "env steps"."""
    return "frames" if frames else "env steps"


def _values(lines: Sequence[Line]) -> np.ndarray:
    """Returns all finite values that a panel shows for these lines and their bands."""
    parts = []
    for line in lines:
        curve = line.curve
        parts += [curve.seeds.ravel(), *(band for band in (curve.low, curve.high) if band is not None)]
        if curve.std is not None:
            parts += [curve.iqm - curve.std, curve.iqm + curve.std]
    every = np.concatenate(parts)
    return every[np.isfinite(every)]


# Final scores ---------------------------------------------------------------------------------------------------------


class Final(NamedTuple):
    """The final scores of one line of a panel.

    scores [S]: one for each seed; nan: the seed has no score | at: the scores cover the span (from, to) of x
    """

    line: Line
    scores: np.ndarray
    at: tuple[float, float]


def last_evaluations(panel: Panel) -> list[Final]:
    """Returns the scores of each group in its last evaluation, at the same x for all groups if possible.

    Only evaluations up to x = `panel.end` that all seeds of a group have are used.
    """
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
    """Returns the mean score of each seed of each line over the last tenth of the x that all runs have reached.

    This span of x begins earlier if a seed has no point in it, or if a bin of a published curve lies in it only in
    part. It is the same for all lines, but a published curve counts only with its whole bins.
    """
    groups = [line for line in panel.lines if not line.published]
    published = [line for line in panel.lines if line.published]
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
