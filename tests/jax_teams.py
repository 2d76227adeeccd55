"""A game of two agents, written in JAX: each sees its own sum, and both are paid for the difference."""

from __future__ import annotations

import jax

from dreamer.interfaces import JaxEnv
from dreamer.jax_envs import make_jax_env, time_limit
from dreamer.spaces import Action, Space, Spec


def make() -> JaxEnv:
    """Makes the game, whose episodes have five steps."""
    spec = Spec({"vector": Space((1,), "float32")}, Action((3,)), agents=2)
    return time_limit(make_jax_env(spec, reset, step), 5)


def reset(key):
    """Begins an episode with a random sum for each agent."""
    sums = jax.random.uniform(key, (2, 1))
    return sums, sums


def step(key, sums, choice):
    """Adds the choices [2] of both agents to their sums."""
    sums = sums + choice[:, None] + 0.1 * jax.random.normal(key, (2, 1))
    return sums, sums, sums[:, 0] - sums[::-1, 0], False, False
