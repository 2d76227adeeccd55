"""The mazes in JAX: what is drawn, where walls are, and how episodes end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import jax_envs
from envs import jax_mazes

KEY = jax.random.key(0)
TURNS = {"up": 0, "right": 1, "down": 2, "left": 3}
WAYS = {"corridor": "R9 D2 L9 D2 R9 D2 L9 D2 R9", "rooms": "D3 R6 D6 R3"}


def way(task: str) -> list[int]:
    """Actions from the top left cell to the goal, and back into walls on the way."""
    letters = {"R": 1, "D": 2, "L": 3}
    return [letters[part[0]] for part in WAYS[task].split() for _ in range(int(part[1:]))]


def started(env, cell):
    state, row = jax.jit(env.reset)(KEY)
    return jax.tree.map(lambda x: x, state), row, jnp.asarray(cell, jnp.int32)


@pytest.mark.parametrize("task", jax_mazes.MAPS)
def test_the_goal_is_far_and_ends_the_episode_with_the_only_reward(task):
    maze = jax_mazes.read(jax_mazes.MAPS[task])
    state = jax_mazes.State(jnp.asarray([1, 1], jnp.int32), jnp.zeros((), jnp.int32))
    step = jax.jit(lambda state, action: jax_mazes._step(maze, 100, lambda state: state.cell, KEY, state, action))
    for i, action in enumerate(way(task)):
        state, _, reward, ended, cut = step(state, action)
        last = i == len(way(task)) - 1
        assert (float(reward), bool(ended), bool(cut)) == (float(last), last, False)
    assert len(way(task)) >= 18


def test_walls_stop_and_the_time_limit_is_no_true_end():
    env = jax_mazes.make("rooms", steps=3)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state, row = reset(KEY)
    assert bool(row.is_first) and row.obs["image"].shape == (24, 24, 3)
    for _ in range(3):
        state, row = step(KEY, state, jnp.eye(4)[TURNS["up"]])
    assert bool(row.is_last) and not bool(row.is_terminal)
    red = np.argwhere((np.asarray(row.obs["image"]) == jax_mazes.AGENT).all(-1))
    assert red.min(0)[0] == 2 and len(red) == 4  # below the wall, one cell of two by two pixels


def test_episodes_begin_in_every_start_cell():
    maze = jax_mazes.read(jax_mazes.MAPS["rooms"])
    reset = jax.jit(jax.vmap(lambda key: jax_mazes._reset(maze, lambda state: state.cell, key)[1]))
    found = {tuple(cell) for cell in np.asarray(reset(jax.random.split(KEY, 200))).tolist()}
    assert found == {tuple(cell) for cell in maze.starts.tolist()} and len(found) == 8


@pytest.mark.parametrize("task", jax_mazes.MAPS)
def test_a_maze_is_sound_and_draws_itself(task):
    env = jax_mazes.make(task)
    jax_envs.check(env, task)
    image = env.render(env.reset(KEY)[0])
    assert image.shape == (192, 192, 3) and image.dtype == jnp.uint8


@pytest.mark.parametrize(
    "task, options, text",
    [("room", {}, "rooms"), ("rooms", {"steps": 0}, "steps must be at least 1"), ("rooms", {"tile": 0}, "tile must")],
)
def test_wrong_arguments_are_named(task, options, text):
    with pytest.raises(ValueError, match=text):
        jax_mazes.make(task, **options)
