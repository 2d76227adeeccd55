"""Small environments in JAX for tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.interfaces import JaxEnv, Step
from dreamer.jax_envs import make_jax_env
from dreamer.spaces import Action, Space, Spec

KEY = jax.random.key(0)
VECTOR = {"vector": Space((2,), "float32")}
TWO = Action((2,))


def walk(end: int = 5, agents: int = 1) -> JaxEnv:
    """A walk of a random start: it goes on by 1 for action 1, whose reward is its position, and ends at `end`."""
    lead = (agents,) if agents > 1 else ()

    def obs(state):
        return jnp.broadcast_to(state[..., None], (*lead, 2))

    def reset(key):
        state = jax.random.uniform(key, lead)
        return state, obs(state)

    def step(key, state, native):
        state = state + native
        return state, obs(state), state, jnp.all(state >= end), False

    return make_jax_env(Spec(VECTOR, TWO, agents), reset, step)


def of(obs: dict[str, Space], action: Action = TWO, agents: int = 1) -> JaxEnv:
    """An environment whose observations are zero."""
    lead = (agents,) if agents > 1 else ()
    zeros = {key: jnp.zeros((*lead, *space.shape), space.dtype) for key, space in obs.items()}
    reset, step = (lambda key: (key, zeros)), (lambda key, state, native: (key, zeros, 0.0, False, False))
    return make_jax_env(Spec(obs, action, agents), reset, step)


def measured(agents: int = 1) -> JaxEnv:
    """An environment whose own metric is the number of steps of an episode, which ends after a random time."""
    lead = (agents,) if agents > 1 else ()

    def reset(key):
        return jnp.int32(0), jnp.zeros((*lead, 2))

    def step(key, state, native):
        return state + 1, jnp.zeros((*lead, 2)), 0.0, jax.random.uniform(key) < 0.3, False

    return make_jax_env(Spec(VECTOR, TWO, agents), reset, step, metrics=lambda state: {"steps": state, "more/one": 1})


def odd_leaves(impl: str = "rbg") -> JaxEnv:
    """A random walk whose env_state has a key of the kind `impl`, and arrays in dtypes that numpy does not have."""

    def obs(state):
        key, short, shorter, small = state
        numbers = [jnp.sum(x.astype(jnp.float32)) for x in (short, shorter, small)]
        return jnp.stack([jax.random.uniform(key), sum(numbers)])

    def reset(key):
        own = jax.random.key(jax.random.bits(key, dtype=jnp.uint32), impl=impl)
        state = own, jnp.full(2, 0.5, jnp.bfloat16), jnp.float8_e4m3fn(1), jnp.ones(3, jnp.int4)
        return state, obs(state)

    def step(key, state, native):
        key, short, shorter, small = state
        state = jax.random.split(key)[0], short + 1, shorter, small
        return state, obs(state), 0.0, short[0] > 3, False

    return make_jax_env(Spec(VECTOR, TWO), reset, step)


def one_hot(index: int, classes: int = 2) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[index]


def broken(**changes) -> JaxEnv:
    """A hand-made environment. changes: fields of the row of its step, which are wrong."""

    def row(first, **changes):
        no = jnp.zeros((), bool)
        obs, zero = {"vector": jnp.zeros(2)}, jnp.zeros(())
        return Step(obs, jnp.zeros(2), zero, no | first, no, no)._replace(**changes)

    def step(key, state, action):
        return state, row(False, **changes)

    return JaxEnv(Spec(VECTOR, TWO), lambda key: (jnp.zeros(3), row(True)), step)
