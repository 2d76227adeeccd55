"""The recurrent network M of World Models (Ha and Schmidhuber 2018): an LSTM whose output is a mixture density."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.interfaces import Network, Params
from dreamer.nets.layers import Linear
from dreamer.ops import distributions, mixture
from dreamer.ops.mixture import Mixture
from dreamer.ops.scan import scan_time

Array = jax.Array
FORGET = 1.0  # added to the forget gate inside the sigmoid
DONE_WEIGHT = 10.0  # of the last row of an episode in the loss of the done logit


class Memory(NamedTuple):
    """The state of an LSTM. hidden, cell [.., H] float32"""

    hidden: Array
    cell: Array


class Prediction(NamedTuple):
    """What M predicts of the next row. z: a Mixture [.., Z, K] | done [.., 1]: a logit; [.., 0] without one"""

    z: Mixture
    done: Array


class LSTM(nn.Module):
    """Memory [N, H], inputs [N, ..] -> Memory after the inputs.

    [i, j, f, o] = [inputs, h] W + b; c' = sigmoid(f + 1) c + sigmoid(i) tanh(j); h' = sigmoid(o) tanh(c')
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, memory: Memory, *inputs: Array) -> Memory:
        width = memory.hidden.shape[-1]
        gates = Linear(4 * width, dtype=self.dtype, name="gates")(*inputs, memory.hidden).astype(jnp.float32)
        i, j, f, o = jnp.split(gates, 4, -1)
        cell = nn.sigmoid(f + FORGET) * memory.cell + nn.sigmoid(i) * jnp.tanh(j)
        return Memory(nn.sigmoid(o) * jnp.tanh(cell), cell)


class Output(nn.Module):
    """hidden [.., H] -> Prediction. size: Z | components: K | done: whether there is a done logit, the first output"""

    size: int
    components: int
    done: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Array) -> Prediction:
        outs = Linear(self.size * 3 * self.components + self.done, dtype=self.dtype, name="out")(hidden)
        outs = outs.astype(jnp.float32)
        return Prediction(mixture.from_outputs(outs[..., int(self.done) :], self.components), outs[..., : self.done])


def read(
    lstm: Network, params: Params, memory: Memory, inputs: tuple[Array, ...], reset: Array, fed: bool = False
) -> tuple[Memory, Memory]:
    """Reads inputs [B, T, ..], and returns the last Memory [B, H] and all of them [B, T, H], each after its input.

    reset [B, T] bool: before which inputs the memory is cleared. fed: put back the given memory in place of zeros,
    which is what the source does: its zero state and the state fed for a sequence are one tensor.
    """
    cleared = memory if fed else jax.tree.map(jnp.zeros_like, memory)

    def step(before: Memory, row: tuple[Array, ...]) -> tuple[Memory, Memory]:
        *parts, reset = row
        kept = jax.tree.map(lambda old, new: jnp.where(reset[:, None], new, old), before, cleared)
        after = lstm.apply(params, kept, *parts)
        return after, after

    return scan_time(step, memory, (*inputs, reset))


def done_loss(logit: Array, done: Array) -> Array:
    """Returns the binary cross-entropy [..], 10 times as heavy where done [..] is 1."""
    done = done.astype(jnp.float32)
    return (1 + (DONE_WEIGHT - 1) * done) * distributions.bernoulli_loss(logit, done)
