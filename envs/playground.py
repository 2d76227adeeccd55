"""MuJoCo Playground: `make("CartpoleBalance")`. The DeepMind Control Suite, locomotion and manipulation in JAX."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from dreamer.interfaces import JaxEnv
from dreamer.jax_envs import make_jax_env, repeat, time_limit
from dreamer.spaces import Action, Space, Spec

from ._jax_suite import importing, numbers, reset_task, step_task
from ._suite import find_task

HIDDEN = "privileged_state"  # what a critic may know and the agent may not


def make(task: str, impl: str = "jax", privileged: bool = False, **options: Any) -> JaxEnv:
    """Makes one task. The time limit is that of the task, episode_length, and is not a true end.

    impl: the implementation of the physics, "jax" or "warp" (Nvidia only)
    privileged: whether to observe "privileged_state" too, in tasks that have it
    options: further fields of the task's configuration, such as episode_length. Raises ValueError and ImportError.
    Locomotion and some manipulation tasks fetch their robots from the network when they are made first.
    """
    with importing("playground"):
        from mujoco_playground import registry
    name = find_task("playground", task, registry.ALL_ENVS)
    config = registry.get_default_config(name)
    try:
        env = registry.load(name, config_overrides={"impl": impl, **options})
    except (KeyError, subprocess.CalledProcessError) as error:
        more = ": it fetches its robots from the network" if isinstance(error, subprocess.CalledProcessError) else ""
        raise ValueError(f"playground:{name}{more}: {' '.join(str(error).split())}") from error
    length, times = (int(options.get(key, config.get(key, 1))) for key in ("episode_length", "action_repeat"))
    made = make_jax_env(
        Spec(_spaces(env, privileged), Action((), int(env.action_size))),
        functools.partial(reset_task, env),
        functools.partial(step_task, env),
    )
    return repeat(time_limit(made, length), times)


def _spaces(env: Any, privileged: bool) -> dict[str, Space]:
    obs = jax.eval_shape(env.reset, jax.random.PRNGKey(0)).obs
    if not isinstance(obs, Mapping):
        return {"vector": numbers(obs.shape)}
    return {key: numbers(form.shape) for key, form in sorted(obs.items()) if privileged or key != HIDDEN}
