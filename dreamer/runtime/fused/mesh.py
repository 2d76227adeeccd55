"""The loop of a run on several devices.

Each device has its own environments and the rings of their streams, and draws its share of each batch from them. The
update sees the global batch, and the train state is replicated, as in runtime/devices/programs.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamer.interfaces import Agent, Array, Batch, Spec, TrainState, Update
from dreamer.runtime.fused import loop as loops
from dreamer.runtime.fused import ring as rings
from dreamer.runtime.fused.envs import Functions
from dreamer.runtime.fused.loop import Loop, Operations, Plan, Report
from dreamer.runtime.fused.ring import Places, Ring

SHARED = PartitionSpec()


class Programs(NamedTuple):
    """The programs of a run, jitted, not compiled.

    turns(loop, turns []) -> loop, report: the function that `run` is made of | run: it donates the loop
    newest(ring, rows) -> {name: [S, rows, ..]}
    """

    turns: Callable[[Loop, Array], tuple[Loop, Report]]
    run: Any
    newest: Callable[[Ring, int], Mapping[str, Array]]


def programs(mesh: Mesh, agent: Agent, spec: Spec, envs: Functions, plan: Plan) -> Programs:
    """Returns the programs of a run on the devices of `mesh`."""
    if mesh.size == 1:
        turns = loops.make_run(agent, spec, envs, plan)
        return Programs(turns, jax.jit(turns, donate_argnums=0), jax.jit(rings.newest, static_argnums=1))
    turns = loops.make_run(agent, spec, envs, plan, operations(mesh, agent, envs, plan))
    places, shared = shardings(mesh), NamedSharding(mesh, SHARED)
    run = jax.jit(turns, in_shardings=(places, shared), out_shardings=(places, shared), donate_argnums=0)
    newest = jax.jit(rings.newest, static_argnums=1, out_shardings=NamedSharding(mesh, _split(mesh)))
    return Programs(turns, run, newest)


def shardings(mesh: Mesh) -> Any:
    """Returns the sharding of each part of a Loop. The streams are split in order, and the counters are replicated."""
    shared: Any = NamedSharding(mesh, SHARED)
    split: Any = NamedSharding(mesh, _split(mesh))
    return Loop(
        keys=shared, train=shared, ring=Ring(split, shared, split), envs=split, carry=split, acted=shared,
        episodes=split, started=shared, debt=shared,
    )  # fmt: skip


def operations(mesh: Mesh, agent: Agent, envs: Functions, plan: Plan) -> Operations:
    """Returns the operations of a loop whose rings and environments are split over the devices of `mesh`.

    In this loop, `Ring.taken` is [devices]: each device counts the new sequences of its own streams.
    """
    split: Any = _split(mesh)
    shared: Any = SHARED
    ring_specs = Ring(split, shared, split)
    on_each = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    sizes = plan.sizes._replace(streams=plan.sizes.streams // mesh.size)

    def draw_own(ring: Ring, key: Array) -> tuple[Ring, Array, Array]:
        key = jax.random.fold_in(key, jax.lax.axis_index(mesh.axis_names))
        ring, stream, start = rings.draw(_own(ring), sizes, key, plan.batch_size // mesh.size)
        return _whole(ring), stream, start

    def gather_own(ring: Ring, stream: Array, start: Array) -> tuple[Batch, Places]:
        return rings.gather(_own(ring), sizes, stream, start)

    draw_each = on_each(draw_own, in_specs=(ring_specs, shared), out_specs=(ring_specs, split, split))

    def draw(loop: Loop) -> tuple[Ring, Array, Array]:
        ring, stream, start = draw_each(loop.ring._replace(columns={}), loops.draw_key(loop))
        return ring._replace(columns=loop.ring.columns), stream, start

    def act(*args: Any) -> Any:
        return jax.lax.with_sharding_constraint(agent.act(*args), NamedSharding(mesh, split))

    def update(train: TrainState, batch: Batch) -> tuple[TrainState, Update]:
        train, out = agent.update(train, batch)
        return jax.lax.with_sharding_constraint(train, NamedSharding(mesh, SHARED)), out

    return Operations(
        act=act,
        turn=on_each(envs.turn, in_specs=(split, split, split), out_specs=split),
        metrics=on_each(envs.metrics, in_specs=(split,), out_specs=split),
        add=on_each(rings.add, in_specs=(ring_specs, split), out_specs=ring_specs),
        draw=draw,
        gather=on_each(gather_own, in_specs=(ring_specs, split, split), out_specs=split),
        update=update,
        refresh=on_each(rings.refresh, in_specs=(ring_specs, split, split), out_specs=ring_specs),
    )


def _split(mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(mesh.axis_names)


def _own(ring: Ring) -> Ring:
    return ring._replace(taken=ring.taken[0])


def _whole(ring: Ring) -> Ring:
    return ring._replace(taken=ring.taken[None])
