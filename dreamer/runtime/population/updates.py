"""One program that updates the agents of all members of a population, each with a batch of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dreamer.interfaces import Agent, Array, Batch, TrainState, Update
from dreamer.runtime.devices import placement
from dreamer.runtime.devices.programs import PolicyPart
from dreamer.runtime.fused.loop import all_finite
from dreamer.runtime.fused.population import inherit_train

Updates = Callable[[TrainState, Sequence[Batch]], tuple[TrainState, Update, Array]]


class States:
    """Owns the train states of P members, joined on the first device, and the program that updates them.

    program: the compiled update; None: `compile` was not called
    """

    def __init__(self, states: Sequence[TrainState], agent: Agent, part: PolicyPart, together: int):
        """states: those of the members, which are copied | together: see `make_updates`"""
        self._states: Any = placement.first_copy(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
        update = make_updates(agent.update, len(states), together)
        self._update = jax.jit(update, donate_argnums=0)
        self._inherit = jax.jit(inherit_train, donate_argnums=0)
        self._one = jax.jit(_of)
        self._leaves = jax.jit(lambda states, number: part.take(agent.variables(_of(states, number))))
        self.program: Any = None

    def compile(self, batches: Sequence[Batch]) -> None:
        """Compiles the update for batches [B, C+T, ..] of this shape, without running it."""
        self.program = self._update.lower(self._states, batches).compile()

    def update(self, batches: Sequence[Batch]) -> tuple[Update, Array]:
        """Updates every member with its batch. Returns the results with numpy leaves [P, ..], and `finite` [P].

        finite: whether all parameters of a member are finite. Call `compile` first. The states are lost if it fails.
        """
        states, self._states = self._states, None
        states, *results = self.program(states, batches)
        host = placement.to_host(tuple(results))
        self._states = states
        return host

    def inherit(self, number: int, parent: int, hyper: Any) -> None:
        """Gives member `number` what member `parent` has learned, and the numbers `hyper`."""
        self._states = self._inherit(self._states, jnp.int32(number), jnp.int32(parent), hyper)

    def state(self, number: int) -> TrainState | None:
        """Returns a copy of the train state of a member; None: the states are lost."""
        return None if self._states is None else self._one(self._states, jnp.int32(number))

    def leaves(self, number: int) -> list[Array]:
        """Returns a copy of the leaves that a member acts with, see `PolicyPart.take`."""
        return self._leaves(self._states, jnp.int32(number))


def make_updates(
    update: Callable[[TrainState, Batch], tuple[TrainState, Update]], members: int, together: int
) -> Updates:
    """Returns the function (states [P, ..], P batches) -> states, results [P, ..], finite [P].

    update: `Agent.update` | together: how many members `vmap` updates at a time; it divides `members`
    """

    def single(state: TrainState, batch: Batch) -> tuple[TrainState, Update, Array]:
        state, out = update(state, batch)
        return state, out, all_finite(state.params)

    def alone(states: TrainState, batches: Batch) -> Any:
        return jax.tree.map(lambda x: x[None], single(_of(states, 0), _of(batches, 0)))

    group = alone if together == 1 else jax.vmap(single)

    def groups(states: TrainState, batches: Batch) -> Any:
        def part(tree: Any, number: Array) -> Any:
            first = number * together
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, together), tree)

        def put(whole: Any, own: Any, number: Array) -> Any:
            return jax.tree.map(
                lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, number * together, 0), whole, own
            )

        def one(number: Array, everything: Any) -> Any:
            return put(everything, group(part(everything[0], number), part(batches, number)), number)

        forms = jax.eval_shape(group, part(states, jnp.int32(0)), part(batches, jnp.int32(0)))[1:]
        empty = jax.tree.map(lambda x: jnp.zeros((members, *x.shape[1:]), x.dtype), forms)
        # A loop that writes each group into the whole, and not `lax.map`, which would hold the states twice.
        return jax.lax.fori_loop(0, members // together, one, (states, *empty))

    def updates(states: TrainState, batches: Sequence[Batch]) -> tuple[TrainState, Update, Array]:
        joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
        return (group if together == members else groups)(states, joined)

    return updates


def _of(tree: Any, number: Any) -> Any:
    """Returns the part of one member."""
    return jax.tree.map(lambda x: x[number], tree)
