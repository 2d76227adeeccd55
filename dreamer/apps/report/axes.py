"""Chooses what the axes of a panel show, and the numbers beside them. No jax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamer.apps.report.references import Level

MARGIN = 0.05  # of the span of y, above and below
NEAR = 0.1  # of the span of y: the room that the words of a level take


def x_bounds(end: float) -> tuple[float, float]:
    """The ends of the x axis. It begins at 0 and is at least 1 long, for runs that have logged only one step."""
    return 0.0, max(float(end), 1.0)


def y_bounds(values: np.ndarray, levels: Sequence[Level], returns: bool) -> tuple[float, float]:
    """The ends of the y axis for finite values [N], N at least 1.

    returns: whether the metric is a return, for which the axis includes 0 and all levels. For other metrics, the axis
    includes 0 if this shrinks the picture by at most a third.
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
    """A number of steps in a few characters, such as 12k or 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def place_labels(levels: Sequence[Level], bounds: tuple[float, float]) -> list[tuple[Level, bool]]:
    """The levels from low to high, each with whether its words stand above its line.

    The places are chosen so that the words of neighbouring levels do not overlap.
    """
    ordered = sorted(levels, key=lambda level: level.value)
    near = NEAR * (bounds[1] - bounds[0])
    above = [*(level.value for level in ordered), np.inf][1:]
    return [(level, after - level.value > near) for level, after in zip(ordered, above, strict=False)]
