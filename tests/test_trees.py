"""Norms of trees of arrays equal those of their leaves, although few kernels compute them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.ops import trees


@pytest.fixture
def tree(key: jax.Array) -> Any:
    """Makes leaves with sizes around the limits of a row and of a small leaf."""
    shapes = {"scalar": (), "short": (trees.ROW - 1,), "row": (trees.ROW,), "long": (trees.ROW + 1,)}
    shapes |= {"matrix": (3, 5, 7), "large": (trees.SMALL,), "largest small": (trees.SMALL - 1,)}
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(k, shape) for (name, shape), k in zip(shapes.items(), keys, strict=True)}


def test_norms_are_those_of_each_leaf(tree):
    expected = {name: np.linalg.norm(np.asarray(x, np.float64).reshape(-1)) for name, x in tree.items()}
    found = trees.norms(tree)
    assert {x.dtype for x in found.values()} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_norms_of_large_leaves_alone(tree):
    large = [tree["large"], 2 * tree["large"]]
    np.testing.assert_allclose(trees.norms(large)[1], 2 * trees.norms(large)[0], rtol=1e-6)


def test_norms_of_halves_are_summed_in_float32(tree):
    ones = {"x": jnp.ones(5000, jnp.bfloat16)}
    np.testing.assert_allclose(trees.norms(ones)["x"], np.sqrt(5000), rtol=1e-6)


def test_norm_rms_and_largest_are_those_of_all_numbers(tree):
    every = np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in tree.values()])
    np.testing.assert_allclose(trees.norm(tree), np.linalg.norm(every), rtol=1e-6)
    np.testing.assert_allclose(trees.rms(tree), np.sqrt(np.mean(every**2)), rtol=1e-6)
    np.testing.assert_allclose(trees.largest(tree), np.abs(every).max(), rtol=1e-6)


@pytest.mark.parametrize("size", [trees.norm, trees.rms, trees.largest, trees.norms])
def test_a_leaf_that_devices_may_share_keeps_its_shape(size):
    shared = jax.ShapeDtypeStruct((2, trees.SMALL), jnp.bfloat16)
    taken = jax.make_jaxpr(size)([shared, jax.ShapeDtypeStruct((3, 5), jnp.float32)])
    shapes = {var.aval.shape for eqn in taken.eqns for var in eqn.outvars if var.aval.size >= trees.SMALL}
    assert shapes == {shared.shape}, taken
