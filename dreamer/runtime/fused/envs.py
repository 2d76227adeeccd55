"""Many copies of an environment written in JAX, as pure functions. The episodes follow the rows of `steps.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.steps import Step


class Envs(NamedTuple):
    """The environments between two turns.

    env: their states, a pytree of arrays [E, ..] | row: their newest rows [E, ..]
    key [E]: the random key of each environment | turns [E] int32: the number of rows that each has made
    """

    env: Any
    row: Step
    key: Key
    turns: Array


class Functions(NamedTuple):
    """The functions of E environments.

    begin(key [E]) -> Envs: all environments make their reset rows
    turn(envs, action [E, A], asked [E] bool) -> Envs: the environments that are asked make their next row, a reset row
        after a row that is_last; the others stay as they are. Under `vmap`, all environments together form one axis.
    metrics(envs) -> {name: [E] float32}: the environments' own metrics of their current episodes
    If the environment has several agents, the arrays of rows and actions are [E, agents, ..].
    """

    begin: Callable[[Key], Envs]
    turn: Callable[[Envs, Array, Array], Envs]
    metrics: Callable[[Envs], dict[str, Array]]


def make(env: JaxEnv) -> Functions:
    """Returns the functions of many copies of `env`."""

    def begin(key: Key) -> Envs:
        turns = jnp.zeros(key.shape, jnp.int32)
        return Envs(*jax.vmap(env.reset)(_keys(key, turns)), key, turns + 1)

    def turn(envs: Envs, action: Array, asked: Array) -> Envs:
        keys = _keys(envs.key, envs.turns)
        stepped = jax.vmap(env.step)(keys, envs.env, action)
        over = asked & _any_agent(envs.row.is_last)
        # A reset can cost more than ten steps, and most turns need none.
        after = jax.lax.cond(
            over.any(), lambda: choose(over, jax.vmap(env.reset)(keys), stepped), lambda: stepped
        )
        state, row = choose(asked, after, (envs.env, envs.row))
        return Envs(state, row, envs.key, envs.turns + asked)

    def metrics(envs: Envs) -> dict[str, Array]:
        own = jax.vmap(env.metrics)(envs.env) if env.metrics else {}
        return {name: jnp.asarray(x, jnp.float32) for name, x in own.items()}

    return Functions(begin, _flattened(turn), metrics)


def _flattened(turn: Callable[[Envs, Array, Array], Envs]) -> Callable[[Envs, Array, Array], Envs]:
    """Returns `turn` with a rule for `vmap`. Without the rule, `vmap` would make every turn compute the resets."""
    own = jax.custom_batching.custom_vmap(turn)

    def rule(members: int, batched: Any, envs: Envs, action: Array, asked: Array) -> tuple[Envs, Any]:
        def flat(x: Array, has_axis: bool) -> Array:
            whole = x if has_axis else jnp.broadcast_to(x[None], (members, *x.shape))
            return whole.reshape(-1, *whole.shape[2:])

        out = own(*jax.tree.map(flat, (envs, action, asked), tuple(batched)))
        out = jax.tree.map(lambda x: x.reshape(members, -1, *x.shape[1:]), out)
        return out, jax.tree.map(lambda x: True, out)

    own.def_vmap(rule)
    return own


def env_keys(seeds: Array) -> Key:
    """Returns the random key of each environment, [E], from its seed [E]."""
    return jax.vmap(jax.random.key)(seeds)


def _keys(key: Key, turns: Array) -> Key:
    return jax.vmap(jax.random.fold_in)(key, turns)


def _any_agent(flag: Array) -> Array:
    """Returns whether an episode ends, [E], from the flags [E] or [E, agents]. All agents end together."""
    return flag if flag.ndim == 1 else flag.any(-1)


def choose(condition: Array, one: Any, other: Any) -> Any:
    """Returns the leaves [E, ..] of `one` where `condition` [E] is set, else those of `other`."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, one, other)
