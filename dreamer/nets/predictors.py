"""Output heads with their losses, for all that a world model predicts besides observations and latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, Key, Network, Params
from dreamer.nets.adapters import from_flax
from dreamer.nets.heads import BinaryHead, BitsHead, ScalarHead
from dreamer.ops import distributions as dist


class Predictor(NamedTuple):
    """A network that predicts something from features, with its loss.

    init(key, feat [1, F]) -> params | predict(params, feat [.., F]) -> prediction [..] or [.., n]
    loss(params, feat [.., F], target) -> [..]; target has the shape of the prediction
    """

    init: Callable[[Key, Array], Params]
    predict: Callable[[Params, Array], Array]
    loss: Callable[[Params, Array, Array], Array]


def scalar(layers: int, units: int, bins: int = 255, dtype: Any = jnp.float32) -> Predictor:
    """Predicts a number [..] float32, such as a reward, as the mean of two-hot logits. Source: DreamerV3, eq. 10."""
    head, values = from_flax(ScalarHead(layers, units, bins, dtype=dtype)), dist.twohot_bins(bins)
    return Predictor(
        init=head.init,
        predict=lambda params, feat: dist.twohot_mean(head.apply(params, feat), values),
        loss=lambda params, feat, target: dist.twohot_loss(head.apply(params, feat), target, values),
    )


def symlog_scalar(layers: int, units: int, dtype: Any = jnp.float32) -> Predictor:
    """Predicts a number [..] float32 by `symlog_of` an MLP, whose initial prediction is exactly 0."""
    return symlog_of(from_flax(ScalarHead(layers, units, 1, dtype=dtype)))


def symlog_of(head: Network) -> Predictor:
    """Predicts a number [..] float32 as symexp of the one output [.., 1] of `head`.

    The loss is the squared difference of the output and symlog(target). Source: Director (Hafner et al. 2022).
    """

    def output(params: Params, feat: Array) -> Array:
        return head.apply(params, feat)[..., 0].astype(jnp.float32)

    return Predictor(
        init=head.init,
        predict=lambda params, feat: dist.symexp(output(params, feat)),
        loss=lambda params, feat, target: jnp.square(output(params, feat) - dist.symlog(target)),
    )


def chance(layers: int, units: int, dtype: Any = jnp.float32) -> Predictor:
    """Predicts a probability [..] float32, such as the chance that an episode continues. target [..]: from 0 to 1."""
    head = from_flax(BinaryHead(layers, units, dtype))
    return Predictor(
        init=head.init,
        predict=lambda params, feat: jax.nn.sigmoid(head.apply(params, feat)),
        loss=lambda params, feat, target: dist.bernoulli_loss(head.apply(params, feat), target),
    )


def bits(layers: int, units: int, count: int, dtype: Any = jnp.float32) -> Predictor:
    """Predicts bits [.., count] bool, such as an action mask. The loss sums over bits.

    A bit is True if its predicted probability is above 1/2.
    """
    head = from_flax(BitsHead(layers, units, count, dtype))
    return Predictor(
        init=head.init,
        predict=lambda params, feat: head.apply(params, feat) > 0,
        loss=lambda params, feat, target: dist.bernoulli_loss(head.apply(params, feat), target).sum(-1),
    )
