"""The axes of a sweep: which values the trials have, how the trials are sorted by them, and scales to draw them.

Imports no jax.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.apps.report.groups import short_key, show
from dreamer.apps.report.sweep import Sweep, Trial

MOST_VALUES = 12  # an axis with more numbers is divided into quarters
QUARTERS = 4
TICKS = 5
NEVER = "-"  # stands for the value of a trial that the axis does not set


class Axis(NamedTuple):
    """A setting that differs between trials.

    name: the last parts of its key, long enough to tell it from other axes
    values: the distinct values, in the order of the axis if it is a list, else ascending if they are numbers
    numeric: whether all values are numbers | log: whether they are better shown on a logarithmic scale
    drawn: whether they were drawn from a distribution and hardly repeat, so that only groups of values have several
    trials
    """

    key: str
    name: str
    values: tuple[Any, ...]
    numeric: bool
    log: bool
    drawn: bool


class Slice(NamedTuple):
    """The trials that share a value of an axis, or a quarter of its range. label: the value, or "low to high"."""

    label: str
    trials: tuple[Trial, ...]


class Scale(NamedTuple):
    """Places values between 0 and 1, to draw them on an axis.

    at: the place of each value, in the order given | ticks: (place, text) of each label
    """

    at: list[float]
    ticks: list[tuple[float, str]]


def varied(sweep: Sweep) -> list[Axis]:
    """Returns the axes in which the trials differ, in the order of the sweep."""
    keys = list(dict.fromkeys([*sweep.axes, *(key for trial in sweep.trials for key in trial.values)]))
    settings = len({_identity(dict(trial.values)) for trial in sweep.trials})
    found = []
    for key in keys:
        values = {_identity(one): one for one in (value_of(trial, key) for trial in sweep.trials)}
        if len(values) > 1:
            found.append(_axis(key, keys, list(values.values()), sweep.axes.get(key), settings))
    return found


def value_of(trial: Trial, key: str) -> Any:
    """Returns the value of a trial on an axis, or NEVER if the trial has none."""
    return trial.values.get(key, NEVER)


def same(one: Any, other: Any) -> bool:
    """Whether two values of axes are equal. 1, 1.0 and true are three values."""
    return _identity(one) == _identity(other)


def slices(axis: Axis, trials: Sequence[Trial]) -> list[Slice]:
    """Sorts trials by their value on an axis, or by the quarter that holds it if there are more than MOST_VALUES.

    The quarters have equally many distinct values, as far as possible. Slices without trials are left out.
    """
    if axis.drawn or (axis.numeric and len(axis.values) > MOST_VALUES):
        parts = np.array_split(np.sort(np.array(axis.values, np.float64)), QUARTERS)
        groups = [(f"{part[0]:.3g} to {part[-1]:.3g}", part.tolist()) for part in parts if len(part)]
        return _filled(groups, trials, lambda trial, group: float(value_of(trial, axis.key)) in group)
    single = [(label, [value]) for label, value in zip(labels(axis), axis.values, strict=True)]
    return _filled(single, trials, lambda trial, group: same(value_of(trial, axis.key), group[0]))


def labels(axis: Axis) -> list[str]:
    """Returns a text for each value of an axis. No two texts are equal."""
    short = [show(value) for value in axis.values]
    return short if len(set(short)) == len(short) else [repr(value) for value in axis.values]


def scale(axis: Axis, values: Sequence[Any]) -> Scale:
    """Returns the scale of an axis of a sweep. Values that are not all numbers stand at equal distances."""
    if not axis.numeric:
        places = np.linspace(0, 1, len(axis.values)) if len(axis.values) > 1 else np.array([0.5])
        at = [float(next(p for p, one in zip(places, axis.values, strict=True) if same(one, v))) for v in values]
        return Scale(at, [(float(place), text) for place, text in zip(places, labels(axis), strict=True)])
    numbers = sorted(map(float, axis.values))
    few = numbers if len(numbers) <= TICKS + 1 else None
    return number_scale([float(value) for value in values], numbers[0], numbers[-1], axis.log, few)


def number_scale(
    values: Sequence[float], low: float, high: float, log: bool = False, marks: Sequence[float] | None = None,
    words: Callable[[float], str] = "{:.3g}".format,
) -> Scale:  # fmt: skip
    """Returns the scale of numbers from `low` to `high`.

    marks: the numbers with labels; None: evenly spaced ones | words: converts a number to its label
    """
    change = np.log if log else np.asarray
    first, last = float(change(low)), float(change(high))
    span = last - first

    def place(number: float) -> float:
        return (float(change(number)) - first) / span if span else 0.5

    if marks is None:
        spread = np.linspace(first, last, TICKS if span else 1)
        marks = (np.exp(spread) if log else spread).tolist()
    return Scale([place(value) for value in values], [(place(mark), words(mark)) for mark in marks])


def _axis(key: str, keys: Sequence[str], values: list[Any], spec: Any, settings: int) -> Axis:
    if isinstance(spec, Mapping):
        spec = spec.get("choice", None if "range" in spec else spec)
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if isinstance(spec, list):
        order = [_identity(value) for value in spec]
        values.sort(key=lambda value: order.index(_identity(value)) if _identity(value) in order else len(order))
    elif numeric:
        values.sort()
    drawn = numeric and isinstance(spec, Mapping) and len(values) > QUARTERS and 2 * len(values) > settings
    return Axis(key, short_key(key, keys), tuple(values), numeric, numeric and _is_log(values, spec), drawn)


def _is_log(values: Sequence[float], spec: Any) -> bool:
    """Whether numbers were drawn from a logarithmic distribution, or their ratios are more even than their gaps."""
    if min(values) <= 0:
        return False
    if isinstance(spec, Mapping) and spec:
        return any(str(name).startswith("log") for name in spec)
    numbers = np.sort(np.array(values, np.float64))
    if len(numbers) < 3:
        return bool(numbers[-1] >= 10 * numbers[0])
    gaps, ratios = np.diff(numbers), np.diff(np.log(numbers))
    return bool(ratios.std() / ratios.mean() < gaps.std() / gaps.mean() - 1e-9)


def _filled(groups: Sequence[tuple[str, list[Any]]], trials: Sequence[Trial], holds: Any) -> list[Slice]:
    found = [Slice(label, tuple(one for one in trials if holds(one, group))) for label, group in groups]
    return [one for one in found if one.trials]


def _identity(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
