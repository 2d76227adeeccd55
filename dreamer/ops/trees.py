"""Sizes of a tree of arrays, worked out with few kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
SMALL = 65_536  # numbers in an array; larger ones may be split over devices, and a copy of them would count


def norm(tree: Any) -> Array:
    """The root of the sum of all squares -> [] float32."""
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(x)) for x in vectors(tree)])))


def rms(tree: Any) -> Array:
    """The root of the mean of all squares -> [] float32."""
    return norm(tree) / jnp.sqrt(jnp.float32(sum(x.size for x in jax.tree.leaves(tree))))


def largest(tree: Any) -> Array:
    """The largest magnitude -> [] float32."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in vectors(tree)]))


def vectors(tree: Any) -> list[Array]:
    """The leaves as vectors [n] float32, all small ones in one: a sum over dozens of biases is one kernel then."""
    leaves = [x.astype(jnp.float32).reshape(-1) for x in jax.tree.leaves(tree)]
    small = [x for x in leaves if x.size < SMALL]
    return [*([jnp.concatenate(small)] if small else []), *(x for x in leaves if x.size >= SMALL)]
