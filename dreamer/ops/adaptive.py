"""Weights of losses that follow a target: they grow while a quantity is on its wrong side, and shrink otherwise."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Range(NamedTuple):
    """How a weight adapts. rate: its relative change per update | low, high: its bounds

    inverse: whether the weight rewards the quantity, as it does an entropy, and so grows while that is too small
    """

    low: float
    high: float
    inverse: bool = False
    rate: float = 0.1


def adapt(weight: Array, value: Array, target: Array | float, limits: Range) -> Array:
    """Returns the next weight: times 1 + rate if the mean of `value` is above target * (1 + rate), and divided by
    1 + rate if it is below target / (1 + rate); the other way round for an inverse weight.

    weight: [] or [S], one for each entry of the last axis of value [..] or [.., S]; the mean is over the other axes
    Source: Director (Hafner et al. 2022), appendix on the goal autoencoder, and its code.
    """
    mean = jax.lax.stop_gradient(value.astype(jnp.float32)).mean(tuple(range(value.ndim - weight.ndim)))
    factor = 1.0 + limits.rate
    above, below = mean > factor * target, mean < target / factor
    grow, shrink = (below, above) if limits.inverse else (above, below)
    moved = jnp.where(grow, weight * factor, jnp.where(shrink, weight / factor, weight))
    return jnp.clip(moved, limits.low, limits.high)
