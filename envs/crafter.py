"""Crafter: `make("reward")` or `make("noreward")`, a picture [64, 64, 3] and 17 discrete actions."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

TASKS = ("reward", "noreward")


def make(task: str, size: tuple[int, int] = (64, 64), render_mode: str | None = None) -> gymnasium.Env:
    """The game, with its achievements as the reward or without reward. Raises ValueError and ImportError."""
    if task not in TASKS:
        raise ValueError(f"crafter has no task {task!r}; choices: {', '.join(TASKS)}")
    try:
        import crafter
    except ModuleNotFoundError as error:
        advice = 'pip install ".[crafter]" in the checkout'
        raise ImportError(f"crafter needs the package {error.name!r}: {advice}") from error
    return Crafter(crafter, task == "reward", (int(size[0]), int(size[1])), render_mode)


class Crafter(gymnasium.Env):
    """The game with gymnasium's face. A length limit cuts the episode, death ends it."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, crafter: Any, reward: bool, size: tuple[int, int], render_mode: str | None):
        self.render_mode = render_mode
        self._make = lambda seed: crafter.Env(size=size, reward=reward, seed=seed)
        self._env = self._make(None)
        self.observation_space = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self._env.action_space.n)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode in a new world."""
        super().reset(seed=seed)
        if seed is not None:
            self._env = self._make(seed)
        return self._env.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One step of the game, whose interface is the old one of four values; its discount is 0 at death."""
        image, reward, over, info = self._env.step(action)
        dead = over and info["discount"] == 0
        return image, float(reward), bool(dead), bool(over and not dead), info

    def render(self) -> np.ndarray:
        """A picture uint8 [512, 512, 3]."""
        return self._env.render((512, 512))
