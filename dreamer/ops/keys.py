"""Random keys drawn by name, so that a new user of keys does not change the keys of the others."""

from __future__ import annotations

import zlib

import jax


def named_keys(key: jax.Array, *names: str) -> dict[str, jax.Array]:
    """Returns a key [] for each name. Each returned key depends only on `key` [] and its name."""
    return {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names}
