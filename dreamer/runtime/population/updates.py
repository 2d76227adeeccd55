"""One program that updates the agents of all members of a population, each with a batch of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dreamer.interfaces import Agent, Array, Batch, TrainState, Update
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.devices.programs import PolicyPart
from dreamer.runtime.fused.loop import all_finite


class States:
    """Owns the train states of P members on one device, and the program that updates them.

    The program updates a group of `together` members by `vmap`; their states are joined, [together, ..]. A group of one
    member is not joined: its program is that of a run alone, so that its results are the same to the last bit.
    program: the compiled update of a group; None: `compile` was not called
    """

    def __init__(self, states: Sequence[TrainState], agent: Agent, part: PolicyPart, together: int, mesh: Mesh):
        """states: those of the members, which are copied | together: the size of a group, which divides P

        mesh: of one device
        """
        alone = together == 1
        self._size, self._mesh = together, mesh
        self._join: Any = _only if alone else jax.jit(_joined)
        self._pick: Any = _same if alone else _of
        self._put: Any = _new if alone else jax.jit(_with, donate_argnums=0)
        self._member: Any = jax.jit(self._pick)
        self._leaves = jax.jit(lambda group, index: part.take(agent.variables(self._pick(group, index))))
        self._finite = jax.jit(_finite if alone else jax.vmap(_finite))
        several: Any = jax.vmap(agent.update)
        self._update: Any = programs.jit_update(agent, mesh) if alone else jax.jit(several, donate_argnums=0)
        self._groups = [self._placed(placement.first_copy(self._join(group))) for group in self._grouped(states)]
        self.program: Any = None

    def compile(self, batch: Batch) -> None:
        """Compiles the update for batches [B, C+T, ..] of this shape, without running it."""
        self.program = self._update.lower(self._groups[0], self._join([batch] * self._size)).compile()

    def update(self, batches: Sequence[Batch | None]) -> list[tuple[Update, bool] | None]:
        """Updates every member with its batch. Returns for each its result as numpy arrays, and whether it is finite.

        It is finite if all its parameters are. A member whose batch is None has no result. Call `compile` first. The
        states are lost if the update fails.
        """
        groups, self._groups = self._groups, []
        results: list[Any] = [None] * len(groups)
        for number, given in enumerate(self._grouped(batches)):
            there = [batch for batch in given if batch is not None]
            if there:
                # In a group, a member without a batch takes that of another, because the program must stay the same.
                whole = [there[0] if batch is None else batch for batch in given]
                groups[number], out = self.program(groups[number], self._join(whole))
                results[number] = out, self._finite(groups[number])
        results = placement.to_host(results)
        self._groups = groups
        found: list[Any] = []
        for number, batch in enumerate(batches):
            group, index = divmod(number, self._size)
            found.append(None if batch is None else self._pick(results[group], index))
        return [result and (result[0], bool(result[1])) for result in found]

    def inherit(self, number: int, parent: int, hyper: Any) -> None:
        """Gives member `number` what member `parent` has learned, and the numbers `hyper`. It keeps its random key."""
        own, learned = self._copy(number), self._copy(parent)
        state = learned._replace(step=own.step, key=own.key, hyper=hyper)
        group, index = divmod(number, self._size)
        self._groups[group] = self._put(self._groups[group], index, self._placed(state))

    def state(self, number: int) -> TrainState | None:
        """Returns a copy of the train state of a member; None: the states are lost."""
        return self._copy(number) if self._groups else None

    def leaves(self, number: int) -> list[Array]:
        """Returns a copy of the leaves that a member acts with, see `PolicyPart.take`."""
        group, index = divmod(number, self._size)
        return placement.first_copy(self._leaves(self._groups[group], index))

    def _copy(self, number: int) -> TrainState:
        group, index = divmod(number, self._size)
        return placement.first_copy(self._member(self._groups[group], index))

    def _placed(self, state: TrainState) -> TrainState:
        """Places a state where the program takes it."""
        return placement.place_state(self._mesh, state) if self._size == 1 else state

    def _grouped(self, members: Sequence[Any]) -> list[Sequence[Any]]:
        return [members[first : first + self._size] for first in range(0, len(members), self._size)]


def _finite(state: TrainState) -> Array:
    return all_finite(state.params)


# A group of one member, and one of several ----------------------------------------------------------------------------


def _only(trees: Sequence[Any]) -> Any:
    return trees[0]


def _joined(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _same(group: Any, index: Any) -> Any:
    return group


def _of(group: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: x[index], group)


def _new(group: Any, index: Any, one: Any) -> Any:
    return one


def _with(group: Any, index: Any, one: Any) -> Any:
    return jax.tree.map(lambda x, y: x.at[index].set(y), group, one)
