"""Convolution, pooling and upsampling of images [.., H, W, C]. Source: DreamerV3, encoder and decoder."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamer.nets.layers import add_bias, trunc_normal_in

Array = jax.Array


class Conv(nn.Module):
    """Convolution, stride 1, padding SAME: [.., H, W, C] -> [.., H, W, features].

    With `upsampled`, the convolution of `upsample(x)`: [.., H, W, C] -> [.., 2H, 2W, features].
    """

    features: int
    kernel: int
    dtype: Any = jnp.float32
    upsampled: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", trunc_normal_in(math.prod(shape[:3])), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        flat = x.astype(self.dtype).reshape(-1, *x.shape[-3:])
        y = (upsample_and_convolve if self.upsampled else convolve)(flat, kernel)
        return add_bias(y.reshape(*x.shape[:-3], *y.shape[1:]), bias)


def convolve(x: Array, kernel: Array, padding: Any = "SAME") -> Array:
    """[N, H, W, C] with kernel [k, k, C, F] -> [N, H, W, F], in the dtype of x."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), padding, dimension_numbers=layout)


def upsample_and_convolve(x: Array, kernel: Array) -> Array:
    """`convolve(upsample(x), kernel)` with fewer operations: [N, H, W, C] -> [N, 2H, 2W, F].

    The output at 2i + a sees, through tap u, the input at i + floor((a + u) / 2): several taps see the same input.
    Adding them up leaves four small kernels, one for each parity (a, b) of the output's row and column; a 5x5 kernel
    becomes four of 3x3, with 36 products in place of 100.
    """
    size, features = kernel.shape[0], kernel.shape[-1]
    taps = np.arange(size) - (size - 1) // 2
    source = (np.arange(2)[:, None] + taps) // 2
    first, last = source.min(), source.max()
    sums = (source[:, None, :] == np.arange(first, last + 1)[:, None]).astype(np.float32)
    kernels = jnp.einsum("aru,bsv,uvcf->rscabf", sums, sums, kernel)
    y = convolve(x, kernels.reshape(*kernels.shape[:3], -1), [(-first, last)] * 2)
    n, h, w = y.shape[:3]
    return y.reshape(n, h, w, 2, 2, features).swapaxes(2, 3).reshape(n, 2 * h, 2 * w, features)


def upsample(x: Array) -> Array:
    """Nearest neighbour: [.., H, W, C] -> [.., 2H, 2W, C]."""
    h, w, c = x.shape[-3:]
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*x.shape[:-3], h, 2, w, 2, c))
    return x.reshape(*x.shape[:-5], 2 * h, 2 * w, c)


def max_pool(x: Array) -> Array:
    """2x2 maxima: [.., H, W, C] -> [.., H/2, W/2, C]; the first of equal ones takes the gradient.

    Two comparisons instead of a window reduction, whose gradient is several times slower on CPUs.
    """
    h, w, c = x.shape[-3:]
    x = x.reshape(*x.shape[:-3], h // 2, 2, w // 2, 2, c)
    x = jnp.where(x[..., 0, :] >= x[..., 1, :], x[..., 0, :], x[..., 1, :])
    return jnp.where(x[..., 0, :, :] >= x[..., 1, :, :], x[..., 0, :, :], x[..., 1, :, :])
