"""Heads on features [.., F]: one scalar as two-hot logits, one logit, or an action distribution's outputs."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.nets.layers import MLP, Linear

Array = jax.Array


class _Outputs(nn.Module):
    """One Linear per named output."""

    sizes: tuple[tuple[str, int], ...]
    outscale: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        outs = {k: Linear(n, self.outscale, self.dtype, name=k)(x) for k, n in self.sizes}
        return {k: v.astype(jnp.float32) for k, v in outs.items()}


class ScalarHead(nn.Module):
    """MLP, then logits [.., bins] float32; with outscale 0 the first prediction is exactly 0."""

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
    """MLP, then one logit [..] float32."""

    layers: int
    units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, feat: Array) -> Array:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(feat)
        return _Outputs((("logit", 1),), 1.0, self.dtype, name="head")(x)["logit"][..., 0]


class BitsHead(nn.Module):
    """MLP, then one logit per yes/no question: [.., count] float32."""

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
    """MLP, then {"logits": [.., onehots]} for an action's one-hots and {"mean", "stddev"} for its numbers, float32."""

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
