"""Mesh, shardings and the jitted functions: the only file that names them.

State is replicated, batches are split over all devices. The maths sees the global batch, so that means and return
percentiles are the same on 1 or 64 devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreamer.errors import UserError
from dreamer.interfaces import Agent, Array, Carry, Key, Obs, Params


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


def first_copy(tree: Any) -> Any:
    """A copy on the first device that shares no buffer with `tree`, so that `tree` may be donated."""
    device = jax.devices()[0]
    return jax.tree.map(lambda x: jax.device_put(x, device, may_alias=False), tree)


def to_host(tree: Any) -> Any:
    """Numpy arrays; waits for the computation."""
    return jax.tree.map(np.asarray, tree)
