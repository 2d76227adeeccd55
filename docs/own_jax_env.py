"""An environment in JAX: a point in the plane is pushed towards a target."""

import jax
import jax.numpy as jnp

from dreamer.interfaces import JaxEnv
from dreamer.jax_envs import make_jax_env, time_limit
from dreamer.spaces import Action, Space, Spec

NEAR = 0.1


def make(steps: int = 100) -> JaxEnv:
    """Makes the environment. steps: the time limit"""
    spec = Spec({"vector": Space((4,), "float32")}, Action(continuous=2))
    return time_limit(make_jax_env(spec, reset, step), steps)


def reset(key):
    """Begins an episode: returns its state and the first observation."""
    state = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)  # the point, then the target
    return state, state


def step(key, state, push):
    """Takes an action [2] from -1 to 1: returns state, observation, reward, terminated, truncated."""
    point, target = jnp.clip(state[:2] + 0.1 * push, -1.0, 1.0), state[2:]
    state = jnp.concatenate([point, target])
    distance = jnp.linalg.norm(point - target)
    return state, state, -distance, distance < NEAR, False
