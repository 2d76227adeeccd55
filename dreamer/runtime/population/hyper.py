"""The numbers of a member of a population: all that distinguishes its program's inputs from those of the others."""

from __future__ import annotations

import re
from typing import Any

import jax

from dreamer import agent as agents
from dreamer.errors import UserError
from dreamer.interfaces import Agent, Batch, Spec, TrainState
from dreamer.runtime.devices import placement
from dreamer.runtime.population.members import Member


def own_hyper(state: TrainState, shared: Agent, member: Member, spec: Spec) -> TrainState:
    """Returns a new train state with the member's own numbers.

    shared: the agent of the population. Raises UserError if the member differs from it in more than these numbers.
    """
    own = agents.make(member.config.agent, spec, priorities=member.config.replay.priority > 0)
    if program_of(own, spec) != program_of(shared, spec):
        raise UserError(
            f"population.axes: the member {member.name} needs a program of its own, because an axis changes more than "
            "numbers; dreamer sweep runs such trials apart"
        )
    return state._replace(hyper=hyper_of(own))


def hyper_of(agent: Agent) -> Any:
    """Returns the `hyper` of an agent's initial train state, on the first device."""
    return placement.first_copy(jax.jit(lambda key: agent.init(key).hyper)(jax.random.key(0)))


def program_of(agent: Agent, spec: Spec) -> str:
    """Returns the program of an update as text. The numbers in `hyper` are its inputs, so they are not in the text."""
    rows = (2, 4)
    obs = {k: jax.ShapeDtypeStruct((*rows, *x.shape), x.device_dtype) for k, x in spec.obs.items()}
    latent = {k: jax.ShapeDtypeStruct((2, 1, *x.shape), x.dtype) for k, x in agent.storage.items()}
    numbers, flags = (jax.ShapeDtypeStruct(rows, dtype) for dtype in ("float32", "bool"))
    action = jax.ShapeDtypeStruct((*rows, spec.action_width), "float32")
    batch: Any = Batch(obs, action, numbers, flags, flags, flags, latent)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    return re.sub(r" at 0x[0-9a-f]+", "", str(jax.make_jaxpr(agent.update)(state, batch)))
