"""Chooses the bounds of the axes of a panel (a plot), and places the labels of its level lines. Imports no jax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamer.apps.report.references import Level

MARGIN = 0.05  # of the span of y, above and below
NEAR = 0.1  # of the span of y: the height of a label


def x_bounds(end: float) -> tuple[float, float]:
    """Returns the bounds of the x axis, 0 and max(`end`, 1), so that the axis is not empty if `end` is 0."""
    return 0.0, max(float(end), 1.0)


def y_bounds(values: np.ndarray, levels: Sequence[Level], returns: bool) -> tuple[float, float]:
    """Returns the bounds of a y axis that includes all levels and all of `values` [N]: finite numbers, N at least 1.

    returns: whether the metric is an episode return. The axis of a return always includes 0. For other metrics, the
    axis is extended to 0 if the added part is at most a third of its new length.
    """
    shown = [*values.tolist(), *(level.value for level in levels), *([0.0] if returns else [])]
    low, high = min(shown), max(shown)
    if not returns and low > 0 and low <= (high - low) / 2:
        low = 0.0
    if not returns and high < 0 and -high <= (high - low) / 2:
        high = 0.0
    if low == high:
        pad = abs(low) / 10 or 1.0
        return low - pad, high + pad
    pad = MARGIN * (high - low)
    return low - (pad if low else 0.0), high + (pad if high else 0.0)


def short(value: float) -> str:
    """Returns a number of steps as short text, such as 12k or 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def place_labels(levels: Sequence[Level], bounds: tuple[float, float]) -> list[tuple[Level, bool]]:
    """Returns (level, above) for each level, from low to high. above: whether its label stands above its line.

    A label stands below its line if the next higher level is so close that the labels of the two could overlap.
    """
    ordered = sorted(levels, key=lambda level: level.value)
    near = NEAR * (bounds[1] - bounds[0])
    above = [*(level.value for level in ordered), np.inf][1:]
    return [(level, after - level.value > near) for level, after in zip(ordered, above, strict=False)]
