"""The axes of a sweep as a search space of Optuna. Imports no jax."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dreamer.apps.sweep.spec import Axis, Sweep, rounded
from dreamer.apps.sweep.trials import bundles, rows_of

EDGE = 1e-6  # the part of a normal distribution at either end that is never suggested


class Dimension(NamedTuple):
    """What Optuna sees of an axis, or of axes that advance together.

    name: its keys | distribution: one of Optuna | values(x) -> {key: value}: of what Optuna suggests | x(values): back
    """

    name: str
    distribution: Any
    values: Callable[[Any], dict[str, Any]]
    x: Callable[[Mapping[str, Any]], Any]


def space_of(sweep: Sweep, axes: Sequence[Axis]) -> list[Dimension]:
    """Returns the dimensions of the search, in the order of the axes."""
    return [_listed(sweep, own) if own[0].values is not None else _drawn(sweep, own[0]) for own in bundles(sweep, axes)]


def _listed(sweep: Sweep, own: Sequence[Axis]) -> Dimension:
    """Returns the dimension of lists that advance together: the number of a row. A range has an order, a list none."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    rows, keys = rows_of(own), [one.key for one in own]
    texts = [repr(row) for row in rows]
    given = sweep.axes[keys[0]]
    ordered = isinstance(given, Mapping) and "range" in given
    numbers = IntDistribution(0, len(rows) - 1) if ordered else CategoricalDistribution(tuple(range(len(rows))))
    return Dimension(
        " ".join(keys), numbers, lambda x: dict(zip(keys, rows[x], strict=True)),
        lambda values: texts.index(repr(tuple(values[key] for key in keys))),
    )  # fmt: skip


def _drawn(sweep: Sweep, one: Axis) -> Dimension:
    """Returns the dimension of a distribution. Optuna has no normal one, and searches its quantiles instead."""
    from optuna.distributions import FloatDistribution, IntDistribution

    [(kind, numbers)] = sweep.axes[one.key].items()
    low, high = numbers
    if kind == "integers":
        return Dimension(one.key, IntDistribution(low, high), lambda x: {one.key: int(x)}, lambda v: v[one.key])
    if kind == "normal":
        if not high:
            return Dimension(one.key, FloatDistribution(0, 0), lambda x: {one.key: float(low)}, lambda v: 0.0)
        normal = statistics.NormalDist(low, high)
        return Dimension(
            one.key, FloatDistribution(EDGE, 1 - EDGE), lambda x: {one.key: rounded(normal.inv_cdf(x))},
            lambda v: _within(normal.cdf(v[one.key]), EDGE, 1 - EDGE),
        )  # fmt: skip
    return Dimension(
        one.key, FloatDistribution(low, high, log=kind == "loguniform"),
        lambda x: {one.key: _within(rounded(x), low, high)}, lambda v: _within(v[one.key], low, high),
    )  # fmt: skip


def _within(number: float, low: float, high: float) -> float:
    return min(max(float(number), float(low)), float(high))
