"""navix, MiniGrid in JAX: `make("Empty-5x5")` is navix's Navix-Empty-5x5-v0."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.jax_envs import make_jax_env
from dreamer.spaces import Action, Space, Spec

from ._jax_suite import importing
from ._suite import check_choice, find_task

VIEWS = ("symbols", "ahead", "picture", "whole")
CLASSES = 11  # objects, as in MiniGrid; colors and states are fewer


def make(task: str, view: str = "symbols", max_steps: int | None = 100, **options: Any) -> JaxEnv:
    """Makes one task. view: what the agent observes.

    view "symbols": the whole grid as classes. "symbols" [H * W * 3] holds the object, the color and the state of each
        field, at most 11 classes each; the state of the agent is its direction.
    view "ahead": the same of the 7 x 7 fields ahead of the agent.
    view "whole": an image of the whole grid, uint8 [8 * H, 8 * W, 3]. view "picture": of the 7 x 7 fields ahead.
    max_steps: the time limit, by default that of navix; None: 4 * H * W, as in MiniGrid.
    options: arguments of navix.make. Raises ValueError and ImportError.
    """
    with importing("navix"):
        import navix
    check_choice("navix", "view", view, VIEWS)
    known = list(navix.registry())
    name = find_task("navix", _full(task), known)
    observe = {
        "symbols": navix.observations.symbolic, "ahead": navix.observations.symbolic_first_person,
        "whole": navix.observations.rgb, "picture": navix.observations.rgb_first_person,
    }[view]  # fmt: skip
    env = navix.make(name, max_steps=max_steps, observation_fn=observe, **options)
    shape = tuple(env.observation_space.shape)
    obs = {"image": Space(shape, "uint8")}
    if view in ("symbols", "ahead"):
        obs = {"symbols": Space((math.prod(shape),), "uint8", CLASSES)}
    return make_jax_env(
        Spec(obs, Action((int(env.action_space.n),))),
        functools.partial(_reset, env),
        functools.partial(_step, env),
        render=functools.partial(_render, navix.observations.rgb),
    )


def _full(task: str) -> str:
    """Returns the name that navix gives a task: "Empty-5x5" is "Navix-Empty-5x5-v0"."""
    name = task if task.lower().startswith("navix-") else f"Navix-{task}"
    return name if name.lower().endswith("-v0") else f"{name}-v0"


def _reset(env: Any, key: Key) -> tuple[Any, Array]:
    timestep = env.reset(key)
    return timestep, timestep.observation


def _step(env: Any, key: Key, timestep: Any, action: Array) -> tuple[Any, ...]:
    timestep = env._step(timestep, action)  # `step` is the same, with a reset computed at every call
    return timestep, timestep.observation, timestep.reward, timestep.is_termination(), timestep.is_truncation()


def _render(draw: Any, timestep: Any) -> Array:
    return jnp.asarray(draw(timestep.state), jnp.uint8)
