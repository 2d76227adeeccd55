"""Convolution, pooling and upsampling of images [.., H, W, C]. Source: DreamerV3, encoder and decoder."""

from __future__ import annotations

import functools
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

    pooled: apply `max_pool` after the convolution, so that the output is [.., H/2, W/2, features].
    upsampled: apply `upsample` before the convolution, so that the output is [.., 2H, 2W, features].
    """

    features: int
    kernel: int
    dtype: Any = jnp.float32
    pooled: bool = False
    upsampled: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", trunc_normal_in(math.prod(shape[:3])), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        flat = x.astype(self.dtype).reshape(-1, *x.shape[-3:])
        y = (convolve_and_pool if self.pooled else upsample_and_convolve if self.upsampled else convolve)(flat, kernel)
        # Also valid after pooling: adding the same bias to all does not change which one is the largest.
        return add_bias(y.reshape(*x.shape[:-3], *y.shape[1:]), bias)


def same(size: int) -> tuple[int, int]:
    """Returns the padding (before, after) with which a convolution keeps the size of its input. size: of the kernel."""
    return (size - 1) // 2, size // 2


def convolve(x: Array, kernel: Array, padding: tuple[int, int] | None = None) -> Array:
    """Convolves x [N, H, W, C] with a kernel [k, k, C, F] -> [N, H, W, F], in the dtype of x.

    padding: (before, after), for rows and for columns; before + after = k - 1. None: the padding of `same`.
    """
    return _convolve(x, kernel.astype(x.dtype), padding or same(kernel.shape[0]))


def plain_convolve(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    """Like `convolve`, but XLA's convolution also computes the gradients: [N, H, W, C] -> [N, H, W, F]."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [padding] * 2, dimension_numbers=layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    return plain_convolve(x, kernel, padding)


def _convolve_forward(x: Array, kernel: Array, padding: tuple[int, int]) -> tuple[Array, tuple[Array, Array]]:
    return plain_convolve(x, kernel, padding), (x, kernel)


def _convolve_backward(padding: tuple[int, int], kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept

    def by_xla(x: Array, dy: Array) -> Array:
        return jax.vjp(lambda k: plain_convolve(x, k, padding), jnp.zeros_like(kernel))[1](dy)[0]

    by_products = functools.partial(kernel_gradient, size=kernel.shape[0], padding=padding)
    dkernel = jax.lax.platform_dependent(x, dy, cpu=by_products, default=by_xla)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return plain_convolve(dy, flipped, (padding[1], padding[0])), dkernel


_convolve.defvjp(_convolve_forward, _convolve_backward)

CHUNK_BYTES = 2**21  # the most bytes of the columns in `kernel_gradient`; about the size of a core's second-level cache


def kernel_gradient(x: Array, dy: Array, *, size: int, padding: tuple[int, int]) -> Array:
    """Computes the gradient of a convolution's kernel: x [N, H, W, C], dy [N, H, W, F] -> [k, k, C, F]. size: k.

    d kernel[u, v] = sum over n, i, j of x[n, i + u, j + v] dy[n, i, j], for the padded x. The shifted x of all v are
    joined as columns of one matrix, so that each u needs only one matrix product. The function processes a few images
    at a time, so that the columns stay in the cache. On CPUs it is two to five times as fast as XLA's convolution,
    whose window is the whole image.
    """
    n, h, w, channels = x.shape
    features = dy.shape[-1]
    fits = max(1, CHUNK_BYTES // (4 * h * w * size * channels))
    chunk = max(d for d in range(1, min(n, fits) + 1) if n % d == 0)

    def add(total: Array, images: tuple[Array, Array]) -> tuple[Array, None]:
        x, dy = images
        x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
        columns = jnp.concatenate([x[:, :, v : v + w] for v in range(size)], -1)
        dy = dy.reshape(-1, features)
        # The narrow side comes first: a product with few columns is several times slower than one with few rows.
        rows = [dy.T @ columns[:, u : u + h].reshape(-1, size * channels) for u in range(size)]
        return total + jnp.stack(rows), None

    parts = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), (x, dy))
    total, _ = jax.lax.scan(add, jnp.zeros((size, features, size * channels), x.dtype), parts)
    return total.swapaxes(1, 2).reshape(size, size, channels, features)


WIDEN_BELOW = 17  # input channels


def convolve_and_pool(x: Array, kernel: Array) -> Array:
    """Computes `max_pool(convolve(x, kernel))`: [N, H, W, C] -> [N, H/2, W/2, F].

    With few channels C, a convolution of 2x2 blocks gives the same result faster: the four pixels of a block become
    4 C channels, and its four outputs 4 F features. Entry u of the kernel, counted from its centre, connects the output
    at 2i + a with the pixel at 2i + a + u. This is pixel (a + u) mod 2 of block i + floor((a + u) / 2). A 5x5 kernel
    becomes a 3x3 kernel of blocks. Each block needs 144 products instead of 100 for each pair of a channel and a
    feature, but the numbers to pool lie side by side.
    """
    if x.shape[-1] >= WIDEN_BELOW:
        return max_pool(convolve(x, kernel))
    (size, _, channels, features), (n, h, w, _) = kernel.shape, x.shape
    seen = np.arange(2)[:, None] + np.arange(size) - same(size)[0]
    first, last = seen.min() // 2, seen.max() // 2
    blocks, pixels = np.arange(first, last + 1), np.arange(2)
    at = (seen[..., None, None] // 2 == blocks[:, None]) & (seen[..., None, None] % 2 == pixels)
    wide = jnp.einsum("aurp,bvsq,uvcf->rspqcabf", at.astype(np.float32), at.astype(np.float32), kernel)
    x = x.reshape(n, h // 2, 2, w // 2, 2, channels).swapaxes(2, 3).reshape(n, h // 2, w // 2, 4 * channels)
    y = convolve(x, wide.reshape(len(blocks), len(blocks), 4 * channels, 4 * features), (-int(first), int(last)))
    (a, b), (c, d) = (jnp.split(row, 2, -1) for row in jnp.split(y, 2, -1))
    return larger(larger(a, b), larger(c, d))


def upsample_and_convolve(x: Array, kernel: Array) -> Array:
    """Computes `convolve(upsample(x), kernel)` with fewer operations: [N, H, W, C] -> [N, 2H, 2W, F].

    Entry u of the kernel, counted from its centre, connects the output at 2i + a with the input at
    i + floor((a + u) / 2). Several entries therefore connect an output with the same input. The sums of such entries
    form four small kernels, one for each parity (a, b) of the output's row and column. A 5x5 kernel becomes four 3x3
    kernels. A 2x2 block of outputs then needs 36 products instead of 100 for each pair of a channel and a feature.
    """
    size, features = kernel.shape[0], kernel.shape[-1]
    source = (np.arange(2)[:, None] + np.arange(size) - same(size)[0]) // 2
    first, last = int(source.min()), int(source.max())
    sums = (source[:, None, :] == np.arange(first, last + 1)[:, None]).astype(np.float32)
    kernels = jnp.einsum("aru,bsv,uvcf->rscabf", sums, sums, kernel)
    y = convolve(x, kernels.reshape(*kernels.shape[:3], -1), (-first, last))
    n, h, w = y.shape[:3]
    return y.reshape(n, h, w, 2, 2, features).swapaxes(2, 3).reshape(n, 2 * h, 2 * w, features)


def upsample(x: Array) -> Array:
    """Doubles the size of images by repeating each pixel: [.., H, W, C] -> [.., 2H, 2W, C]."""
    h, w, c = x.shape[-3:]
    x = jnp.broadcast_to(x[..., :, None, :, None, :], (*x.shape[:-3], h, 2, w, 2, c))
    return x.reshape(*x.shape[:-5], 2 * h, 2 * w, c)


def max_pool(x: Array) -> Array:
    """Takes the maxima of 2x2 blocks: [.., H, W, C] -> [.., H/2, W/2, C].

    The first of equal numbers receives the gradient. The function makes two comparisons, because the gradient
    of a window reduction is several times slower on CPUs.
    """
    h, w, c = x.shape[-3:]
    x = x.reshape(*x.shape[:-3], h // 2, 2, w // 2, 2, c)
    x = larger(x[..., 0, :], x[..., 1, :])
    return larger(x[..., 0, :, :], x[..., 1, :, :])


def larger(a: Array, b: Array) -> Array:
    """Returns the elementwise maximum [..] of a [..] and b [..]. Where they are equal, `a` receives the gradient."""
    return jnp.where(a >= b, a, b)
