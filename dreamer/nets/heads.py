"""Networks that map features [.., F] to two-hot logits, to single logits or to the outputs of an actor."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.nets.layers import MLP, Linear

Array = jax.Array


class _Outputs(nn.Module):
    """One Linear layer for each named output."""

    sizes: tuple[tuple[str, int], ...]
    outscale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        outs = {k: Linear(n, self.outscale, self.dtype, name=k)(x) for k, n in self.sizes}
        return {k: v.astype(jnp.float32) for k, v in outs.items()}


class ScalarHead(nn.Module):
    """An MLP that returns two-hot logits [.., bins] float32. With outscale 0, the initial prediction is exactly 0."""

    layers: int
    units: int
    bins: int = 255
    outscale: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feat: Array) -> Array:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(feat)
        return _Outputs((("logits", self.bins),), self.outscale, self.dtype, name="head")(x)["logits"]


class BinaryHead(nn.Module):
    """An MLP that returns one logit [..] float32."""

    layers: int
    units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feat: Array) -> Array:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(feat)
        return _Outputs((("logit", 1),), 1.0, self.dtype, name="head")(x)["logit"][..., 0]


class BitsHead(nn.Module):
    """An MLP that returns one logit for each of `count` yes/no questions: [.., count] float32."""

    layers: int
    units: int
    count: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feat: Array) -> Array:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(feat)
        return _Outputs((("logits", self.count),), 1.0, self.dtype, name="head")(x)["logits"]


class _ActionHead(nn.Module):
    sizes: tuple[tuple[str, int], ...]
    outscale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        return _Outputs(self.sizes, self.outscale, self.dtype, name="action")(x)


class ActorHead(nn.Module):
    """An MLP that returns {"logits": [.., onehots], "mean": [.., continuous], "stddev": [.., continuous]}, float32.

    logits: for the one-hots of an action | mean, stddev: for its numbers, without bounds
    Outputs of width 0 are left out.
    """

    layers: int
    units: int
    onehots: int
    continuous: int
    outscale: float = 0.01
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feat: Array) -> dict[str, Array]:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(feat)
        widths = {"logits": self.onehots, "mean": self.continuous, "stddev": self.continuous}
        sizes = tuple((name, width) for name, width in widths.items() if width)
        return _ActionHead(sizes, self.outscale, self.dtype, name="head")(x)
