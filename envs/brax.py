"""Brax: `make("ant")`. Locomotion and manipulation in a physics engine in JAX."""

from __future__ import annotations

import functools
from typing import Any

from dreamer.interfaces import JaxEnv
from dreamer.jax_envs import make_jax_env, time_limit
from dreamer.spaces import Action, Spec

from ._jax_suite import importing, numbers, reset_task, step_task
from ._suite import find_task


def make(task: str, steps: int = 1000, **options: Any) -> JaxEnv:
    """Makes one task. steps: the time limit, which is not a true end.

    options: arguments of the task's class, such as backend ("generalized", "positional", "spring", "mjx"). Raises
    ValueError and ImportError.
    """
    with importing("brax"):
        from brax import envs
    name = find_task("brax", task, envs._envs)
    try:
        env = envs.get_environment(name, **options)
    except TypeError as error:
        raise ValueError(f"brax:{name}: {error}") from error
    made = make_jax_env(
        Spec({"vector": numbers((int(env.observation_size),))}, Action((), int(env.action_size))),
        functools.partial(reset_task, env),
        functools.partial(step_task, env),
    )
    return time_limit(made, steps)
