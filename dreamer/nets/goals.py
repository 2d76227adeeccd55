"""The networks of Director (Hafner et al. 2022) that write and read goals: codes of several one-hots."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.nets.layers import MLP, Linear

Array = jax.Array


class CodeHead(nn.Module):
    """An MLP that returns the logits [.., groups, classes] float32 of a code, for an encoder or a manager."""

    layers: int
    units: int
    groups: int
    classes: int
    outscale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(x)
        x = Linear(self.groups * self.classes, self.outscale, self.dtype, name="code")(x)
        return x.reshape(*x.shape[:-1], self.groups, self.classes).astype(jnp.float32)


class GoalDecoder(nn.Module):
    """An MLP that returns the goal [.., width] float32 of a code [.., groups, classes]."""

    layers: int
    units: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, code: Array) -> Array:
        x = MLP(self.layers, self.units, self.dtype, name="mlp")(code.reshape(*code.shape[:-2], -1))
        return Linear(self.width, dtype=self.dtype, name="goal")(x).astype(jnp.float32)
