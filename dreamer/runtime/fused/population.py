"""The loops of several members as one program: all together by `vmap`, one after the other, or in groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, TrainState
from dreamer.runtime.fused import ring as rings
from dreamer.runtime.fused.loop import Loop, Report
from dreamer.runtime.fused.ring import Ring

# The axis of the members in each part of a Loop. The counters are equal in all members, which keeps conditions that
# depend on them out of `vmap`.
SHARED: dict[str, Any] = {"acted": None, "started": None, "debt": None}
MEMBERS: dict[str, Any] = {"keys": 0, "train": 0, "envs": 0, "carry": 0, "episodes": 0}
COLUMNS: dict[str, Any] = {"columns": 0, "added": None, "taken": None}
AXES: Any = Loop(**MEMBERS, **SHARED, ring=Ring(**COLUMNS))
LEARNED = ("params", "extra", "opt_state")  # the fields of a train state that a member inherits


def stack(loops: Sequence[Loop]) -> Loop:
    """Joins the Loops of P members. Leaves become [P, ..], except for the counters, which must be equal in all."""
    return _over_axes(lambda *leaves: jnp.stack(leaves), lambda *leaves: leaves[0], *loops)


def member(loop: Loop, number: int) -> Loop:
    """Returns the Loop of one member of a population, on the device of this member."""
    (device,) = _of_member(loop.carry.prev_action, number).devices()

    def counter(x: Array) -> Array:
        return next(shard.data for shard in x.addressable_shards if shard.device == device)

    return _over_axes(lambda x: _of_member(x, number), counter, loop)


def train_of(loop: Loop, number: int) -> TrainState:
    """Returns the train state of one member, on the device of this member."""
    return jax.tree.map(lambda x: _of_member(x, number), loop.train)


def _of_member(x: Array, number: int) -> Array:
    """Returns x[number] from the part of the array that contains it. Indexing would gather an array that is split."""
    parts = ((shard.data, number - (shard.index[0].start or 0)) for shard in x.addressable_shards)
    return next(part[place] for part, place in parts if 0 <= place < part.shape[0])


def inherit(loop: Loop, number: Array, parent: Array, hyper: Any) -> Loop:
    """Returns the loop of a population in which member `number` [] has what `parent` [] has learned, and `hyper`.

    The member keeps its replay, its environments and its random keys.
    """
    learned = {name: jax.tree.map(lambda x: x[parent], getattr(loop.train, name)) for name in LEARNED}
    return with_learned(loop, number, learned, hyper)


def with_learned(loop: Loop, number: Array, learned: Mapping[str, Any], hyper: Any) -> Loop:
    """Returns the loop in which member `number` [] has the fields `learned` of a train state, and `hyper`.

    Nothing changes if `number` is the number of members or more.
    """

    def replaced(name: str, value: Any) -> Any:
        return jax.tree.map(lambda x, y: x.at[number].set(y, mode="drop"), getattr(loop.train, name), value)

    fields = {name: replaced(name, value) for name, value in {**learned, "hyper": hyper}.items()}
    return loop._replace(train=loop.train._replace(**fields))


def newest(ring: Ring, rows: int) -> Mapping[str, Array]:
    """Returns the last `rows` rows {name: [P, S, rows, ..]} of each stream of all members, oldest first."""
    return jax.vmap(lambda columns: rings.newest(ring._replace(columns=columns), rows))(ring.columns)


def make_population(
    run: Callable[[Loop, Array], tuple[Loop, Report]], members: int, together: int
) -> Callable[[Loop, Array], tuple[Loop, Report]]:
    """Returns `run` for a population: (loop, turns) -> loop, report, with leaves [P, ..].

    run: from `loop.make_run` | together: how many members `vmap` runs at a time; it divides `members`
    """

    def several(loop: Loop, turns: Array) -> tuple[Loop, Report]:
        return jax.vmap(lambda one: run(one, turns), in_axes=(AXES,), out_axes=(AXES, 0))(loop)

    def single(loop: Loop, turns: Array) -> tuple[Loop, Report]:
        loop, report = run(_over_axes(lambda x: x[0], lambda x: x, loop), turns)
        return stack([loop]), jax.tree.map(lambda x: x[None], report)

    part = single if together == 1 else several

    def all_members(loop: Loop, turns: Array) -> tuple[Loop, Report]:
        forms = jax.eval_shape(part, _group(loop, 0, together), turns)[1]
        reports = jax.tree.map(lambda x: jnp.zeros((members, *x.shape[1:]), x.dtype), forms)

        def one(number: Array, both: tuple[Loop, Report]) -> tuple[Loop, Report]:
            place = number * together
            begun = both[0]._replace(ring=both[0].ring._replace(added=loop.ring.added, taken=loop.ring.taken))
            begun = begun._replace(acted=loop.acted, started=loop.started, debt=loop.debt)
            after, report = part(_group(begun, place, together), turns)
            return _put(begun, after, place), jax.tree.map(lambda x, y: _write(x, y, place), both[1], report)

        # A loop that writes each group into the whole, and not `lax.map`, which would hold every ring twice.
        return jax.lax.fori_loop(0, members // together, one, (loop, reports))

    return part if together == members else all_members


def _group(loop: Loop, first: Any, size: int) -> Loop:
    """Returns the Loops of `size` members from `first` on."""
    return _over_axes(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), lambda x: x, loop)


def _put(loop: Loop, group: Loop, first: Any) -> Loop:
    """Returns `loop` with the members from `first` on, and the counters, replaced by those of `group`."""
    return _over_axes(lambda x, y: _write(x, y, first), lambda x, y: y, loop, group)


def _write(whole: Array, part: Array, first: Any) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, first, 0)


def _over_axes(on_members: Callable[..., Any], on_counters: Callable[..., Any], *loops: Loop) -> Loop:
    """Applies one function to the leaves that have an axis of members, and another to the counters."""

    def apply(axis: int | None, *parts: Any) -> Any:
        return jax.tree.map(on_counters if axis is None else on_members, *parts)

    return jax.tree.map(apply, AXES, *loops, is_leaf=lambda x: x is None)
