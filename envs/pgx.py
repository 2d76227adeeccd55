"""pgx: `make("minatar-breakout")`, `make("2048")`. MinAtar and 2048 in JAX; other games need an opponent."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.jax_envs import make_jax_env, time_limit
from dreamer.spaces import MASK, Action, Space, Spec

from ._jax_suite import box, cells, importing
from ._suite import find_task


def make(task: str, steps: int | None = None) -> JaxEnv:
    """Makes one game of one player. MinAtar's observations are layers, bool [10, 10, C].

    Games in which some actions are illegal have the observation "action_mask", which the agent obeys.
    steps: a time limit, which is not a true end; None: the game has none. Raises ValueError and ImportError.
    """
    with importing("pgx"):
        import pgx
    name = find_task("pgx", task, pgx.available_envs())
    env = pgx.make(name)
    if env.num_players != 1:
        raise ValueError(f"pgx:{name} is a game of {env.num_players} players; choices: 2048 and MinAtar's, minatar-...")
    state = jax.eval_shape(env.init, jax.random.key(0))
    masked = not name.startswith("minatar")
    obs = {"image": box(0, 1, state.observation.shape, state.observation.dtype)}
    if masked:
        obs[MASK] = Space(state.legal_action_mask.shape, "int8", 2)
    made = make_jax_env(
        Spec(obs, Action(state.legal_action_mask.shape)),
        functools.partial(_reset, env, masked),
        functools.partial(_step, env, masked),
        render=_render,
    )
    return made if steps is None else time_limit(made, steps)


def _observed(masked: bool, state: Any) -> dict[str, Array]:
    return {"image": state.observation, **({MASK: state.legal_action_mask} if masked else {})}


def _reset(env: Any, masked: bool, key: Key) -> tuple[Any, dict[str, Array]]:
    state = env.init(key)
    return state, _observed(masked, state)


def _step(env: Any, masked: bool, key: Key, state: Any, action: Array) -> tuple[Any, ...]:
    state = env.step(state, action, key)
    return state, _observed(masked, state), jnp.sum(state.rewards), state.terminated, state.truncated


def _render(state: Any) -> Array:
    return cells(state.observation > 0)
