"""Computes norms and other sizes of a tree of arrays, with few GPU kernels."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
SMALL = 65_536  # numbers in an array; larger ones may be split over devices and are expensive to copy
ROW = 128  # row length of the matrix that holds the small arrays


def count(tree: Any) -> int:
    """Returns the number of elements in all leaves [..], for example the number of trainable parameters."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def norm(tree: Any) -> Array:
    """Returns the root [] float32 of the sum of the squares of all elements."""
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(x)) for x in _pieces(tree)])))


def rms(tree: Any) -> Array:
    """Returns the root [] float32 of the mean of the squares of all elements."""
    return norm(tree) / jnp.sqrt(jnp.float32(sum(x.size for x in jax.tree.leaves(tree))))


def largest(tree: Any) -> Array:
    """Returns the largest magnitude [] float32 of all elements."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in _pieces(tree)]))


def norms(tree: Any) -> Any:
    """Returns a tree with the norm [] float32 of each leaf. Small leaves are reduced together, in few GPU kernels."""
    leaves, structure = jax.tree.flatten(tree)
    small = [i for i, x in enumerate(leaves) if x.size < SMALL]
    found = {i: jnp.sum(jnp.square(x.astype(jnp.float32))) for i, x in enumerate(leaves) if x.size >= SMALL}
    if small:
        found |= zip(small, _sums_of_squares([leaves[i] for i in small]), strict=True)
    return jax.tree.unflatten(structure, [jnp.sqrt(found[i]) for i in range(len(leaves))])


def _sums_of_squares(leaves: list[Array]) -> Array:
    """Returns the sum of squares of each leaf: [L] float32 for L leaves, which fill rows of one zero-padded matrix."""
    vectors = [x.astype(jnp.float32).reshape(-1) for x in leaves]
    counts = [-(-x.size // ROW) for x in vectors]
    rows = jnp.concatenate([jnp.pad(x, (0, n * ROW - x.size)) for x, n in zip(vectors, counts, strict=True)])
    sums = jnp.append(jnp.sum(jnp.square(rows.reshape(-1, ROW)), -1), 0.0)
    last = np.cumsum(counts)[:, None]
    places = last - np.array(counts)[:, None] + np.arange(max(counts))
    return jnp.sum(sums[np.where(places < last, places, len(sums) - 1)], -1)


def _pieces(tree: Any) -> list[Array]:
    """Returns a few float32 arrays that hold all numbers of a tree.

    Small leaves are joined in one vector, so that a sum over dozens of biases is one kernel. Large leaves keep their
    shape, since flattening a leaf that is split over devices would gather it.
    """
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree)]
    small = [x.reshape(-1) for x in leaves if x.size < SMALL]
    return [*([jnp.concatenate(small)] if small else []), *(x for x in leaves if x.size >= SMALL)]
