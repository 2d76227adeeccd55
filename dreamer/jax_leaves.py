"""The leaves of an env_state in JAX as plain arrays, for checkpoints."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def to_plain(leaf: Any) -> np.ndarray:
    """Returns a leaf of an env_state as an array in a dtype of numpy itself, for a checkpoint.

    A random key becomes its numbers; bfloat16 and the like become bytes, in a last axis.
    """
    array = np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return array if array.dtype.isbuiltin == 1 else array[..., None].view(np.uint8)


def from_plain(form: Any, array: np.ndarray) -> Any:
    """Returns the leaf of an env_state from its array of `to_plain`. form: the leaf, or its shape and dtype.

    Raises ValueError if the array has another form.
    """
    if is_key(form):
        leaf = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(jnp.empty((), form.dtype)))
    else:
        builtin = np.dtype(form.dtype).isbuiltin == 1
        leaf = np.asarray(array) if builtin else np.ascontiguousarray(array).view(form.dtype)[..., 0]
    if (leaf.shape, leaf.dtype) != (form.shape, form.dtype):
        wanted = f"{form.dtype} {list(form.shape)}"
        raise ValueError(f"a leaf of the env_state is {leaf.dtype} {list(leaf.shape)}, it must be {wanted}")
    return leaf


def is_key(x: Any) -> bool:
    """Whether `x` is an array of random keys, or the form of one."""
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
