"""The jitted functions of an agent, and of a replay whose rows are in device memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dreamer.interfaces import Agent, Array, Batch, Carry, Key, Mode, Obs, TrainState, Update, Variables
from dreamer.runtime.devices.placement import replicated, split, split_each, state_sharding
from dreamer.spaces import Spec


def jit_init(agent: Agent, mesh: Mesh) -> Callable[[Key], Any]:
    """Compiles `agent.init(key)` for the mesh.

    On a CPU, it compiles without optimizations: `init` runs once, and optimizing it takes ten times as long.
    """
    plainly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
    places = state_sharding(mesh, jax.eval_shape(agent.init, jax.random.key(0)))
    return jax.jit(agent.init, out_shardings=places, compiler_options=plainly if on_cpu else None)


class Updates(NamedTuple):
    """The results of n updates besides the last state, see `Update`.

    latent: n x {name: [B, T, ..]} | surprise: n x [B, T]; None: the agent has none | metrics {name: [n]}
    """

    latent: Any
    metrics: Mapping[str, Any]
    surprise: Any = None


def jit_update(agent: Agent, mesh: Mesh) -> Callable[..., Any]:
    """Compiles `agent.update(state, batch)` for the mesh; the state is donated."""
    parts, scalars, places = split(mesh), replicated(mesh), _state_places(agent, mesh)
    out: Any = Update._make((parts, scalars, parts))
    return jax.jit(
        _update(agent, mesh), in_shardings=(places, parts), out_shardings=(places, out), donate_argnums=0
    )


def jit_updates(agent: Agent, mesh: Mesh) -> Callable[..., tuple[TrainState, Updates]]:
    """Compiles a function (state, [batch, ..]) -> state, Updates for the mesh; the state is donated.

    The function makes the updates of `agent.update` one after the other, each with its own batch.
    """
    parts, scalars, places = split(mesh), replicated(mesh), _state_places(agent, mesh)
    update = _update(agent, mesh)

    def one(state: TrainState, batch: Batch) -> tuple[TrainState, Update]:
        state, out = update(state, batch)
        return jax.lax.with_sharding_constraint(state, places), out

    def updates(state: TrainState, batches: list[Batch]) -> tuple[TrainState, Updates]:
        together = jax.tree.map(lambda *each: jnp.stack(each), *batches)
        state, out = jax.lax.scan(one, state, jax.lax.with_sharding_constraint(together, split_each(mesh)))
        latent, surprise = ([_at(tree, n) for n in range(len(batches))] for tree in (out.latent, out.surprise))
        return state, Updates(latent, out.metrics, None if out.surprise is None else surprise)

    out: Any = Updates._make((parts, scalars, parts))
    return jax.jit(updates, in_shardings=(places, parts), out_shardings=(places, out), donate_argnums=0)


def _at(tree: Any, n: int) -> Any:
    return jax.tree.map(lambda x: x[n], tree)


def _state_places(agent: Agent, mesh: Mesh) -> Any:
    """Returns the sharding of the train state, or a tree of one for each leaf."""
    if mesh.shape["fsdp"] == 1:
        return replicated(mesh)
    return state_sharding(mesh, jax.eval_shape(agent.init, jax.random.key(0)))


def _update(agent: Agent, mesh: Mesh) -> Callable[..., Any]:
    """Returns `agent.update` for a state that may be split over the mesh."""

    def update(state: TrainState, batch: Batch) -> Any:
        if mesh.shape["fsdp"] > 1:
            # Gathered once, because XLA would gather weights at each use, in every step of a scan.
            params, extra = jax.lax.with_sharding_constraint((state.params, state.extra), replicated(mesh))
            state = state._replace(params=params, extra=extra)
        return agent.update(state, batch)

    return update


def jit_write_rows(mesh: Mesh) -> Callable[..., dict[str, Array]]:
    """Compiles a function (rings {k: [N, n]}, index [R] int32, rows {k: [R, n]}) -> rings.

    The function writes each row to its index in the ring buffers, in place (the rings are donated). It drops rows whose
    index is N or more.
    """
    place = replicated(mesh)

    def write(rings: dict[str, Array], index: Array, rows: dict[str, Array]) -> dict[str, Array]:
        return {name: ring.at[index].set(rows[name], mode="drop") for name, ring in rings.items()}

    return jax.jit(write, in_shardings=place, out_shardings=place, donate_argnums=0)


def jit_gather_rows(mesh: Mesh, shapes: Mapping[str, tuple[int, ...]]) -> Callable[..., dict[str, Array]]:
    """Compiles a function (rings {k: [N, n]}, index [B, T] int32) -> {k: [B, T, *shapes[k]]}, sharded like a batch.

    The function reads rows from the ring buffers. shapes: the shape of a row, whose product is n, for each ring.
    """

    def gather(rings: dict[str, Array], index: Array) -> dict[str, Array]:
        return {name: ring[index].reshape(*index.shape, *shapes[name]) for name, ring in rings.items()}

    return jax.jit(gather, in_shardings=(replicated(mesh), split(mesh)), out_shardings=split(mesh))


def jit_report(agent: Agent) -> Callable[..., Any]:
    """Compiles `agent.report(state, batch)` for the devices that hold the state."""
    return jax.jit(agent.report)


def jit_act(
    agent: Agent, whole: Callable[[Any], Mapping[str, Variables]] = lambda variables: variables
) -> Callable[..., tuple[Carry, Array, Any]]:
    """Compiles a function (variables, key, count, carry, obs, is_first, mode, streams=None, command=None) -> carry,
    action, latent.

    The compiled function acts on the first device of this process. obs {k: [R, ..]}, is_first [R], streams [R], carry
    [E, ..], action [R, A], packed latent {name: [R, ..]}.
    count: the number of the call; it is folded into the key, so that each call draws other random numbers.
    streams: for each row, the index of its stream (an environment, or one agent of it), or E for a row that only pads;
    None: there is one row for each stream, in order. Streams without a row keep their carry.
    command: the task of the behavior, see `Ask`; None: none
    whole: a function that converts the argument `variables` to the agent's variables, see `PolicyPart`.
    """

    def act(
        variables: Any, key: Key, count: int, carry: Carry, obs: Obs, is_first: Array, mode: Mode,
        streams: Array | None = None, command: Mapping[str, Array] | None = None,
    ) -> tuple[Carry, Array, Any]:  # fmt: skip
        more = {} if command is None else {"command": command}
        own = carry if streams is None else jax.tree.map(lambda x: x.at[streams].get(mode="clip"), carry)
        own, action = agent.act(whole(variables), jax.random.fold_in(key, count), own, obs, is_first, mode, **more)
        latent = agent.pack(own.state)
        if streams is not None:
            own = jax.tree.map(lambda whole, one: whole.at[streams].set(one, mode="drop"), carry, own)
        return own, action, latent

    return jax.jit(act, static_argnames="mode")


class PolicyPart(NamedTuple):
    """Tells which leaves of an agent's variables `agent.act` reads, so that only these need to be copied for acting.

    tree: the tree structure of all variables | forms: the shape and dtype of each leaf
    read: for each leaf, whether `agent.act` reads it
    """

    tree: Any
    forms: list[jax.ShapeDtypeStruct]
    read: list[bool]

    def take(self, variables: Mapping[str, Variables]) -> list[Array]:
        """Returns the leaves of `variables` that `agent.act` reads."""
        return [leaf for leaf, read in zip(jax.tree.leaves(variables), self.read, strict=True) if read]

    def whole(self, leaves: Sequence[Array]) -> dict[str, Variables]:
        """Returns all variables, with the `leaves` from `take` in their places.

        The other leaves are zeros, which the compiler removes because nothing reads them.
        """
        given = iter(leaves)
        places = zip(self.forms, self.read, strict=True)
        filled = [next(given) if read else jnp.zeros(form.shape, form.dtype) for form, read in places]
        return jax.tree.unflatten(self.tree, filled)


def policy_part(agent: Agent, spec: Spec) -> PolicyPart:
    """Finds the variables that `agent.act` reads in mode "collect", by tracing it for observations of `spec`."""
    forms, tree = jax.tree.flatten(jax.eval_shape(lambda: agent.variables(agent.init(jax.random.key(0)))))
    obs = {name: jax.ShapeDtypeStruct((1, *space.shape), space.device_dtype) for name, space in spec.obs.items()}

    def act(leaves: list[Array], obs: Obs) -> Any:
        variables, carry = jax.tree.unflatten(tree, leaves), agent.initial_carry(1)
        return agent.act(variables, jax.random.key(0), carry, obs, jnp.zeros(1, bool), "collect")

    jaxpr = jax.make_jaxpr(act)(forms, obs).jaxpr
    read = {id(var) for eqn in jaxpr.eqns for var in eqn.invars} | {id(var) for var in jaxpr.outvars}
    return PolicyPart(tree, forms, [id(var) in read for var in jaxpr.invars[: len(forms)]])
