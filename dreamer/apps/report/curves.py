"""Combines metrics of several seeds into one curve with an interval, and curves into panels; no drawing. No jax."""

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
BINS = 50  # about this number in the longest run
TAIL = 0.1  # share of a curve at its end that gives the final score


class Curve(NamedTuple):
    """Seeds on common bins, and their mean and IQM in the bins where all have a value.

    x [B], seeds [S, B], nan where a seed has no value: every bin | at [C], mean [C], iqm [C]: the bins of all seeds
    low, high [C]: 95 % bootstrap interval of the IQM over seeds, None with one seed
    std [C]: standard deviation over the episodes of an evaluation, root mean square over seeds; None if not logged
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
    """A curve with its name. published: from the references, not from runs | points: of each seed, before binning."""

    name: str
    curve: Curve
    published: bool = False
    points: tuple[Points, ...] = ()


class Panel(NamedTuple):
    """One metric in one task: the lines of the groups that have it, then the published ones.

    frames: whether x is in environment frames, otherwise in env_steps | width: of a bin, 0 for evaluations
    bounds, y_bounds: what is shown of x and y | missing: groups and runs without this metric, one line each
    end: the x that every run with this metric has reached, up to which all can be compared
    levels: scores to compare returns with
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


def panel(
    task: Task, metric: str, published: Sequence[Published] = (), width: float = 0.0, *,
    levels: Sequence[Level] = (), frames: bool = False,
) -> Panel | None:  # fmt: skip
    """The panel of a metric in a task, None when no run of it has the metric.

    published: curves drawn behind returns, over frames | levels: drawn in panels of returns | width: of the bins on the
    x axis; 0 = as in the published curve, else chosen | frames: x in environment frames rather than env steps
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
        missing + unplaced, min(end for own in ends.values() for end in own), shown,
    )  # fmt: skip


def _points(run: Run, metric: str, frames: bool) -> Points:
    """A metric over the x axis; rows beyond the configured end of a run are counted at its end."""
    points = run.metrics[metric]
    if metric.startswith("eval/"):
        points = due(run, points)
    else:
        points = averaged(Points(np.minimum(points.x, run.config.env_steps), points.y))
    return Points(points.x * run.config.action_repeat, points.y) if frames else points


def _episode_std(runs: Sequence[Run], metric: str, frames: bool, at: np.ndarray) -> np.ndarray | None:
    """The spread over the episodes of evaluations at `at` [C]: root mean square over runs. None if one has none."""
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


def _behind(
    task: Task, published: Sequence[Published], frames: bool
) -> tuple[list[tuple[str, list[Points]]], list[str]]:
    """The published curves of a task as (name, seeds) over the x axis, and a note where they have no place on it."""
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
    """A published curve up to `end`, None if it begins later."""
    inside = [Points(points.x[points.x <= end], points.y[points.x <= end]) for points in seeds]
    passed = [_passed(points, width) for points in inside if len(points.x)]
    return Line(name, curve(passed), True) if passed else None


def _ahead(behind: Sequence[tuple[str, list[Points]]], end: float, frames: bool) -> list[Level]:
    """The last mean of each published curve that goes on beyond `end`."""
    found = []
    for name, seeds in behind:
        last = max(points.x[-1] for points in seeds)
        final = [points.y[-1] for points in seeds if points.x[-1] == last]
        if last > end:
            words = f"{name.removesuffix(PUBLISHED)} at {short(last)} {unit(frames)}"
            found.append(Level(words, float(np.mean(final))))
    return found


def unit(frames: bool) -> str:
    """The unit of x in words."""
    return "frames" if frames else "env steps"


def _values(lines: Sequence[Line]) -> np.ndarray:
    """All finite values that are drawn of these lines, bands included."""
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
