"""dreamer.nets.convolutions: the fast forms equal the plain ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.nets.convolutions import convolve, upsample, upsample_and_convolve

SIDES = st.integers(1, 4)


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_upsample_and_convolve_equals_both_in_turn(height, width, kernel, channels, features, seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (2, height, width, channels))
    weights = jax.random.normal(keys[1], (kernel, kernel, channels, features))
    cotangent = jax.random.normal(keys[2], (2, 2 * height, 2 * width, features))
    plain, plain_back = jax.vjp(lambda x, w: convolve(upsample(x), w), x, weights)
    fast, fast_back = jax.vjp(upsample_and_convolve, x, weights)
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
