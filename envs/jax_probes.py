"""The probes in JAX: `make("counter")`. The tasks, and what each of them tests, are those of envs/probes.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.jax_envs import between, make_jax_env
from dreamer.spaces import Action, Space, Spec

from ._suite import find_task

SIDE = 64


class State(NamedTuple):
    """time [] int32: steps since the reset | cue [] int32: -1 or 1 | right [] bool: whether the first action was it"""

    time: Array
    cue: Array
    right: Array


class Task(NamedTuple):
    """A probe. native: the environment's own action, an index or a number from -2 to 2.

    reward(state, native) -> [], the reward of a step that begins in `state` | steps: the usual length of an episode
    observe(state) -> float32 [1] | keeps: whether the cue stays the same for an episode
    late: whether the first action is rewarded in the last step, instead of each action at once
    action: the agent's action | pixels: whether an image shows the cue
    """

    reward: Callable[[State, Array], Array]
    steps: int = 8
    observe: Callable[[State], Array] = lambda state: jnp.zeros(())
    keeps: bool = False
    late: bool = False
    action: Action = Action((2,))
    pixels: bool = False


def shown(state: State) -> Array:
    """Returns the cue."""
    return state.cue


def named(state: State, native: Array) -> Array:
    """Returns 1 if the cue names the action, else 0."""
    return native == (state.cue > 0)


TASKS = {
    "constant": Task(lambda state, native: jnp.ones(()), steps=1),
    "observation": Task(lambda state, native: state.cue, steps=1, observe=shown, keeps=True),
    "delayed": Task(named, steps=4, observe=lambda state: jnp.where(state.time == 0, state.cue, 0), late=True),
    "action": Task(lambda state, native: native == 1),
    "action_continuous": Task(lambda state, native: 1.0 - jnp.abs(native[0] - 1.0) / 2, action=Action((), 1)),
    "both": Task(named, observe=shown),
    "counter": Task(lambda state, native: native, action=Action((4,))),
    "pixel": Task(named, pixels=True),
}


def make(task: str, steps: int | None = None, side: int | None = None) -> JaxEnv:
    """Makes the probe called `task`. Raises ValueError for an unknown task or a wrong argument.

    steps: the episode length; None: that of the probe | side: the side of the image of "pixel"; None: 64
    """
    name = find_task("jax_probes", task, TASKS)
    found = TASKS[name]
    if side is not None and not found.pixels:
        raise ValueError(f"only the probe 'pixel' shows an image, so {name!r} takes no side")
    side = SIDE if side is None else side
    if side < 8 or side % 8:
        raise ValueError(f"the side of the image must be a multiple of 8, not {side}")
    steps = found.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"a probe needs at least one step, not {steps}")
    obs = {"image": Space((side, side, 3), "uint8")} if found.pixels else {"vector": Space((1,), "float32")}
    observe = functools.partial(_picture, side) if found.pixels else lambda state: jnp.float32(found.observe(state))
    native = between([-2.0], [2.0]) if found.action.continuous else None
    reset = functools.partial(_reset, observe)
    step = functools.partial(_step, found, steps, observe)
    return make_jax_env(Spec(obs, found.action), reset, step, native)


def _reset(observe: Callable[[State], Array], key: Key) -> tuple[State, Array]:
    state = State(jnp.zeros((), jnp.int32), _drawn(key), jnp.zeros((), bool))
    return state, observe(state)


def _step(
    task: Task, steps: int, observe: Callable[[State], Array], key: Key, state: State, native: Array
) -> tuple[State, Array, Array, Any, Any]:
    reward = jnp.float32(task.reward(state, native))
    if task.late:
        state = state._replace(right=jnp.where(state.time == 0, reward > 0, state.right))
        reward = jnp.float32(state.right & (state.time == steps - 1))
    after = state._replace(time=state.time + 1, cue=state.cue if task.keeps else _drawn(key))
    return after, observe(after), reward, after.time >= steps, False


def _drawn(key: Key) -> Array:
    return jnp.where(jax.random.bernoulli(key), 1, -1).astype(jnp.int32)


def _picture(side: int, state: State) -> Array:
    """Returns an image uint8 [side, side, 3] with a bright square on the left or, for cue 1, on the right."""
    eighth = side // 8
    row, column = jnp.arange(side)[:, None, None], jnp.arange(side)[None, :, None]
    left = eighth * jnp.where(state.cue > 0, 5, 1)
    bright = (row >= 3 * eighth) & (row < 5 * eighth) & (column >= left) & (column < left + 2 * eighth)
    return jnp.broadcast_to(jnp.where(bright, 255, 0), (side, side, 3)).astype(jnp.uint8)
