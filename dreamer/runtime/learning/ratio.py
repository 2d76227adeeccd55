"""Computes how many updates are due: the only definition of the replay ratio, in exact arithmetic. Imports no jax."""

from __future__ import annotations

import math
from fractions import Fraction


def updates_per_step(replay_ratio: float, batch_size: int, batch_length: int) -> Fraction:
    """Returns the number of updates per collected environment step.

    replay_ratio: trained time steps per collected environment step, finite and at least 0. One environment step is one
    row of the replay, no matter how often the action is repeated in it. Source: spec section 11.
    """
    # Converts the decimal form, so that 0.1 means a tenth and not the nearest binary number.
    return Fraction(repr(replay_ratio)) / (batch_size * batch_length)


def due(credited: Fraction | None, step: int, rate: Fraction) -> tuple[int, Fraction | None]:
    """Returns the number of updates to make now, and the step to pass as `credited` to the next call.

    credited: the step up to which all updates are made, from the previous call. None: this is the first call, which
    returns one update. Make it as soon as the replay is ready for training.
    step: the number of environment steps collected. rate: `updates_per_step`.
    Raises ValueError if `step` is before `credited`.
    """
    if not rate:
        return 0, credited
    if credited is None:
        return 1, Fraction(step)
    if step < credited:
        raise ValueError(f"environment steps went back from {credited} to {step}")
    updates = math.floor((step - credited) * rate)
    return updates, credited + updates / rate


def describe(replay_ratio: float, batch_size: int, batch_length: int) -> str:
    """Returns a line that explains the replay ratio, such as "replay ratio 0 = no updates"."""
    rate = updates_per_step(replay_ratio, batch_size, batch_length)
    batch = f"of {batch_size} x {batch_length} steps"
    if not rate:
        return "replay ratio 0 = no updates"
    if rate > 1:
        return f"replay ratio {replay_ratio:g} = {_number(rate)} updates {batch} every env step"
    every = "env step" if rate == 1 else f"{_number(1 / rate)} env steps"
    return f"replay ratio {replay_ratio:g} = one update {batch} every {every}"


def _number(value: Fraction) -> str:
    """Formats a number with at most two decimals, and a whole number with none."""
    return f"{float(value):,.2f}".rstrip("0").rstrip(".")
