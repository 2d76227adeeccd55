"""The convolutional variational autoencoder V of World Models (Ha and Schmidhuber 2018), for images of 64 x 64.

Four convolutions without padding halve the image to 2 x 2; four transposed ones double a vector back to 64 x 64.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamer.nets.layers import Linear
from dreamer.nets.strided import StridedConv, StridedConvTranspose

Array = jax.Array
SIDE = 64  # pixels: the only size that the kernels below bring back
KERNELS = (5, 5, 6, 6)  # of the decoder, from the vector to the image


class Encoder(nn.Module):
    """image [.., 64, 64, n] from 0 to 1 -> mean and log-variance of z, each [.., Z] float32.

    channels: of the four convolutions, from the image on | size: Z
    """

    channels: tuple[int, ...]
    size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, Array]:
        x = image.reshape(-1, *image.shape[-3:]).astype(self.dtype)
        for i, channels in enumerate(self.channels):
            x = nn.relu(StridedConv(channels, 4, 2, self.dtype, name=f"conv{i}")(x))
        x = x.reshape(*image.shape[:-3], -1)
        mean, log_var = (Linear(self.size, dtype=self.dtype, name=name)(x) for name in ("mean", "log_var"))
        return mean.astype(jnp.float32), log_var.astype(jnp.float32)


class Decoder(nn.Module):
    """z [.., Z] -> image [.., 64, 64, n] float32 from 0 to 1. channels: those of the encoder | images: n"""

    channels: tuple[int, ...]
    images: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array) -> Array:
        *inner, last = self.channels
        x = Linear(4 * last, dtype=self.dtype, name="linear")(z.reshape(-1, z.shape[-1]))
        x = x.reshape(-1, 1, 1, 4 * last)
        for i, (channels, kernel) in enumerate(zip((*inner[::-1], self.images), KERNELS, strict=True)):
            x = x if i == 0 else nn.relu(x)
            x = StridedConvTranspose(channels, kernel, 2, self.dtype, name=f"conv{i}")(x)
        return nn.sigmoid(x.astype(jnp.float32)).reshape(*z.shape[:-1], *x.shape[-3:])


def draw(mean: Array, log_var: Array, noise: Array) -> Array:
    """Returns z [.., Z] = mean + exp(log_var / 2) * noise."""
    return mean + jnp.exp(0.5 * log_var) * noise


def kl_divergence(mean: Array, log_var: Array) -> Array:
    """Returns KL(N(mean, exp(log_var)) || N(0, 1)) [..] in nats, summed over Z."""
    return -0.5 * jnp.sum(1 + log_var - jnp.square(mean) - jnp.exp(log_var), -1)
