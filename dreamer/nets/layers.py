"""Linear and block-linear layers, norms, and the MLP made of them. Source: DreamerV3, section 2 of its appendix.

Parameters are float32 and are cast to the compute dtype where they are used; norms are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def trunc_normal_in(fan_in: int, outscale: float = 1.0) -> Callable[..., Array]:
    """Returns an initialiser (key, shape, dtype) -> [*shape] that draws from a truncated normal distribution.

    A normal distribution is cut off at two standard deviations. The factor 1.1368 makes up for the cut, so that the
    standard deviation of the result is outscale / sqrt(fan_in).
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        scale = 1.1368 * outscale * math.sqrt(1 / fan_in)
        return scale * jax.random.truncated_normal(key, -2, 2, shape, dtype)

    return init


def add_bias(x: Array, bias: Array) -> Array:
    """Returns x [.., n] + bias [n] in the dtype of x."""
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class Linear(nn.Module):
    """The layer y = [x1, x2, ..] W + b over the last axis. `outscale` multiplies the kernel at initialisation only.

    Each input is multiplied by its own rows of W. If an input does not depend on the carry of a scan, `ops.scan` can
    compute its product for all steps before the loop.
    """

    features: int
    outscale: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *xs: Array) -> Array:
        widths = [x.shape[-1] for x in xs]
        kernel = self.param("kernel", trunc_normal_in(sum(widths), self.outscale), (sum(widths), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        *others, (x, rows) = zip(xs, jnp.split(kernel.astype(self.dtype), np.cumsum(widths[:-1])), strict=True)
        y = add_bias(x.astype(self.dtype) @ rows, bias)
        for x, rows in others:
            y = x.astype(self.dtype) @ rows + y
        return y


def to_blocks(x: Array, blocks: int) -> Array:
    """Splits the last axis into contiguous blocks, and flattens the others to N: [.., D] -> [blocks, N, D / blocks].

    With the block axis first, XLA's batched products and the maths between them run several times faster than with the
    block axis in the middle.
    """
    return x.reshape(-1, blocks, x.shape[-1] // blocks).swapaxes(0, 1)


def from_blocks(x: Array, lead: tuple[int, ...]) -> Array:
    """Inverts `to_blocks`: [blocks, N, n] -> [*lead, blocks * n]."""
    return x.swapaxes(0, 1).reshape(*lead, -1)


class BlockLinear(nn.Module):
    """An independent linear map of each block: [blocks, N, in / blocks] -> [blocks, N, features / blocks].

    With `shared` [N, s], the input of every block is its own part of x followed by all of `shared`. If `parts` is above
    1, the outputs of each block are split into a tuple of `parts` arrays, and `shared` must be None. The fan-in of the
    initialiser is the width of all blocks together, as in the reference implementation.
    """

    features: int
    dtype: Any = jnp.float32
    parts: int = 1

    @nn.compact
    def __call__(self, x: Array, shared: Array | None = None) -> Any:
        (blocks, _, own), extra = x.shape, 0 if shared is None else shared.shape[-1]
        out = self.features // blocks
        init = trunc_normal_in(blocks * (own + extra))
        kernel = self.param("kernel", init, (blocks, own + extra, out)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.parts > 1:
            # One product for each part: slicing one large result keeps XLA from vectorising later operations.
            kernels, biases = (jnp.split(w, self.parts, -1) for w in (kernel, bias.reshape(blocks, 1, out)))
            return tuple(x @ w + b for w, b in zip(kernels, biases, strict=True))
        y = x @ kernel[:, :own] + bias.reshape(blocks, 1, out)
        if shared is not None:
            # One dense product instead of a copy of `shared` for each block.
            dense = kernel[:, own:].swapaxes(0, 1).reshape(extra, self.features)
            y = y + to_blocks(shared.astype(self.dtype) @ dense, blocks)
        return y


class RMSNorm(nn.Module):
    """Returns x * rsqrt(mean(x^2) + 1e-4) * scale, with the mean over the last axis, computed in float32."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)).reshape((1,) * (x.ndim - 1) + (-1,))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-4) * scale
        return x.astype(self.dtype)


class BlockRMSNorm(nn.Module):
    """`RMSNorm` of x [blocks, N, n], with the mean over all blocks together (axes 0 and 2)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        blocks, _, own = x.shape
        scale = self.param("scale", nn.initializers.ones, (blocks * own,)).reshape(blocks, 1, own)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), (0, 2), keepdims=True) + 1e-4) * scale
        return x.astype(self.dtype)


class MLP(nn.Module):
    """Linear -> RMSNorm -> SiLU, repeated `layers` times: [.., n] -> [.., units]."""

    layers: int
    units: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = Linear(self.units, dtype=self.dtype, name=f"linear{i}")(x)
            x = nn.silu(RMSNorm(self.dtype, name=f"norm{i}")(x))
        return x
