"""Small mazes in JAX with one reward, at the goal: `make("rooms")`. They are for behaviors that must explore.

The picture shows walls, the agent (red) and the goal (green). The four actions move one cell: up, right, down, left; a
wall stops them. An episode starts at the other end of the maze. It ends with the reward 1 at the goal, or is truncated
at the time limit.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.jax_envs import make_jax_env
from dreamer.spaces import Action, Space, Spec

from ._suite import find_task

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
WALL, AGENT, GOAL = (110, 110, 110), (230, 60, 60), (60, 200, 90)
# Walls are #, starts are s, and the goal is G.
MAPS = {
    "corridor": (
        "############",
        "#ss        #",
        "########## #",
        "#          #",
        "# ##########",
        "#          #",
        "########## #",
        "#          #",
        "# ##########",
        "#         G#",
        "############",
        "############",
    ),
    "rooms": (
        "############",
        "#sss #     #",
        "#sss #     #",
        "#ss  #     #",
        "#          #",
        "#    #     #",
        "## #### ####",
        "#    #     #",
        "#    #     #",
        "#          #",
        "#    #    G#",
        "############",
    ),
}


class State(NamedTuple):
    """cell [2] int32: row and column of the agent | time [] int32: steps since the reset"""

    cell: Array
    time: Array


class Maze(NamedTuple):
    """A map as arrays. walls [H, W] bool | starts [n, 2] int32: cells where episodes begin | goal [2] int32"""

    walls: np.ndarray
    starts: np.ndarray
    goal: np.ndarray


def read(rows: tuple[str, ...]) -> Maze:
    """Reads a map such as those of MAPS."""
    cells = np.array([list(row) for row in rows])
    (goal,) = np.argwhere(cells == "G").astype(np.int32)
    return Maze(cells == "#", np.argwhere(cells == "s").astype(np.int32), goal)


def make(task: str, steps: int = 100, tile: int = 2) -> JaxEnv:
    """Makes the maze called `task`. Raises ValueError for an unknown task or a wrong argument.

    steps: the time limit | tile: the side of a cell in pixels; with 2, the picture is uint8 [24, 24, 3]
    """
    maze = read(MAPS[find_task("jax_mazes", task, MAPS)])
    for name, value in (("steps", steps), ("tile", tile)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    height, width = maze.walls.shape
    draw = functools.partial(picture, maze, tile)
    spec = Spec({"image": Space((height * tile, width * tile, 3), "uint8")}, Action((len(MOVES),)))
    larger = functools.partial(picture, maze, max(tile, 16))
    return make_jax_env(
        spec, functools.partial(_reset, maze, draw), functools.partial(_step, maze, steps, draw), render=larger
    )


def picture(maze: Maze, tile: int, state: State) -> Array:
    """Returns the image uint8 [H * tile, W * tile, 3] of a state."""
    row, column = (jnp.arange(size) for size in maze.walls.shape)
    base = np.where(maze.walls[..., None], np.array(WALL, np.uint8), np.uint8(0))
    base[tuple(maze.goal)] = GOAL
    here = (row[:, None] == state.cell[0]) & (column[None] == state.cell[1])
    cells = jnp.where(here[..., None], jnp.asarray(AGENT, jnp.uint8).reshape(1, 1, 3), jnp.asarray(base))
    return cells.repeat(tile, 0).repeat(tile, 1)


def _reset(maze: Maze, draw: functools.partial, key: Key) -> tuple[State, Array]:
    cell = jnp.asarray(maze.starts)[jax.random.randint(key, (), 0, len(maze.starts))]
    state = State(cell, jnp.zeros((), jnp.int32))
    return state, draw(state)


def _step(
    maze: Maze, steps: int, draw: functools.partial, key: Key, state: State, action: Array
) -> tuple[State, Array, Array, Array, Array]:
    wanted = state.cell + jnp.asarray(MOVES, jnp.int32)[action]
    blocked = jnp.asarray(maze.walls)[wanted[0], wanted[1]]
    state = State(jnp.where(blocked, state.cell, wanted), state.time + 1)
    there = (state.cell == jnp.asarray(maze.goal)).all()
    return state, draw(state), there.astype(jnp.float32), there, state.time >= steps
