"""Random keys drawn by name, so that a new consumer does not change any other stream."""

from __future__ import annotations

import zlib

import jax


def named_keys(key: jax.Array, *names: str) -> dict[str, jax.Array]:
    """One key [] for each name, depending only on `key` [] and that name."""
    return {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in names}
