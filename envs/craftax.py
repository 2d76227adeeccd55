"""Craftax: `make("Classic-Symbolic")`, `make("Pixels")`. Crafter in JAX ("Classic"), and the full game."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.jax_envs import make_jax_env
from dreamer.spaces import Action, Space, Spec

from ._jax_suite import importing
from ._suite import find_task

TASKS = ("Classic-Symbolic", "Classic-Pixels", "Symbolic", "Pixels")
NEVER = 2**31 - 1  # a time limit that no episode reaches


def make(task: str, max_timesteps: int | None = None) -> JaxEnv:
    """Makes one of the four games: "vector" holds the symbols, or "image" the picture, uint8.

    The full names of the package, "Craftax-Classic-Symbolic-v1", are known too. max_timesteps: the time limit, which is
    not a true end; None: 10,000 in Classic, 100,000 in the full game. The achievements of an episode are logged as
    episode/Achievements/NAME, in percent. Raises ValueError and ImportError.
    """
    name = find_task("craftax", task.removeprefix("Craftax-").removesuffix("-v1"), TASKS)
    with importing("craftax"):
        from craftax.craftax_env import make_craftax_env_from_name

        env = make_craftax_env_from_name(f"Craftax-{name}-v1", auto_reset=False)
        draw, achievements = _of_game(classic=name.startswith("Classic"))
    limit = env.default_params.max_timesteps if max_timesteps is None else max_timesteps
    params = env.default_params.replace(max_timesteps=NEVER)
    shape, pixels = tuple(env.observation_space(params).shape), name.endswith("Pixels")
    obs = {"image": Space(shape, "uint8")} if pixels else {"vector": Space(shape, "float32")}
    return make_jax_env(
        Spec(obs, Action((int(env.num_actions),))),
        functools.partial(_reset, env, params, pixels),
        functools.partial(_step, env, params, limit, pixels),
        render=lambda state: jnp.clip(draw(state), 0, 255).astype(jnp.uint8),
        metrics=functools.partial(_unlocked, achievements),
    )


def _of_game(classic: bool) -> tuple[Any, dict[str, int]]:
    """Returns the function that draws a state with 16 pixels for each block, and the places of the achievements."""
    if classic:
        from craftax.craftax_classic.constants import Achievement
        from craftax.craftax_classic.renderer import make_craftax_pixel_renderer
    else:
        from craftax.craftax.constants import Achievement
        from craftax.craftax.renderer import make_craftax_pixel_renderer
    return make_craftax_pixel_renderer(16), {one.name.lower(): one.value for one in Achievement}


def _unlocked(achievements: dict[str, int], state: Any) -> dict[str, Array]:
    """Returns the achievements of an episode, 100 or 0 each, with the names and the unit of the package."""
    return {f"Achievements/{name}": 100.0 * state.achievements[place] for name, place in achievements.items()}


def _reset(env: Any, params: Any, pixels: bool, key: Key) -> tuple[Any, Array]:
    obs, state = env.reset_env(key, params)
    return state, _bytes(obs) if pixels else obs


def _step(env: Any, params: Any, limit: int, pixels: bool, key: Key, state: Any, action: Array) -> tuple[Any, ...]:
    obs, state, reward, terminated, _ = env.step_env(key, state, action, params)
    return state, _bytes(obs) if pixels else obs, reward, terminated, state.timestep >= limit


def _bytes(obs: Array) -> Array:
    """Returns an image of 0 to 1 as uint8."""
    return jnp.round(jnp.clip(obs, 0.0, 1.0) * 255).astype(jnp.uint8)
