"""Networks of the RSSM: recurrent core, prior and posterior. Source: DreamerV3, sections on the sequence model."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.nets.layers import BlockLinear, BlockRMSNorm, Linear, RMSNorm, from_blocks, to_blocks

Array = jax.Array


class Core(nn.Module):
    """The recurrent core, a block GRU: deter [.., D], stoch [.., S, C], action [.., A] -> deter [.., D].

    hidden: the width to which each input is projected | blocks: the number of blocks of deter
    layers: the number of block-linear layers before the gates
    """

    hidden: int
    blocks: int
    layers: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, deter: Array, stoch: Array, action: Array) -> Array:
        # Gaussian samples are unbounded; one-hots pass unchanged.
        action = action / jax.lax.stop_gradient(jnp.maximum(1, jnp.abs(action)))
        stoch = stoch.reshape(*stoch.shape[:-2], -1)
        shared = jnp.concatenate([self._project(i, x) for i, x in enumerate((deter, stoch, action))], -1)
        (*lead, width), shared = deter.shape, shared.reshape(-1, shared.shape[-1])
        deter = to_blocks(deter.astype(self.dtype), self.blocks)
        x = deter
        for i in range(self.layers):
            x = BlockLinear(width, self.dtype, name=f"dynhid{i}")(x, shared if i == 0 else None)
            x = nn.silu(BlockRMSNorm(self.dtype, name=f"dynhid{i}norm")(x))
        reset, candidate, update = BlockLinear(3 * width, self.dtype, parts=3, name="dyngru")(x)
        update = jax.nn.sigmoid(update - 1)
        candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
        return from_blocks(update * candidate + (1 - update) * deter, tuple(lead))

    def _project(self, i: int, x: Array) -> Array:
        x = Linear(self.hidden, dtype=self.dtype, name=f"dynin{i}")(x)
        return nn.silu(RMSNorm(self.dtype, name=f"dynin{i}norm")(x))


class Logits(nn.Module):
    """An MLP that returns raw logits [.., S, C]. layers: hidden layers | prefix: the layers' names begin with it."""

    prefix: str
    layers: int
    hidden: int
    stoch: int
    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        for i in range(self.layers):
            x = Linear(self.hidden, dtype=self.dtype, name=f"{self.prefix}{i}")(*inputs)
            inputs = (nn.silu(RMSNorm(self.dtype, name=f"{self.prefix}{i}norm")(x)),)
        x = Linear(self.stoch * self.classes, dtype=self.dtype, name=f"{self.prefix}logit")(*inputs)
        return x.reshape(*x.shape[:-1], self.stoch, self.classes)
