"""An ensemble of networks that predict the features of the next row. Where its members disagree, data are missing.

The members differ in their initial parameters only: all learn from the same rows. Source: Sekar et al. 2020
(Plan2Explore) for the disagreement, and DreamerV2's version of it for the networks and the loss. Unlike in DreamerV2, a
member sees the action that leads to the row it predicts, in training and in dreams.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.fields import at_least, check_bounds
from dreamer.interfaces import Array, Key, Network
from dreamer.nets.adapters import from_flax
from dreamer.nets.layers import Linear

sg = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an ensemble of one-step predictors."""

    members: Annotated[int, at_least(2)] = 7
    "networks in the ensemble"
    layers: Annotated[int, at_least(1)] = 2
    "hidden layers of each network"
    units: Annotated[int, at_least(1)] = 64
    "width of its hidden layers"
    measure: Literal["std", "variance", "distance"] = "std"
    "how disagreement is measured: standard deviation, variance, or distance of the members to their mean"
    scale: Annotated[float, at_least(0)] = 1.0
    "weight of the loss of the ensemble"

    def __post_init__(self) -> None:
        check_bounds(self)


class Member(nn.Module):
    """An MLP with ELUs and without norms: [.., F], [.., A] -> [.., features] float32."""

    layers: int
    units: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feat: Array, action: Array) -> Array:
        x = jnp.concatenate([feat.astype(self.dtype), action.astype(self.dtype)], -1)
        for i in range(self.layers):
            x = nn.elu(Linear(self.units, dtype=self.dtype, name=f"linear{i}")(x))
        return Linear(self.features, dtype=self.dtype, name="out")(x).astype(jnp.float32)


def make(config: Config, features: int, dtype: Any = jnp.float32) -> Network:
    """Makes the ensemble. Its parameters have a leading axis M, one entry for each member.

    init(key, feat [1, F], action [1, A]) -> params | apply(params, feat [.., F], action [.., A]) -> [M, .., features]
    """
    member = from_flax(Member(config.layers, config.units, features, dtype))

    def init(key: Key, feat: Array, action: Array) -> Any:
        return jax.vmap(lambda own: member.init(own, feat, action))(jax.random.split(key, config.members))

    def apply(params: Any, feat: Array, action: Array) -> Array:
        return jax.vmap(lambda own: member.apply(own, feat, action))(params)

    return Network(init, apply)


def loss(predicted: Array, target: Array, kind: Literal["gaussian", "squared", "mean squared"] = "gaussian") -> Array:
    """Returns the loss [..] of predictions [M, .., F] for `target` [.., F], summed over the members.

    kind: "gaussian": negative log-likelihood of a normal distribution of variance 1, summed over the features, as in
    DreamerV2 | "squared": the squared error, summed | "mean squared": the squared error, averaged, as in Plan2Explore
    """
    chex.assert_equal_shape([predicted[0], target])
    squared = jnp.square(predicted - target.astype(jnp.float32)[None])
    if kind == "mean squared":
        return squared.mean(-1).sum(0)
    if kind == "squared":
        return squared.sum(-1).sum(0)
    return (0.5 * squared.sum(-1) + 0.5 * target.shape[-1] * jnp.log(2 * jnp.pi)).sum(0)


def replayed_loss(predicted: Array, feat: Array, is_first: Array) -> Array:
    """Returns the loss [B, T-1] of predictions [M, B, T, F] of the next row, for replayed features [B, T, F].

    The last prediction has no target. The loss is 0 where the next row begins an episode, is_first [B, T].
    """
    chex.assert_shape(predicted, (None, *feat.shape))
    within = 1 - is_first[:, 1:].astype(jnp.float32)
    return within * loss(predicted[:, :, :-1], sg(feat[:, 1:]))


def disagreement(predicted: Array, measure: str = "std", *, unbiased: bool = False) -> Array:
    """Returns how much the members disagree about each prediction: [M, .., F] -> [..] float32, at least 0.

    measure: "std": the standard deviation over the members, averaged over the features, as in DreamerV2 | "variance":
    the variance instead, as in Plan2Explore | "distance": the distance of a member's prediction to their mean,
    averaged over the members, as in offline DreamerV2
    unbiased: whether the variance is divided by M - 1 instead of M
    The gradient is 0, and finite, where members agree exactly.
    """
    predicted = predicted.astype(jnp.float32)
    # A difference first: E[x^2] - E[x]^2 loses all digits of large features.
    away = predicted - predicted.mean(0, keepdims=True)
    if measure == "distance":
        return _root(jnp.square(away).sum(-1)).mean(0)
    variance = jnp.square(away).sum(0) / (len(predicted) - unbiased)
    return (variance if measure == "variance" else _root(variance)).mean(-1)


def _root(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def of_steps(config: Config, ensemble: Network, params: Any, feat: Array, action: Array) -> Array:
    """Returns the disagreement [N, T] about the row after each of feat [N, T, F] and action [N, T, A], no gradients.

    Computes one step at a time, since the predictions of all members for all steps would be M times the features.
    """

    def step(inputs: tuple[Array, Array]) -> Array:
        return disagreement(ensemble.apply(params, *inputs), config.measure)

    found = jax.lax.map(step, (feat.swapaxes(0, 1), action.swapaxes(0, 1)))
    return sg(found.swapaxes(0, 1))
