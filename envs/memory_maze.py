"""Memory Maze: `make("9x9")`. Mazes in first-person view; the image's border has the colour of the object to find.

The suite needs OpenGL, even without a screen.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import gymnasium
import numpy as np

from ._dm_env import DMEnv
from ._mujoco import choose_graphics, loading, quiet
from ._suite import check_choice, extra, find_task

TASKS = ("9x9", "11x11", "13x13", "15x15")


def make(task: str, size: int = 64, render_mode: str | None = None) -> gymnasium.Env:
    """Makes mazes of one size, with an image uint8 [size, size, 3] and 6 actions. Raises ValueError and ImportError."""
    name = find_task("memory_maze", task, TASKS)
    check_choice("memory_maze", "render_mode", render_mode, (None, "rgb_array"))
    choose_graphics("memory_maze")
    tasks = _tasks()
    maze = getattr(tasks, f"memory_maze_{name}")
    return MemoryMaze(lambda seed: maze(image_only_obs=True, camera_resolution=size, seed=seed), render_mode)


class MemoryMaze(DMEnv):
    """Mazes, a new one for each episode. A time limit truncates episodes; they never terminate."""

    def __init__(self, build: Any, render_mode: str | None):
        self._build = build
        with quiet():
            super().__init__(build(0), render_mode)
        self._picture = np.zeros(self.observation_space.shape or (), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Begins an episode in a new maze."""
        with quiet():
            return super().reset(seed=seed, options=options)

    def render(self) -> np.ndarray:
        """Returns the last observation of the agent."""
        return self._picture

    def _seed(self, seed: int) -> None:
        self._env.close()
        self._env = self._build(int(self.np_random.integers(2**31)))

    def _observed(self, observation: Any) -> np.ndarray:
        self._picture = super()._observed(observation)
        return self._picture


def _tasks() -> Any:
    with extra("memory_maze"), loading("memory_maze"):
        # Only the package's __init__ needs the old gym, so the tasks are imported without running it.
        if "memory_maze" not in sys.modules:
            spec = importlib.util.find_spec("memory_maze")
            if spec is None:
                raise ModuleNotFoundError("No module named 'memory_maze'", name="memory_maze")
            package = types.ModuleType("memory_maze")
            package.__path__ = list(spec.submodule_search_locations or [])
            package.__spec__ = spec
            sys.modules["memory_maze"] = package
        from memory_maze import tasks
    return tasks
