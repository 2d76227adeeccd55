"""Derives random keys from names, so that code with a new name does not change the keys of other code."""

from __future__ import annotations

import zlib

import jax


def named_keys(key: jax.Array, *names: str) -> dict[str, jax.Array]:
    """Returns {name: key []}. Each returned key depends only on `key` [] and its name."""
    return {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names}
