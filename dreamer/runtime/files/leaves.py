"""Converts the leaves of a train state to and from their form on the disk, by name."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves by name, {"params/world_model/dyn/kernel": leaf}, in the order of the tree.

    Raises ValueError if two leaves have the same name.
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    if len(named) != len(paths):
        raise ValueError("two leaves of the state have the same name")
    return named


def crc_of(leaf: Any) -> int:
    """Returns the crc32 of the bytes of a leaf [..] from `to_storable` or from a checkpoint."""
    return zlib.crc32(np.asarray(leaf, order="C").reshape(-1).view(np.uint8).data)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_storable(name: str, leaf: Any) -> Any:
    """Converts a leaf of the state to the array [..] that Orbax saves. A typed PRNG key becomes its key data.

    name: the leaf's name in errors. Raises TypeError if the leaf is not an array, a typed PRNG key or a number.
    """
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and jax.process_count() == 1:
        return leaf
    array = np.asarray(leaf)  # Orbax copies it before `save` returns
    if array.dtype.kind not in "biufc" and array.dtype != jnp.bfloat16:
        raise TypeError(f"leaf {name} of the state is a {type(leaf).__name__}, not an array or a number")
    return array


def to_target(leaf: Any) -> Any:
    """Returns an object that tells Orbax the shape, the dtype and the place of a leaf to restore.

    It is a ShapeDtypeStruct with a sharding for a leaf on devices, and an uninitialized numpy array for a numpy leaf.
    """
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        if jax.process_count() > 1:  # Orbax refuses an array that only some processes hold
            return np.empty(leaf.shape, leaf.dtype)
        sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return np.empty_like(np.asarray(leaf))


def from_stored(value: Any, like: Any) -> Any:
    """Converts a leaf that Orbax has restored to the type of `like`: an array [..], a typed PRNG key or a number."""
    if _is_key(like):
        return jax.random.wrap_key_data(value, impl=jax.random.key_impl(jnp.empty((), like.dtype)))
    return value if hasattr(like, "dtype") else np.asarray(value).item()


def differences(stored: Mapping[str, tuple[tuple[int, ...], Any]], targets: Mapping[str, Any]) -> list[str]:
    """Returns one phrase for each leaf that differs between a checkpoint and the state of this config.

    stored: {name: (shape, dtype)} of the checkpoint | targets: {name: target} of the state, see `to_target`
    Leaves that both of them have come first.
    """
    found = []
    for name, target in targets.items():
        if name in stored:
            ours, theirs = (tuple(target.shape), np.dtype(target.dtype)), (stored[name][0], np.dtype(stored[name][1]))
            if ours != theirs:
                found.append(f"{name} is {_form(*theirs)} in the checkpoint, {_form(*ours)} in this config")
    found += [f"{name} is not in the checkpoint" for name in targets if name not in stored]
    found += [f"{name} is only in the checkpoint" for name in stored if name not in targets]
    return found


def _form(shape: tuple[int, ...], dtype: np.dtype) -> str:
    return f"{dtype.name}{list(shape)}"
