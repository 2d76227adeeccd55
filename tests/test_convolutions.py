"""dreamer.nets.convolutions: the fast forms are equal to the plain ones."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.nets.convolutions import (
    convolve,
    convolve_and_pool,
    kernel_gradient,
    max_pool,
    plain_convolve,
    same,
    upsample,
    upsample_and_convolve,
)


def assert_same_values_and_gradients(fast, plain, shapes, key):
    """Fails unless two functions of arrays of these shapes agree in values and gradients."""
    *inputs, cotangent_key = jax.random.split(key, len(shapes) + 1)
    inputs = [jax.random.normal(k, shape) for k, shape in zip(inputs, shapes, strict=True)]
    expected, plain_back = jax.vjp(plain, *inputs)
    given, fast_back = jax.vjp(fast, *inputs)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)
    cotangent = jax.random.normal(cotangent_key, expected.shape)
    for ours, theirs in zip(fast_back(cotangent), plain_back(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", range(1, 7))
def test_convolve_has_the_gradients_of_the_plain_one(key: jax.Array, size: int):
    shapes = [(3, 6, 7, 2), (size, size, 2, 5)]
    assert_same_values_and_gradients(convolve, lambda x, k: plain_convolve(x, k, same(size)), shapes, key)


@pytest.mark.parametrize("channels", (3, 20))
@pytest.mark.parametrize("size", range(1, 7))
def test_convolve_and_pool_equals_both_in_turn(key: jax.Array, size: int, channels: int):
    shapes = [(2, 6, 8, channels), (size, size, channels, 3)]
    plain = lambda x, k: max_pool(plain_convolve(x, k, same(size)))  # noqa: E731
    assert_same_values_and_gradients(convolve_and_pool, plain, shapes, key)


@pytest.mark.parametrize("images", (1, 7, 12))
def test_kernel_gradient_takes_any_number_of_images(key: jax.Array, images: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dreamer.nets.convolutions.CHUNK_BYTES", 4 * 4 * 5 * 3 * 2 * 4)  # four images
    x, dy = jax.random.normal(key, (images, 4, 5, 2)), jax.random.normal(key, (images, 4, 5, 6))
    _, back = jax.vjp(lambda k: plain_convolve(x, k, (1, 1)), jnp.zeros((3, 3, 2, 6)))
    np.testing.assert_allclose(kernel_gradient(x, dy, size=3, padding=(1, 1)), back(dy)[0], rtol=1e-4, atol=1e-4)


def test_convolutions_are_mapped_over_seeds(key: jax.Array):
    x, kernels = jax.random.normal(key, (2, 4, 4, 3)), jax.random.normal(key, (3, 5, 5, 3, 2))
    grad = jax.grad(lambda k: jnp.sum(convolve_and_pool(x, k) ** 2))
    each = jnp.stack([grad(kernel) for kernel in kernels])
    np.testing.assert_allclose(jax.vmap(grad)(kernels), each, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", range(1, 7))
def test_upsample_and_convolve_equals_both_in_turn(key: jax.Array, size: int):
    shapes = [(2, 3, 4, 2), (size, size, 2, 3)]
    plain = lambda x, k: plain_convolve(upsample(x), k, same(size))  # noqa: E731
    assert_same_values_and_gradients(upsample_and_convolve, plain, shapes, key)


def test_upsample_repeats_each_pixel_twice_in_both_directions():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(upsample(x)[0, ..., 0], [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])


def test_upsample_and_convolve_takes_the_operations_of_four_small_kernels():
    x, weights = jnp.zeros((1, 16, 16, 8)), jnp.zeros((5, 5, 8, 8))
    plain = jax.jit(lambda x, w: convolve(upsample(x), w)).lower(x, weights).compile().cost_analysis()["flops"]
    fast = jax.jit(upsample_and_convolve).lower(x, weights).compile().cost_analysis()["flops"]
    assert fast / plain == pytest.approx(36 / 100, abs=0.06)


def test_max_pool_equals_the_reduction_over_windows_also_where_values_are_equal(key: jax.Array):
    x = jax.random.randint(key, (3, 8, 6, 2), 0, 3).astype(jnp.float32)
    plain, plain_back = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    fast, fast_back = jax.vjp(max_pool, x)
    cotangent = jax.random.normal(key, plain.shape)
    np.testing.assert_array_equal(fast, plain)
    np.testing.assert_array_equal(fast_back(cotangent), plain_back(cotangent))
