"""Environments with one fault each that `dreamer check` must find, and healthy ones that must pass. No jax.

Each fault is one change to a healthy environment. Use "faulty_check_envs:make" with the option `fault`, the name of a
class in this module.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LIMIT = 40


class Ball(gymnasium.Env):
    """A ball that is pushed left or right along a line and falls off its ends. Shows position and speed."""

    metadata = {"render_modes": []}
    observation_space: gymnasium.Space = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space: gymnasium.Space = spaces.Discrete(3)
    limit = LIMIT

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        self.start()
        return self.observe(), self.info()

    def start(self) -> None:
        self.place, self.speed = self.random().uniform(-0.3, 0.3, 2)

    def random(self) -> Any:
        return self.np_random

    def step(self, action: Any) -> Any:
        self.time += 1
        self.speed += 0.1 * (int(action) - 1) + self.random().normal(0, 0.02)
        self.place += 0.2 * self.speed
        fell = bool(abs(self.place) > 1)
        return self.observe(), self.reward(), fell, self.time >= self.limit and not fell, self.info()

    def observe(self) -> Any:
        return np.array([self.place, self.speed], np.float32)

    def reward(self) -> Any:
        return 1.0 - abs(self.place)

    def info(self) -> Any:
        return {"time": self.time}


class Scene(Ball):
    """The ball as an image, and its speed as a number."""

    observation_space = spaces.Dict(
        {"camera": spaces.Box(0, 255, (48, 48, 3), np.uint8), "speed": spaces.Box(-10.0, 10.0, (1,), np.float32)}
    )
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def step(self, action: Any) -> Any:
        return super().step(1 + np.asarray(action).item())

    def observe(self) -> Any:
        return {"camera": self.camera(), "speed": np.array([self.speed], np.float32)}

    def camera(self) -> Any:
        picture = np.full((48, 48, 3), 20, np.uint8)
        left = int(np.clip(20 + 20 * self.place, 0, 40))
        picture[20:28, left : left + 8] = 230
        return picture


class WideDtype(Ball):
    def observe(self):
        return np.array([self.place, self.speed])


class FloatPicture(Scene):
    def camera(self):
        return super().camera() / 255.0


class Flat(Ball):
    def observe(self):
        return super().observe()[None]


class Outside(Ball):
    observation_space = spaces.Box(-0.5, 0.5, (2,), np.float32)


class NotANumber(Ball):
    def observe(self):
        obs = super().observe()
        if self.time == 5:
            obs[1] = np.nan
        return obs


class Infinite(Ball):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observe(self):
        return np.array([self.place, np.inf if self.time == 7 else self.speed], np.float32)


class MissingKey(Scene):
    def observe(self):
        obs = super().observe()
        if self.time:
            del obs["speed"]
        return obs


class Endless(Ball):
    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        self.place = float(np.clip(self.place, -1, 1))
        self.speed *= 0.9
        return obs, reward, False, False, info


class NeverTerminated(Ball):
    def step(self, action):
        obs, reward, _, _, info = super().step(action)
        self.place = float(np.clip(self.place, -1, 1))
        return obs, reward, False, self.time >= self.limit, info


class TruncatedWhenItFalls(Ball):
    limit = 1000

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, False, terminated or truncated, info


class TerminatedByTime(Ball):
    limit = 12

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.place = float(np.clip(self.place, -0.9, 0.9))
        return obs, reward, self.time >= self.limit, False, info


class StaleEnd(Ball):
    def step(self, action):
        before = self.observe()
        obs, reward, terminated, truncated, info = super().step(action)
        return before if terminated or truncated else obs, reward, terminated, truncated, info


class StaleCamera(Scene):
    """Only one of two keys is stale."""

    def step(self, action):
        before = self.observe()
        obs, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            obs["camera"] = before["camera"]
        return obs, reward, terminated, truncated, info


class ResetsInside(Ball):
    def start(self):
        self.place, self.speed = self.random().uniform(-0.01, 0.01, 2)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            obs, _ = self.reset()
        return obs, reward, terminated, truncated, info


class ReturnsTheFinal(ResetsInside):
    def start(self):
        self.place, self.speed = self.random().uniform(-0.3, 0.3, 2)

    def step(self, action):
        obs, reward, terminated, truncated, info = Ball.step(self, action)
        if terminated or truncated:
            info["final_observation"] = obs
            obs, _ = self.reset()
        return obs, reward, terminated, truncated, info


class Unseeded(Ball):
    dice = np.random.default_rng()

    def random(self):
        return self.dice


class Remembers(Ball):
    """Keeps a value across reset()."""

    def __init__(self):
        self.wind = 0.0

    def start(self):
        self.wind += 0.001
        super().start()

    def step(self, action):
        self.speed += self.wind
        return super().step(action)


class SameEpisode(Ball):
    seed = 0

    def reset(self, *, seed=None, options=None):
        self.seed = self.seed if seed is None else seed
        return super().reset(seed=self.seed)


class HugeReward(Ball):
    def reward(self):
        return 1e6 * super().reward()


class NanReward(Ball):
    def reward(self):
        return float("nan") if self.time == 3 else super().reward()


class ArrayReward(Ball):
    def reward(self):
        return np.array([super().reward()])


class ArrayFlag(Ball):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, np.array([terminated]), truncated, info


class Blind(Ball):
    def observe(self):
        return np.zeros(2, np.float32)


class DeadCamera(Scene):
    def camera(self):
        return np.zeros((48, 48, 3), np.uint8)


class DimPicture(Scene):
    def camera(self):
        return (super().camera() / 255.0).round().astype(np.uint8)


class Grows(Ball):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self):
        self.clock = 0

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.clock = 0
        return super().reset(seed=seed)

    def observe(self):
        self.clock += 1
        return np.array([self.place, 1.03**self.clock], np.float32)


class OwnBuffer(Ball):
    def __init__(self):
        self.buffer = np.zeros(2, np.float32)

    def observe(self):
        self.buffer[:] = self.place, self.speed
        return self.buffer


class OneBuffer(Ball):
    """All instances write into the same array."""

    buffer = np.zeros(2, np.float32)

    def observe(self):
        self.buffer[:] = self.place, self.speed
        return self.buffer


class ChangingInfo(Ball):
    def info(self):
        return {"time": self.time} | ({"hint": 1} if self.time % 3 == 2 else {})


class NoSeed(Ball):
    def reset(self):
        return super().reset(seed=0 if not hasattr(self, "time") else None)


class OldStep(Ball):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


class OldReset(Ball):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class Breaks(Ball):
    def step(self, action):
        if self.time == 9:
            raise RuntimeError("the cable is loose")
        return super().step(action)


class Unmakeable(Ball):
    def __init__(self):
        raise RuntimeError("no such licence")


class Misshapen(Ball):
    def __init__(self):
        raise ValueError("shapes do not fit")


class OddSpace(Ball):
    observation_space = spaces.Text(5)

    def observe(self):
        return "left" if self.place < 0 else "right"


class OddPicture(Scene):
    observation_space = spaces.Dict(
        {"camera": spaces.Box(0, 255, (50, 48, 3), np.uint8), "speed": Scene.observation_space["speed"]}
    )

    def camera(self):
        return np.pad(super().camera(), ((1, 1), (0, 0), (0, 0)), mode="edge")


class FreeAction(Scene):
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


class Hangs(Ball):
    def step(self, action):
        if self.time == 9:
            threading.Event().wait()
        return super().step(action)


class Exits(Ball):
    def step(self, action):
        if self.time == 9:
            os._exit(7)
        return super().step(action)


class Prints(Ball):
    """Healthy, but prints; its output must not reach the JSON on standard output."""

    def step(self, action):
        print("a step")
        return super().step(action)


def make(fault: str) -> gymnasium.Env:
    """Makes the class `fault` of this module."""
    return globals()[fault]()
