"""Running statistics that scale returns, values and advantages. The caller keeps their states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
sg = jax.lax.stop_gradient


class Normalizer(NamedTuple):
    """A running statistic: init() -> state | update(state, x [..]) -> state | stats(state) -> offset [], scale []."""

    init: Callable[[], Any]
    update: Callable[[Any, Array], Any]
    stats: Callable[[Any], tuple[Array, Array]]


class Percentiles(NamedTuple):
    """Moving averages of a low and a high percentile. Both start at 0; no bias correction is made."""

    lo: Array
    hi: Array


class Moments(NamedTuple):
    """Moving averages of x, x^2 and 1. All start at 0, and division by the average of 1 corrects this bias."""

    mean: Array
    sqrs: Array
    corr: Array


def percentiles(rate: float = 0.01, limit: float = 1.0, low: float = 5.0, high: float = 95.0) -> Normalizer:
    """Returns a Normalizer with offset = lo and scale = max(limit, hi - lo).

    lo, hi: moving averages of the percentiles `low` and `high` | rate: the weight of a new value in them
    Source: DreamerV3, eq. 7.
    """

    def init() -> Percentiles:
        return Percentiles(jnp.zeros(()), jnp.zeros(()))

    def update(state: Percentiles, x: Array) -> Percentiles:
        lo, hi = jnp.percentile(sg(x.astype(jnp.float32)), jnp.array([low, high]))
        return Percentiles((1 - rate) * state.lo + rate * lo, (1 - rate) * state.hi + rate * hi)

    def stats(state: Percentiles) -> tuple[Array, Array]:
        return state.lo, jnp.maximum(limit, state.hi - state.lo)

    return Normalizer(init, update, stats)


def moments(rate: float = 0.01, limit: float = 1e-8) -> Normalizer:
    """Returns a Normalizer with offset = mean and scale = max(limit, standard deviation).

    Both come from moving averages, in which a new value has the weight `rate`. Their bias is corrected.
    """

    def init() -> Moments:
        return Moments(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))

    def update(state: Moments, x: Array) -> Moments:
        x = sg(x.astype(jnp.float32))
        new = Moments(jnp.mean(x), jnp.mean(jnp.square(x)), jnp.ones(()))
        return Moments(*((1 - rate) * old + rate * now for old, now in zip(state, new, strict=True)))

    def stats(state: Moments) -> tuple[Array, Array]:
        corr = 1.0 / jnp.maximum(rate, state.corr)
        mean = state.mean * corr
        std = jnp.sqrt(jax.nn.relu(state.sqrs * corr - jnp.square(mean)))
        return mean, jnp.maximum(limit, std)

    return Normalizer(init, update, stats)


def stream(rate: float = 0.01, eps: float = 1e-8) -> Normalizer:
    """Returns a Normalizer with offset 0 and scale = mag + eps, where mag is a moving average of the mean of |x|.

    mag starts at 1, and a new value has the weight `rate` in it. Source: DreamerV2, its normaliser of rewards.
    """

    def update(state: Array, x: Array) -> Array:
        return (1 - rate) * state + rate * jnp.abs(sg(x.astype(jnp.float32))).mean()

    return Normalizer(lambda: jnp.ones(()), update, lambda state: (jnp.zeros(()), state + eps))


def identity() -> Normalizer:
    """Returns a Normalizer that changes nothing: offset 0, scale 1."""
    return Normalizer(lambda: (), lambda state, x: state, lambda state: (jnp.zeros(()), jnp.ones(())))


def make(name: str) -> Normalizer:
    """Returns the Normalizer called "percentiles", "moments" or "none", with DreamerV3's constants."""
    return {"percentiles": percentiles, "moments": moments, "none": identity}[name]()
