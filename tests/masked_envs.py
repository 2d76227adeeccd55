"""Environments that return a mask of allowed actions, and raise if another action is taken."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (1,)), "c": spaces.Discrete(2)})


class Strict(gymnasium.Env):
    """Forbids one choice of each part at each step: the mask and an observed number show it. Episodes have 6 steps."""

    action_space = ACTIONS

    def __init__(self, where: str):
        self.where = where
        number = spaces.Box(0, 5, (1,), np.float32)
        mask = {"action_mask": spaces.MultiBinary(5)} if where == "obs" else {}
        self.observation_space = spaces.Dict({"number": number, **mask})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._show()

    def step(self, action: dict) -> tuple[dict, float, bool, bool, dict]:
        if action["a"] == self.forbidden or action["c"] == self.forbidden % 2:
            raise ValueError(f"{action} is forbidden")
        self.time += 1
        obs, info = self._show()
        return obs, 1.0, False, self.time >= 6, info

    def _show(self) -> tuple[dict, dict]:
        self.forbidden = int(self.np_random.integers(3))
        a, c = np.ones(3, np.int8), np.ones(2, np.int8)
        a[self.forbidden] = c[self.forbidden % 2] = 0
        obs: dict[str, Any] = {"number": np.array([self.forbidden], np.float32)}
        if self.where == "obs":
            return obs | {"action_mask": np.concatenate([a, c])}, {}
        return obs, {"action_mask": {"a": a, "b": None, "c": c}}


def make(where: str = "obs") -> gymnasium.Env:
    """Makes the environment; workers call it."""
    return Strict(where)
