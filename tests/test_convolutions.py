"""dreamer.nets.convolutions: the fast forms equal the plain ones."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.nets.convolutions import convolve, max_pool, upsample, upsample_and_convolve


@pytest.mark.parametrize("size", range(1, 7))
def test_upsample_and_convolve_equals_both_in_turn(key: jax.Array, size: int):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (2, 3, 4, 2))
    kernel = jax.random.normal(keys[1], (size, size, 2, 3))
    cotangent = jax.random.normal(keys[2], (2, 6, 8, 3))
    plain, plain_back = jax.vjp(lambda x, kernel: convolve(upsample(x), kernel), x, kernel)
    fast, fast_back = jax.vjp(upsample_and_convolve, x, kernel)
    np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(fast_back(cotangent), plain_back(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


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
