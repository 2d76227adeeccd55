"""The numbers in which the members of a population differ: inputs of the program that they share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer import agent as agents
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.fields import get
from dreamer.interfaces import Agent, Batch, Spec
from dreamer.runtime.devices import placement
from dreamer.runtime.population.members import Member


class Program(NamedTuple):
    """The functions of an agent that a population calls. The numbers in `hyper` are their inputs.

    text: the functions as text | constants: digests of the arrays in them
    read: for each leaf of `hyper`, whether a function reads it
    """

    text: str
    constants: tuple[str, ...]
    read: tuple[bool, ...]


def own_hypers(members: Sequence[Member], shared: Agent, spec: Spec) -> dict[str, Any]:
    """Returns the `hyper` of each member by its name. Members that differ only in their seeds have the same one.

    shared: the agent of the population, made from the config of the first member
    Raises UserError if a member differs from the first one in more than these numbers, or if an axis has no effect.
    """
    firsts: dict[str, Member] = {}
    for member in members:
        firsts.setdefault(repr(member.config.agent), member)
    made = {config: shared if one is members[0] else made_for(one.config, spec) for config, one in firsts.items()}
    hypers = {config: hyper_of(agent) for config, agent in made.items()}
    if len(firsts) > 1:
        program = program_of(shared, spec)
        for config, agent in made.items():
            if agent is not shared and not (same_forms(agent, shared) and program_of(agent, spec) == program):
                raise UserError(
                    f"population.axes: the member {firsts[config].name} needs a program of its own, because an axis "
                    "changes more than numbers; dreamer sweep runs such trials apart"
                )
        check_effect([*firsts.values()], [*hypers.values()], program.read)
    # A copy for each member, because an update may donate it.
    return {member.name: placement.first_copy(hypers[repr(member.config.agent)]) for member in members}


def made_for(config: Config, spec: Spec) -> Agent:
    """Returns the agent of a config, as a run makes it."""
    return agents.make(config.agent, spec, priorities=config.replay.priority > 0)


def hyper_of(agent: Agent) -> Any:
    """Returns the `hyper` of an agent's initial train state, on the first device."""
    return placement.first_copy(jax.jit(lambda key: agent.init(key).hyper)(jax.random.key(0)))


def check_effect(members: Sequence[Member], hypers: Sequence[Any], read: Sequence[bool]) -> None:
    """Raises UserError if two members with different values of the axes would be the same run.

    hypers: those of the members | read: for each of their leaves, whether the program reads it
    """
    found: dict[tuple[float, ...], Member] = {}
    for member, hyper in zip(members, hypers, strict=True):
        other = found.setdefault(numbers_read(hyper, read), member)
        if other is not member:
            own, others = member.config, other.config
            keys = [key for key in {**other.values, **member.values} if get(own, key) != get(others, key)]
            raise UserError(
                f"population: {' and '.join(keys)} would have no effect: the members {other.name} and "
                f"{member.name} would be the same run; leave it out"
            )


def numbers_read(hyper: Any, read: Sequence[bool]) -> tuple[float, ...]:
    """Returns the numbers in `hyper` that a program reads. read: for each leaf, whether it does"""
    return tuple(float(x) for x, is_read in zip(jax.tree.leaves(hyper), read, strict=True) if is_read)


def same_forms(one: Agent, other: Agent) -> bool:
    """Whether the train states of two agents have the same shapes. It is found sooner than their programs."""
    mine, theirs = (str(jax.eval_shape(agent.init, jax.random.key(0))) for agent in (one, other))
    return mine == theirs


def program_of(agent: Agent, spec: Spec) -> Program:
    """Returns the functions of an agent that the members of a population share, traced for rows of `spec`."""
    envs, rows = (2,), (2, 4)
    key, flag = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct(envs, "bool")
    carry: Any = jax.eval_shape(lambda: agent.initial_carry(*envs))
    state = jax.eval_shape(agent.init, key)
    numbers, tree = jax.tree.flatten(state.hyper)

    def functions(numbers: list[Any], key: Any, state: Any, batch: Batch, carry: Any, obs: Any, flag: Any) -> Any:
        state = state._replace(hyper=jax.tree.unflatten(tree, numbers))
        variables = agent.variables(state)
        modes: Any = ("collect", "sample", "mode")
        acted = [agent.act(variables, key, carry, obs, flag, mode) for mode in modes]
        after, update = agent.update(state, batch)
        begun = agent.initial_carry(*envs), agent.pack(carry.state), agent.init(key)._replace(hyper={})
        return begun, acted, after._replace(hyper={}), update, agent.report(state, batch)

    batch, obs = _batch(agent, spec, rows), _obs(spec, envs)
    closed = jax.make_jaxpr(functions)(numbers, key, state._replace(hyper={}), batch, carry, obs, flag)
    read = {id(x) for equation in closed.eqns for x in equation.invars}
    return Program(
        text=re.sub(r" at 0x[0-9a-f]+", "", str(closed)),
        constants=tuple(_constants(closed)),
        read=tuple(id(x) in read for x in closed.jaxpr.invars[: len(numbers)]),
    )


def _batch(agent: Agent, spec: Spec, rows: tuple[int, int]) -> Batch:
    """Returns the form of a batch [B, C+T, ..]."""
    lengths = {k: rows[1] if k in agent.reads else 1 for k in agent.storage}
    latent = {k: jax.ShapeDtypeStruct((rows[0], lengths[k], *x.shape), x.dtype) for k, x in agent.storage.items()}
    action = jax.ShapeDtypeStruct((*rows, spec.action_width), "float32")
    reward, flags = (jax.ShapeDtypeStruct(rows, dtype) for dtype in ("float32", "bool"))
    made: Any = Batch(_obs(spec, rows), action, reward, flags, flags, flags, latent)
    return made


def _obs(spec: Spec, lead: tuple[int, ...]) -> dict[str, Any]:
    return {k: jax.ShapeDtypeStruct((*lead, *x.shape), x.device_dtype) for k, x in spec.obs.items()}


def _constants(part: Any) -> Iterator[str]:
    """Yields a digest of each array in a jaxpr and in those inside it, whose text shows only its shape."""
    if isinstance(part, list | tuple):
        for one in part:
            yield from _constants(one)
    elif hasattr(part, "consts"):
        yield from map(_digest, part.consts)
        yield from _constants(part.jaxpr)
    elif hasattr(part, "eqns"):
        for equation in part.eqns:
            yield from (_digest(x.val) for x in equation.invars if np.ndim(getattr(x, "val", 0)))
            yield from _constants([*equation.params.values()])


def _digest(array: Any) -> str:
    is_key = jax.dtypes.issubdtype(getattr(array, "dtype", None), jax.dtypes.prng_key)
    numbers = np.asarray(jax.random.key_data(array) if is_key else array)
    return f"{numbers.dtype} {numbers.shape} {hashlib.sha256(numbers.tobytes()).hexdigest()}"
