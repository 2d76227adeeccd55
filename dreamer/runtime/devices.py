"""Mesh, shardings and the jitted functions: the only file that names them.

State is replicated, batches are split over all devices. The maths sees the global batch, so that means and return
percentiles are the same on 1 or 64 devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreamer.errors import UserError
from dreamer.interfaces import Agent, Array, Carry, Key, Obs, Params
from dreamer.spaces import Spec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices on one axis, `data`."""
    devices = list(devices or jax.devices())
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch, by its first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """UserError unless the batch can be split evenly over the mesh."""
    if batch_size % mesh.size:
        raise UserError(f"replay.batch_size {batch_size} cannot be split evenly over {mesh.size} devices")


def jit_init(agent: Agent, mesh: Mesh) -> Callable[[Key], Any]:
    """`agent.init(key)`, compiled for the mesh; on a CPU plainly: it runs once, optimizing takes ten times as long."""
    plainly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
    return jax.jit(agent.init, out_shardings=replicated(mesh), compiler_options=plainly if on_cpu else None)


def jit_update(agent: Agent, mesh: Mesh) -> Callable[..., Any]:
    """`agent.update(state, batch)`, compiled for the mesh; the state is donated."""
    whole, parts = replicated(mesh), split(mesh)
    return jax.jit(
        agent.update, in_shardings=(whole, parts), out_shardings=(whole, parts, whole), donate_argnums=0
    )


def jit_policy(agent: Agent) -> Callable[..., tuple[Carry, Array, Any]]:
    """(params, key, count, carry, obs, is_first, mode) -> carry, action [E, A], packed latent {name: [E, ..]}.

    Acts on the first device. count: a number that makes each call's random stream its own.
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


def first_copy(tree: Any) -> Any:
    """A copy on the first device that shares no buffer with `tree`, so that `tree` may be donated."""
    device = jax.devices()[0]
    return jax.tree.map(lambda x: jax.device_put(x, device, may_alias=False), tree)


def to_host(tree: Any) -> Any:
    """Numpy arrays; waits for the computation."""
    return jax.tree.map(np.asarray, tree)
