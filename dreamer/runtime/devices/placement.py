"""Places the train state and batches on devices, and copies them between devices and to the host."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from dreamer.interfaces import Array
from dreamer.runtime.devices.mesh import AXES, make_mesh, own

SMALLEST_SPLIT = 2**16  # numbers in a leaf; splitting a smaller leaf costs more communication than it saves memory


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis of a batch over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def split_each(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches [n, B, ..] that splits the axis B over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, AXES))


def state_sharding(mesh: Mesh, form: Any) -> Any:
    """Returns the sharding of a train state: one for all leaves, or a tree with one for each leaf.

    form: the train state, or a tree of its shapes. The result is a tree like `form` if the mesh axis `fsdp` is longer
    than 1. A leaf of SMALLEST_SPLIT numbers or more is then split along its longest axis that is a multiple of fsdp.
    The other leaves are replicated.
    """
    if mesh.shape["fsdp"] == 1:
        return replicated(mesh)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _leaf_spec(leaf.shape, mesh.shape["fsdp"])), form)


def _leaf_spec(shape: tuple[int, ...], parts: int) -> PartitionSpec:
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if math.prod(shape) < SMALLEST_SPLIT or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, "fsdp")


def place_state(mesh: Mesh, state: Any) -> Any:
    """Places a train state on the mesh, with the sharding that `jit_update` expects.

    state: the train state, on any devices or on the host. All processes must pass the same state.
    """
    places = state_sharding(mesh, state)
    if jax.process_count() == 1:
        return jax.device_put(state, places)
    places = places if mesh.shape["fsdp"] > 1 else jax.tree.map(lambda _: places, state)
    return jax.tree.map(_of_all_processes, state, places)


def _of_all_processes(x: Any, place: NamedSharding) -> Array:
    """Makes a global array from `x`, which must be equal in all processes. Each process fills its own devices."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    return _joined(jax.device_put(x, _own_part(place)), place)


def _own_part(place: Any) -> NamedSharding:
    """Returns the sharding `place`, restricted to the devices of this process."""
    return NamedSharding(make_mesh(own(place.mesh), place.mesh.shape["fsdp"]), place.spec)


def _joined(x: Array, place: NamedSharding) -> Array:
    return jax.make_array_from_single_device_arrays(x.shape, place, [shard.data for shard in x.addressable_shards])


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Places the batch of this process on its devices, as its part of the global batch. Any thread may call this.

    A batch that is placed already is returned as it is.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, split(mesh))
    return jax.tree.map(lambda x: _part_of_batch(split(mesh), x), batch)


def _part_of_batch(place: NamedSharding, x: Any) -> Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    return jax.make_array_from_process_local_data(place, x)


def local_copy(tree: Any) -> Any:
    """Returns the same arrays, restricted to the devices of this process. Copies and transfers no data.

    Each process can save or read the result by itself. With one process, the tree is returned unchanged.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(_on_own_devices, tree)


def _on_own_devices(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x
    return _joined(x, _own_part(x.sharding))


@functools.cache
def _gather(mesh: Mesh) -> Callable[[list[Array]], list[Array]]:
    return jax.jit(lambda leaves: leaves, out_shardings=replicated(mesh))


def whole(tree: Any) -> Any:
    """Returns the tree with its split leaves gathered, so that each device of this process has them complete."""
    leaves, form = jax.tree.flatten(local_copy(tree))
    parts = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.sharding.is_fully_replicated]
    if parts:
        place: Any = leaves[parts[0]].sharding
        gathered = _gather(place.mesh)([leaves[i] for i in parts])
        for i, x in zip(parts, gathered, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(form, leaves)


def first_copy(tree: Any, device: jax.Device | None = None) -> Any:
    """Returns a copy of a tree on one device of this process; None: the first one.

    The copy shares no buffer with `tree`, so that `tree` may be donated afterwards.
    """
    device = device or jax.local_devices()[0]
    leaves, form = jax.tree.flatten(whole(tree))
    there = {i: part for i, x in enumerate(leaves) if (part := _part_on(device, x)) is not None}
    # The part of an array of a mesh has a type that names the mesh, for which programs would be compiled again.
    there = jax.device_put(there, SingleDeviceSharding(device))
    there = _copies(device)(there)  # one call instead of one per leaf
    # `device_put` would not copy an array of several devices to one of these, whatever `may_alias` is.
    copies = [there[i] if i in there else jax.device_put(x, device, may_alias=False) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(form, copies)


def _part_on(device: jax.Device, x: Any) -> Array | None:
    """Returns the part of a replicated array on a device; None: the array is not there."""
    parts = x.addressable_shards if isinstance(x, jax.Array) else ()
    return next((part.data for part in parts if part.device == device), None)


@functools.cache
def _copies(device: jax.Device) -> Callable[[Any], Any]:
    # On the device itself and not on a mesh of it, as programs that use the copies are compiled for only one of them.
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=SingleDeviceSharding(device))


def begin_to_host(tree: Any) -> None:
    """Starts to copy the arrays of a tree to the host, for a later call of `to_host`. Returns at once."""
    for x in jax.tree.leaves(tree):
        if isinstance(x, jax.Array):
            x.copy_to_host_async()


def to_host(tree: Any) -> Any:
    """Waits until the arrays of a tree are computed, and returns the tree with numpy arrays.

    An array that is split over several processes becomes only the part of this process.
    """
    begin_to_host(tree)
    return jax.tree.map(_to_numpy, tree)


def _to_numpy(x: Any) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
