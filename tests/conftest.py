"""Strict switches for every test: warnings are errors (setup.cfg), rank promotion is an error, 64 bits stay off."""

from __future__ import annotations

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_x64", False)


@pytest.fixture
def key() -> jax.Array:
    """A random key, the same in every run."""
    return jax.random.key(0)
