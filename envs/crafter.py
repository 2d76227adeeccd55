"""Crafter: `make("reward")` or `make("noreward")`, an image [64, 64, 3] and 17 discrete actions."""

from __future__ import annotations

import collections
import copy
from typing import Any

import gymnasium
import numpy as np

from ._suite import check_choice, extra, find_task

TASKS = ("reward", "noreward")
VIEWS = ("_local_view", "_sem_view")  # attributes that refer to the world


def make(task: str, size: tuple[int, int] = (64, 64), render_mode: str | None = None) -> gymnasium.Env:
    """Makes the game, with ("reward") or without ("noreward") rewards. Raises ValueError and ImportError."""
    name = find_task("crafter", task, TASKS)
    check_choice("crafter", "render_mode", render_mode, (None, "rgb_array"))
    with extra("crafter"):
        import crafter
    return Crafter(crafter, name == "reward", (int(size[0]), int(size[1])), render_mode)


class InOrder(dict):
    """A set whose iteration follows the order of insertion.

    The game picks random creatures by their index in a set of objects. The order of a Python set would differ between
    processes.
    """

    def add(self, item: Any) -> None:
        """Adds an item, as the method of a set does."""
        self[item] = None

    def remove(self, item: Any) -> None:
        """Removes an item, as the method of a set does."""
        del self[item]


class Crafter(gymnasium.Env):
    """The game as a gymnasium environment. Death terminates an episode; the length limit truncates it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, crafter: Any, reward: bool, size: tuple[int, int], render_mode: str | None):
        self.render_mode = render_mode
        self._make = lambda seed: crafter.Env(size=size, reward=reward, seed=seed)
        self._env = self._make(None)
        self.observation_space = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self._env.action_space.n)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begins an episode in a new world."""
        super().reset(seed=seed)
        if seed is not None:
            self._env = self._make(seed)
        image = self._env.reset()
        world = self._env._world
        world._chunks = collections.defaultdict(InOrder)
        for thing in filter(None, world._objects):
            world._chunks[world.chunk_key(thing.pos)].add(thing)
        return image, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Takes one step. The game itself returns the four values of old gym, and info["discount"] is 0 after death."""
        image, reward, over, info = self._env.step(action)
        dead = over and info["discount"] == 0
        return image, float(reward), bool(dead), bool(over and not dead), info

    def render(self) -> np.ndarray:
        """Returns an image uint8 [512, 512, 3], and leaves the world's random state unchanged.

        The game draws random numbers for the noise in images at night.
        """
        random = self._env._world.random
        before = random.get_state()
        image = self._env.render((512, 512))
        random.set_state(before)
        return image

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on."""
        inner = {key: value for key, value in vars(self._env).items() if not key.endswith(("_view", "_textures"))}
        return copy.deepcopy(inner)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned."""
        vars(self._env).update(copy.deepcopy(state))
        for view in VIEWS:
            getattr(self._env, view)._world = self._env._world
