"""Environments that start the next episode inside step(), and healthy ones that look similar. No jax."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from faulty_check_envs import Ball, Scene
from gymnasium import spaces


class Corridor(gymnasium.Env):
    """A corridor of 8 places. Starts at the first, which is often revisited, and ends at the last."""

    observation_space: gymnasium.Space = spaces.Discrete(8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.place = 0
        return self.place, {}

    def step(self, action: Any) -> Any:
        self.place = max(0, self.place + 2 * int(action) - 1)
        return self.place, float(self.place == 7), self.place == 7, False, {}


class Drift(gymnasium.Env):
    """20 numbers that start at random and then drift, without further randomness."""

    observation_space = spaces.Box(-np.inf, np.inf, (20,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    limit = 25

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.time, self.numbers = 0, self.np_random.normal(size=20).astype(np.float32)
        return self.numbers.copy(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        self.numbers += np.float32(0.02) * (1 + np.asarray(action, np.float32))
        return self.numbers.copy(), 1.0, False, self.time >= self.limit, {}


class LongDrift(Drift):
    limit = 250


class Inside(gymnasium.Wrapper):
    """Resets inside step. final: key of info with the true last observation, if any."""

    def __init__(self, env: gymnasium.Env, final: str = "", idle: bool = False):
        """idle: the next reset by the user does nothing."""
        super().__init__(env)
        self.final, self.idle, self.fresh = final, idle, None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        if self.idle and self.fresh is not None and seed is None:
            return self.fresh
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.fresh = None
        if terminated or truncated:
            self.fresh = self.env.reset()
            if self.final:
                info = {**info, self.final: obs}
            obs = self.fresh[0]
        return obs, reward, terminated, truncated, info


class Contexts(gymnasium.Env):
    """Draws every observation in the same way, also in reset()."""

    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.draw(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.draw(), 1.0, False, self.time == 20, {}

    def draw(self) -> Any:
        return self.np_random.random(4, np.float32)


class Home(Corridor):
    """Ends at its start, after it was at place 3."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        self.far = self.over = False
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        if self.over:
            raise RuntimeError("the episode is over")
        obs, *_ = super().step(action)
        self.place = min(self.place, 6)
        self.far |= self.place >= 3
        self.over = self.far and self.place == 0
        return self.place, float(self.over), self.over, False, {}


SELF_RESETTING = {
    "deterministic start that is passed often": lambda: Inside(Corridor()),
    "starts all over the place, noise in each step": lambda: Inside(Ball()),
    "many numbers": lambda: Inside(Drift()),
    "two episodes": lambda: Inside(LongDrift()),
    "pictures": lambda: Inside(Scene()),
    "a reset that does nothing after it": lambda: Inside(Ball(), idle=True),
    "many numbers, a reset that does nothing after it": lambda: Inside(Drift(), idle=True),
    **{f"info[{name!r}]": lambda name=name: Inside(Ball(), name)
       for name in ("final_obs", "terminal_observation", "real_next_obs", "terminal_obs")},
}  # fmt: skip
SOUND = {
    "all observations drawn alike": Contexts,
    "ends where it begins": Home,
    "passes its start often": Corridor,
    "many numbers": Drift,
    "two episodes": LongDrift,
    "gymnasium's Autoreset, which resets in the step after the end": lambda: gymnasium.wrappers.Autoreset(Drift()),
}


def make(kind: str, sound: bool = False) -> gymnasium.Env:
    """Makes an environment by its name in the tables above."""
    return (SOUND if sound else SELF_RESETTING)[kind]()
