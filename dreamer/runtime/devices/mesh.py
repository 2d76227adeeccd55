"""Mesh, shardings and the jitted functions: the only file that names them.

A mesh has two axes. A batch is split over both; the train state lies whole on every device, or, where `fsdp` is above
1, its large leaves are split over that axis. The maths sees the global batch, so that means and return percentiles are
the same on 1 or 64 devices. The devices of one `fsdp` group belong to one host: each host holds a whole state.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from dreamer.errors import UserError
from dreamer.interfaces import Agent, Array, Batch, Carry, Key, Obs, Params, TrainState
from dreamer.spaces import Spec

AXES = ("data", "fsdp")
SMALLEST_SPLIT = 2**16  # numbers of a leaf: a smaller one costs more in messages than it frees in memory


@dataclasses.dataclass(frozen=True)
class Config:
    """Which devices learn, and what each of them holds. May differ when a run is resumed."""

    count: int = 0
    """Devices that learn, of all hosts together; 0 = all."""
    fsdp: int = 1
    """Devices of a host over which large parameters, their moments and the slow critic are split; 1 = not at all."""
    coordinator: str = ""
    """host:port of process 0 when several processes learn together; auto: the cluster tells (Slurm, MPI, TPU pods)."""
    processes: int = 0
    """How many processes; 0 = the cluster tells."""
    process_id: int = -1
    """Number of this process, from 0; -1 = the cluster tells."""


# --- the mesh -------------------------------------------------------------------------------------------------------


def make_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
    """Devices (None: all) on the axes `data` and `fsdp`. Raises UserError when fsdp does not divide their number."""
    devices = list(devices or jax.devices())
    if len(devices) % fsdp:
        choices = _near(fsdp, (n for n in range(1, len(devices) + 1) if len(devices) % n == 0))
        raise UserError(f"devices.fsdp is {fsdp}, which does not divide {len(devices)} devices; give {choices}")
    shape = (len(devices) // fsdp, fsdp)
    if len({device.process_index for device in devices}) == 1:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)
    # By host, so that what a host feeds and holds is one piece; jax.make_mesh may put them in another order.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 2)


def configured_mesh(config: Config, batch_size: int) -> Mesh:
    """The mesh that a config asks for. Each host gives as many devices as every other.

    Raises UserError naming the field when devices are missing, or cannot be shared out evenly.
    """
    hosts = jax.process_count()
    count = config.count or jax.device_count()
    if count > jax.device_count():
        there = f"{jax.device_count()} ({jax.devices()[0].device_kind})"
        raise UserError(f"devices.count is {count}, there are {there}; give 1 to {jax.device_count()}, or 0 for all")
    if count % hosts:
        choices = _near(count, range(hosts, jax.device_count() + 1, hosts))
        raise UserError(f"devices.count is {count}, not the same number on each of {hosts} hosts; give {choices}")
    each = count // hosts
    if hosts > 1 and each % config.fsdp:
        choices = _near(config.fsdp, (n for n in range(1, each + 1) if each % n == 0))
        raise UserError(f"devices.fsdp is {config.fsdp}, which does not divide the {each} of a host; give {choices}")
    mesh = make_mesh([device for host in range(hosts) for device in _of_host(host)[:each]], config.fsdp)
    check_batch_size(mesh, batch_size)
    return mesh


def own(mesh: Mesh) -> list[jax.Device]:
    """The devices of this process."""
    return [device for device in mesh.devices.flat if device.process_index == jax.process_index()]


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """UserError unless the batch can be split evenly over the mesh."""
    if batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        sizes = " or ".join(str(size) for size in (below, below + mesh.size) if size)
        counts = _near(mesh.size, (n for n in range(1, mesh.size) if batch_size % n == 0))
        raise UserError(
            f"replay.batch_size {batch_size} cannot be split evenly over {mesh.size} devices; give a batch of {sizes}, "
            f"or devices.count {counts}"
        )


def _of_host(host: int) -> list[jax.Device]:
    return [device for device in jax.devices() if device.process_index == host]


def _near(given: int, choices: Iterable[int]) -> str:
    """The nearest choice below a number and the nearest above it, for an error."""
    choices = list(choices)
    below, above = [n for n in choices if n < given], [n for n in choices if n > given]
    return " or ".join(map(str, [*sorted(below)[-1:], *sorted(above)[:1]]))


# --- who holds what -------------------------------------------------------------------------------------------------


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch, by its first axis."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def state_sharding(mesh: Mesh, form: Any) -> Any:
    """The sharding of a train state: one for all leaves, or with fsdp a tree of them like `form` (shapes suffice).

    A leaf of SMALLEST_SPLIT numbers or more is split along the longest of its axes that can be; others lie whole.
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
    """A train state from anywhere, as `jit_update` takes it; with several processes the same in each."""
    places = state_sharding(mesh, state)
    if jax.process_count() == 1:
        return jax.device_put(state, places)
    places = places if mesh.shape["fsdp"] > 1 else jax.tree.map(lambda _: places, state)
    return jax.tree.map(_of_all_processes, state, places)


def _of_all_processes(x: Any, place: NamedSharding) -> Array:
    """The global array of which every process has all values: each puts them on its own devices."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    return _joined(jax.device_put(x, _own_part(place)), place)


def _own_part(place: Any) -> NamedSharding:
    """The same over the devices of this process."""
    return NamedSharding(make_mesh(own(place.mesh), place.mesh.shape["fsdp"]), place.spec)


def _joined(x: Array, place: NamedSharding) -> Array:
    return jax.make_array_from_single_device_arrays(x.shape, place, [shard.data for shard in x.addressable_shards])


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """The batch of this process (all of it when there is one) as part of the global one; from any thread."""
    if jax.process_count() == 1:
        return jax.device_put(batch, split(mesh))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split(mesh), x), batch)


def local_copy(tree: Any) -> Any:
    """The same arrays, of the devices of this process alone: nothing is copied, nothing is sent.

    Any process may save or read them by itself. With one process the tree as it is.
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
    """The tree with every leaf that is split put together on each device of this process."""
    leaves, form = jax.tree.flatten(local_copy(tree))
    parts = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not x.sharding.is_fully_replicated]
    if parts:
        place: Any = leaves[parts[0]].sharding
        gathered = _gather(place.mesh)([leaves[i] for i in parts])
        for i, x in zip(parts, gathered, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(form, leaves)


def first_copy(tree: Any) -> Any:
    """A copy on the first device that shares no buffer with `tree`, so that `tree` may be donated."""
    device = jax.local_devices()[0]
    if all(isinstance(x, jax.Array) and x.devices() == {device} for x in jax.tree.leaves(tree)):
        return _copies(device)(tree)  # one call in place of one for each leaf
    return jax.tree.map(lambda x: jax.device_put(x, device, may_alias=False), whole(tree))


@functools.cache
def _copies(device: jax.Device) -> Callable[[Any], Any]:
    # On the device itself, not on a mesh of it: what acts on the copies is compiled for one of the two.
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=SingleDeviceSharding(device))


def begin_to_host(tree: Any) -> None:
    """Lets the arrays be sent to the host as soon as they are there; `to_host` finds them. Waits for nothing."""
    for x in jax.tree.leaves(tree):
        if isinstance(x, jax.Array):
            x.copy_to_host_async()


def to_host(tree: Any) -> Any:
    """Numpy arrays; waits for the computation. Of a batch that several processes share, the part of this one."""
    begin_to_host(tree)
    return jax.tree.map(_to_numpy, tree)


def _to_numpy(x: Any) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


# --- the jitted functions -------------------------------------------------------------------------------------------


def jit_init(agent: Agent, mesh: Mesh) -> Callable[[Key], Any]:
    """`agent.init(key)`, compiled for the mesh; on a CPU plainly: it runs once, optimizing takes ten times as long."""
    plainly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
    places = state_sharding(mesh, jax.eval_shape(agent.init, jax.random.key(0)))
    return jax.jit(agent.init, out_shardings=places, compiler_options=plainly if on_cpu else None)


def jit_update(agent: Agent, mesh: Mesh) -> Callable[..., Any]:
    """`agent.update(state, batch)`, compiled for the mesh; the state is donated."""
    parts, scalars = split(mesh), replicated(mesh)
    sharded = mesh.shape["fsdp"] > 1
    places = state_sharding(mesh, jax.eval_shape(agent.init, jax.random.key(0))) if sharded else scalars

    def update(state: TrainState, batch: Batch) -> Any:
        if sharded:
            # Put together once; XLA would gather weights where they are used, in every step of a scan.
            params, extra = jax.lax.with_sharding_constraint((state.params, state.extra), scalars)
            state = state._replace(params=params, extra=extra)
        return agent.update(state, batch)

    return jax.jit(update, in_shardings=(places, parts), out_shardings=(places, parts, scalars), donate_argnums=0)


def jit_write_rows(mesh: Mesh) -> Callable[..., dict[str, Array]]:
    """(rings {k: [N, n]}, index [R] int32, rows {k: [R, n]}) -> rings with these rows, in place, on every device.

    A row whose index is N or more is dropped.
    """
    place = replicated(mesh)

    def write(rings: dict[str, Array], index: Array, rows: dict[str, Array]) -> dict[str, Array]:
        return {name: ring.at[index].set(rows[name], mode="drop") for name, ring in rings.items()}

    return jax.jit(write, in_shardings=place, out_shardings=place, donate_argnums=0)


def jit_gather_rows(mesh: Mesh, shapes: Mapping[str, tuple[int, ...]]) -> Callable[..., dict[str, Array]]:
    """(rings {k: [N, n]}, index [B, T] int32) -> {k: [B, T, *shapes[k]]}, split over the devices as a batch is."""

    def gather(rings: dict[str, Array], index: Array) -> dict[str, Array]:
        return {name: ring[index].reshape(*index.shape, *shapes[name]) for name, ring in rings.items()}

    return jax.jit(gather, in_shardings=(replicated(mesh), split(mesh)), out_shardings=split(mesh))


def jit_report(agent: Agent) -> Callable[..., Any]:
    """`agent.report(state, batch)`, wherever the state lies."""
    return jax.jit(agent.report)


def jit_policy(agent: Agent) -> Callable[..., tuple[Carry, Array, Any]]:
    """(params, key, count, carry, obs, is_first, mode) -> carry, action [E, A], packed latent {name: [E, ..]}.

    Acts on the first device of this process. count: a number that makes each call's random stream its own.
    """

    def policy(
        params: Params, key: Key, count: int, carry: Carry, obs: Obs, is_first: Array, mode: Literal["sample", "mode"]
    ) -> tuple[Carry, Array, Any]:
        carry, action = agent.act(params, jax.random.fold_in(key, count), carry, obs, is_first, mode)
        return carry, action, agent.pack(carry.latent)

    return jax.jit(policy, static_argnames="mode")


class PolicyPart(NamedTuple):
    """Which of an agent's parameters acting reads. tree, forms: of all leaves | read: one bool a leaf, in order."""

    tree: Any
    forms: list[jax.ShapeDtypeStruct]
    read: list[bool]

    def take(self, params: Params) -> list[Array]:
        """The leaves that acting reads."""
        return [leaf for leaf, read in zip(jax.tree.leaves(params), self.read, strict=True) if read]

    def whole(self, leaves: Sequence[Array]) -> Params:
        """Parameters in which `leaves` stand in their places; the others are zeros, which the compiler drops."""
        given = iter(leaves)
        places = zip(self.forms, self.read, strict=True)
        filled = [next(given) if read else jnp.zeros(form.shape, form.dtype) for form, read in places]
        return jax.tree.unflatten(self.tree, filled)


def policy_part(agent: Agent, spec: Spec) -> PolicyPart:
    """The part of the parameters that `agent.act` reads, found by tracing it."""
    forms, tree = jax.tree.flatten(jax.eval_shape(agent.init, jax.random.key(0)).params)
    obs = {name: jax.ShapeDtypeStruct((1, *space.shape), space.device_dtype) for name, space in spec.obs.items()}

    def act(leaves: list[Array], obs: Obs) -> Any:
        carry = agent.initial_carry(1)
        return agent.act(
            jax.tree.unflatten(tree, leaves), jax.random.key(0), carry, obs, jnp.zeros(1, bool), "sample"
        )

    jaxpr = jax.make_jaxpr(act)(forms, obs).jaxpr
    read = {id(var) for eqn in jaxpr.eqns for var in eqn.invars} | {id(var) for var in jaxpr.outvars}
    return PolicyPart(tree, forms, [id(var) in read for var in jaxpr.invars[: len(forms)]])


def jit_collect(agent: Agent, part: PolicyPart) -> Callable[..., tuple[Carry, Array, Any]]:
    """(leaves, key, count, carry [E, ..], obs [R, ..], is_first [R], envs [R]) -> carry, action [R, A], packed latent.

    Acts for the environments `envs` alone; the others keep their carry. An index of E marks a row that only fills up.
    leaves: what `part.take` gave. count: a number that makes each call's random stream its own.
    """

    def collect(
        leaves: list[Array], key: Key, count: int, carry: Carry, obs: Obs, is_first: Array, envs: Array
    ) -> tuple[Carry, Array, Any]:
        own = jax.tree.map(lambda x: x.at[envs].get(mode="clip"), carry)
        own, action = agent.act(
            part.whole(leaves), jax.random.fold_in(key, count), own, obs, is_first, "sample"
        )
        carry = jax.tree.map(lambda whole, one: whole.at[envs].set(one, mode="drop"), carry, own)
        return carry, action, agent.pack(own.latent)

    return jax.jit(collect)
