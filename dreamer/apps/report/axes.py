"""What the axes of a panel show, and the numbers beside them. No jax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamer.apps.report.references import Level

MARGIN = 0.05  # of the span of y, above and below
NEAR = 0.1  # of the span of y: the room that the words of a level take


def x_bounds(end: float) -> tuple[float, float]:
    """The ends of the x axis: from 0, also where a run has logged nothing but its first step."""
    return 0.0, max(float(end), 1.0)


def y_bounds(values: np.ndarray, levels: Sequence[Level], returns: bool) -> tuple[float, float]:
    """The ends of the y axis for finite values [N], N at least 1.

    Returns: 0 and all levels are shown. Other metrics: 0 is shown where it is near, for which the picture shrinks by
    no more than a third.
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
    """12k, 1.5M: a number of steps in a few characters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def place_labels(levels: Sequence[Level], bounds: tuple[float, float]) -> list[tuple[Level, bool]]:
    """The levels from low to high, and whether the words of each stand above its line: neighbours stay apart."""
    ordered = sorted(levels, key=lambda level: level.value)
    near = NEAR * (bounds[1] - bounds[0])
    above = [*(level.value for level in ordered), np.inf][1:]
    return [(level, after - level.value > near) for level, after in zip(ordered, above, strict=False)]
