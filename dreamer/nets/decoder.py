"""Decodes latents to observations: vectors through an MLP, images through convolutions. Source: DreamerV3, decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.interfaces import Network
from dreamer.nets.adapters import from_flax
from dreamer.nets.convolutions import Conv
from dreamer.nets.encoder import missing
from dreamer.nets.images import Group, from_unit, groups, to_unit
from dreamer.nets.layers import MLP, BlockLinear, Linear, RMSNorm, to_blocks
from dreamer.ops.distributions import symexp, symlog
from dreamer.spaces import Space

Array = jax.Array


class _Vectors(nn.Module):
    """One Linear layer for each key of the observation that is a vector."""

    sizes: tuple[tuple[str, int, str], ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        return {key: _Output(kind, width, self.dtype, name=key)(x) for key, width, kind in self.sizes}


class _Output(nn.Module):
    kind: str
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Linear(self.width, dtype=self.dtype, name=self.kind)(x)


class Decoder(nn.Module):
    """Decodes deter [.., D] and stoch [.., S, C] to {k: output}, float32.

    The output is raw [.., n] for a vector, and has values from 0 to 1 [.., H, W, C] for an image.
    """

    spaces: tuple[tuple[str, Space], ...]
    depth: int
    mults: tuple[int, ...]
    units: int
    layers: int
    kernel: int
    blocks: int
    dtype: Any

    @nn.compact
    def __call__(self, deter: Array, stoch: Array) -> dict[str, Array]:
        stoch = stoch.reshape(*stoch.shape[:-2], -1).astype(self.dtype)
        deter = deter.astype(self.dtype)
        vectors = [(k, space) for k, space in self.spaces if space.encoding.network == "MLP"]
        outs: dict[str, Array] = {}
        if vectors:
            x = MLP(self.layers, self.units, self.dtype, name="mlp")(jnp.concatenate([stoch, deter], -1))
            kinds = {"one-hot": "logits", "symlog": "pred"}
            sizes = tuple((k, space.width, kinds[space.encoding.target]) for k, space in vectors)
            outs |= _Vectors(sizes, self.dtype, name="vec")(x)
        for group in groups(dict(self.spaces), self.mults):
            outs |= self._images(deter, stoch, group)
        return {k: v.astype(jnp.float32) for k, v in outs.items()}

    def _images(self, deter: Array, stoch: Array, group: Group) -> dict[str, Array]:
        x = self._start_grid(deter, stoch, group)
        for i in reversed(range(len(group.mults) - 1)):
            name = f"{group.prefix}conv{i}"
            x = Conv(self.depth * group.mults[i], self.kernel, self.dtype, upsampled=True, name=name)(x)
            x = nn.silu(RMSNorm(self.dtype, name=f"{name}norm")(x))
        spaces = dict(self.spaces)
        channels = [spaces[key].shape[-1] for key in group.keys]
        last = Conv(sum(channels), self.kernel, self.dtype, upsampled=bool(group.mults), name=f"{group.prefix}imgout")
        x = jax.nn.sigmoid(last(x))[..., : group.height, : group.width, :]
        starts = [sum(channels[:i]) for i in range(len(channels))]
        return {k: x[..., s : s + n] for k, s, n in zip(group.keys, starts, channels, strict=True)}

    def _start_grid(self, deter: Array, stoch: Array, group: Group) -> Array:
        (height, width), channels = group.grid, self.depth * self.mults[-1]
        lead, prefix = deter.shape[:-1], group.prefix
        x0 = BlockLinear(height * width * channels, self.dtype, name=f"{prefix}sp0")(to_blocks(deter, self.blocks))
        # Each block of deter fills its own slice of the channels.
        x0 = x0.reshape(self.blocks, -1, height, width, channels // self.blocks)
        x0 = jnp.moveaxis(x0, 0, -2).reshape(*lead, height, width, channels)
        x1 = Linear(2 * self.units, dtype=self.dtype, name=f"{prefix}sp1")(stoch)
        x1 = nn.silu(RMSNorm(self.dtype, name=f"{prefix}sp1norm")(x1))
        x1 = Linear(height * width * channels, dtype=self.dtype, name=f"{prefix}sp2")(x1).reshape(x0.shape)
        return nn.silu(RMSNorm(self.dtype, name=f"{prefix}spnorm")(x0 + x1))


def reconstruction_loss(space: Space, out: Array, target: Array) -> Array:
    """Returns the loss [..] of the output `out` for one key and its target [.., *space.shape], summed over space.shape.

    Images have the squared error of values from 0 to 1, continuous vectors the squared error in symlog space, and
    discrete values the cross-entropy. Missing values (`encoder.missing`) have loss 0.
    """
    lead = target.shape[: target.ndim - len(space.shape)]
    if space.encoding.target == "unit":
        return jnp.sum(jnp.square(out - to_unit(space, target)), (-3, -2, -1))
    gone = missing(space, target)
    if space.classes is not None:
        logits = out.reshape(*lead, -1, space.classes)
        labels = jax.nn.one_hot(target.reshape(*lead, -1), space.classes)
        return jnp.where(gone, 0.0, -jnp.sum(labels * jax.nn.log_softmax(logits), (-2, -1)))
    target = target.astype(jnp.float32).reshape(*lead, -1)
    error = jnp.square(out - symlog(jnp.where(jnp.isneginf(target), 0.0, target)))
    return jnp.where(gone, 0.0, jnp.sum(error, -1))


def to_observation(space: Space, out: Array) -> Array:
    """Converts the output for one key to the units of the observation [.., *space.shape]. Classes become int32."""
    if space.encoding.target == "unit":
        return from_unit(space, out)
    lead = out.shape[:-1]
    if space.encoding.target == "one-hot":
        return jnp.argmax(out.reshape(*lead, *space.shape, space.classes), -1).astype(jnp.int32)
    return symexp(out).reshape(*lead, *space.shape)


def make(
    spaces: Mapping[str, Space], *, depth: int, mults: Sequence[int], units: int, layers: int, kernel: int,
    blocks: int, dtype: Any,
) -> Network:  # fmt: skip
    """Returns the default decoder.

    init(key, deter, stoch) -> params | apply(params, deter [.., D], stoch [.., S, C]) -> {k: output}, as in `Decoder`

    Raises UserError when there are images and the blocks do not divide the channels of the first layer.
    """
    if any(space.image for space in spaces.values()) and (channels := depth * mults[-1]) % blocks:
        raise UserError(
            f"with images, agent.world_model.depth times the last of mults must be a multiple of blocks "
            f"({blocks}), not {channels}"
        )
    fixed = tuple(sorted(spaces.items()))
    return from_flax(Decoder(fixed, depth, tuple(mults), units, layers, kernel, blocks, dtype))
