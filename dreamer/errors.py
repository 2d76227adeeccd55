"""Errors that are the user's to mend: one clear line, the cause named. Imports no jax."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Something the user gave is wrong. The command line prints its one line and exits with code 2."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint at the valid name nearest to `name`: "; did you mean 'x'?", or the choices when none is near."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choices: {', '.join(choices)}" if choices else ""


def check_bounds(config: Any, bounds: Mapping[str, tuple[float, float]]) -> None:
    """UserError unless each field of `config` named in `bounds` is a finite number in its inclusive range.

    For the `__post_init__` of a Config; of a tuple, every entry counts. The loader of presets adds the dotted path.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            check_bound(name, number, low, high)


def check_bound(name: str, value: Any, low: float, high: float) -> None:
    """UserError unless `value` is a finite number from low to high."""
    finite = isinstance(value, numbers.Integral) or (isinstance(value, numbers.Real) and math.isfinite(value))
    if not (finite and low <= value <= high):
        allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise UserError(f"{name} must be {allowed}, not {value!r}")
