"""Convolutions with strides, and transposed ones, as matrix products: images [N, H, W, C] without padding.

On CPUs, XLA's own gradients of these convolutions are several times slower, and inside a conditional about 20 times.
Parameters have the shapes and the initial values of flax's `Conv` and `ConvTranspose`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.nets.layers import add_bias

Array = jax.Array


class StridedConv(nn.Module):
    """Convolution without padding: [N, H, W, C] -> [N, h, w, features], h = (H - kernel) // stride + 1.

    kernel: its side in pixels, a multiple of stride
    """

    features: int
    kernel: int
    stride: int
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (self.kernel, self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return add_bias(convolve_strided(x.astype(self.dtype), kernel.astype(self.dtype), self.stride), bias)


class StridedConvTranspose(nn.Module):
    """Transposed convolution without padding: [N, h, w, C] -> [N, H, W, features], H = stride (h - 1) + kernel."""

    features: int
    kernel: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, self.features, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return add_bias(spread_strided(x.astype(self.dtype), kernel.astype(self.dtype), self.stride), bias)


def convolve_strided(x: Array, kernel: Array, stride: int) -> Array:
    """Convolves x [N, H, W, C] with a kernel [k, k, C, F] without padding -> [N, h, w, F].

    With blocks of stride x stride pixels as channels, it is a convolution with stride 1 whose kernel has n = k / stride
    blocks a side. The n^2 shifted images are joined as columns of one matrix.
    """
    (size, _, channels, features), (count, height, width, _) = kernel.shape, x.shape
    n = size // stride
    chex.assert_equal(n * stride, size)
    h, w = (height - size) // stride + 1, (width - size) // stride + 1
    rows, cols = h + n - 1, w + n - 1  # blocks
    x = x[:, : rows * stride, : cols * stride].reshape(count, rows, stride, cols, stride, channels)
    x = x.swapaxes(2, 3).reshape(count, rows, cols, stride * stride * channels)
    columns = jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(n) for j in range(n)], -1)
    kernel = kernel.reshape(n, stride, n, stride, channels, features).swapaxes(1, 2)
    return columns @ kernel.reshape(-1, features)


def spread_strided(x: Array, kernel: Array, stride: int) -> Array:
    """Adds the kernel [k, k, F, C] times each pixel of x [N, h, w, C], `stride` pixels apart -> [N, H, W, F].

    One matrix product multiplies all pixels by the kernel, which zeros extend to n x n blocks of stride x stride
    pixels. Block (i, j) of pixel (a, b) then belongs to block (a + i, b + j) of the result.
    """
    (size, _, features, channels), (count, h, w, _) = kernel.shape, x.shape
    n = -(-size // stride)
    kernel = jnp.pad(kernel, [(0, n * stride - size)] * 2 + [(0, 0)] * 2)
    y = x.reshape(-1, channels) @ kernel.reshape(-1, channels).T
    y = y.reshape(count, h, w, n, stride, n, stride * features)
    y = sum_shifted([y[:, :, :, i] for i in range(n)], 1)  # [N, rows, w, stride, n, stride F]
    y = sum_shifted([y[:, :, :, :, j] for j in range(n)], 2)  # [N, rows, cols, stride, stride F]
    rows, cols = h + n - 1, w + n - 1
    y = y.reshape(count, rows, cols, stride, stride, features).swapaxes(2, 3)
    y = y.reshape(count, rows * stride, cols * stride, features)
    return y[:, : stride * (h - 1) + size, : stride * (w - 1) + size]


def sum_shifted(parts: list[Array], axis: int) -> Array:
    """Returns the sum of the parts, part i shifted by i along the axis, which grows by their number less one."""
    last = len(parts) - 1
    padding = [[(i, last - i) if a == axis else (0, 0) for a in range(part.ndim)] for i, part in enumerate(parts)]
    padded = [jnp.pad(part, widths) for part, widths in zip(parts, padding, strict=True)]
    return sum(padded[1:], padded[0])
