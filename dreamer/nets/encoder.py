"""Encodes observations as tokens: vectors through an MLP, images through convolutions. Source: DreamerV3, encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.interfaces import Network
from dreamer.nets.adapters import from_flax
from dreamer.nets.convolutions import Conv
from dreamer.nets.images import Group, groups, to_unit
from dreamer.nets.layers import Linear, RMSNorm
from dreamer.ops.distributions import symlog
from dreamer.spaces import CENTRE, Space

Array = jax.Array


def concat_vectors(spaces: Mapping[str, Space], obs: Mapping[str, Array], use_symlog: bool) -> Array:
    """Joins the vectors in `obs`, sorted by key, in one float32 vector [.., n]: classes as one-hots, numbers in symlog.

    Missing values (`missing`) become 0. use_symlog: False leaves the numbers unchanged.
    """
    parts = []
    for key in sorted(k for k, space in spaces.items() if space.encoding.network == "MLP"):
        space, x = spaces[key], obs[key]
        lead = x.shape[: x.ndim - len(space.shape)]
        flat = x.reshape(*lead, -1)
        if space.classes is not None:
            value = jax.nn.one_hot(flat, space.classes).reshape(*lead, -1)
        else:
            # Inside the where, so that the gradient of a missing value is 0 and not nan.
            value = jnp.where(jnp.isneginf(flat), 0.0, flat.astype(jnp.float32))
            value = symlog(value) if use_symlog else value
        parts.append(jnp.where(missing(space, x)[..., None], 0.0, value))
    return jnp.concatenate(parts, -1)


def missing(space: Space, x: Array) -> Array:
    """Whether each value of x [.., *space.shape] is missing -> [..] bool.

    A value is missing if any of its elements is -inf (numbers) or -1 (classes, which the agent counts from 0).
    """
    flat = x.reshape(*x.shape[: x.ndim - len(space.shape)], -1)
    return jnp.any(flat == -1 if space.discrete else jnp.isneginf(flat.astype(jnp.float32)), -1)


class Encoder(nn.Module):
    """Encodes obs {k: [.., *shape]} as tokens [.., E]: features of vectors [units], then of images [h * w * c]."""

    spaces: tuple[tuple[str, Space], ...]
    depth: int
    mults: tuple[int, ...]
    units: int
    layers: int
    kernel: int
    symlog: bool
    dtype: Any

    @nn.compact
    def __call__(self, obs: Mapping[str, Array]) -> Array:
        spaces = dict(self.spaces)
        tokens = []
        if any(space.encoding.network == "MLP" for space in spaces.values()):
            tokens.append(self._vectors(concat_vectors(spaces, obs, self.symlog)))
        for group in groups(spaces, self.mults):
            units = [to_unit(spaces[k], obs[k], self.dtype) for k in group.keys]
            tokens.append(self._images(group, jnp.concatenate(units, -1) - CENTRE))
        return jnp.concatenate(tokens, -1)

    def _vectors(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        for i in range(self.layers):
            x = Linear(self.units, dtype=self.dtype, name=f"mlp{i}")(x)
            x = nn.silu(RMSNorm(self.dtype, name=f"mlp{i}norm")(x))
        return x

    def _images(self, group: Group, x: Array) -> Array:
        (height, width), lead = group.padded, [(0, 0)] * (x.ndim - 3)
        if (height, width) != x.shape[-3:-1]:
            x = jnp.pad(x, [*lead, (0, height - x.shape[-3]), (0, width - x.shape[-2]), (0, 0)])
        for i, mult in enumerate(group.mults):
            name = f"{group.prefix}cnn{i}"
            x = Conv(self.depth * mult, self.kernel, self.dtype, pooled=True, name=name)(x)
            x = nn.silu(RMSNorm(self.dtype, name=f"{name}norm")(x))
        return x.reshape(*x.shape[:-3], -1)


def make(
    spaces: Mapping[str, Space], *, depth: int, mults: Sequence[int], units: int, layers: int, kernel: int,
    symlog: bool, dtype: Any,
) -> Network:  # fmt: skip
    """Returns the default encoder: init(key, obs), apply(params, obs {k: [.., *shape]}) -> tokens [.., E]."""
    fixed = tuple(sorted(spaces.items()))
    return from_flax(Encoder(fixed, depth, tuple(mults), units, layers, kernel, symlog, dtype))
