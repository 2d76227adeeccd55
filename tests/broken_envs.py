"""Environments for tests of the loop: small healthy ones, and ones with a fault. No jax, because workers import it.

Their names are "broken_envs:sound" and so on; the tests folder is on the path (setup.cfg).
"""

from __future__ import annotations

import copy
import os
import pathlib
import signal
import threading

import gymnasium
import numpy as np
from gymnasium import spaces


class Sound(gymnasium.Env):
    """Shows three noisy numbers; action 1 pays more than 2 and 3. Can render, and ends by a time limit."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space: gymnasium.Space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space: gymnasium.Space = spaces.Discrete(3, start=1)

    def __init__(self, steps: int = 5, render_mode: str | None = None):
        self.steps, self.render_mode, self.time = steps, render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        assert action in self.action_space, action
        self.time += 1
        return self.observe(), self.reward(action), False, self.time >= self.steps, {}

    def observe(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reward(self, action):
        return 1.0 / action + self.np_random.normal()

    def render(self):
        return np.full((16, 16, 3), 50 * self.time, np.uint8)


class Mixed(Sound):
    """Shows an image and two numbers; actions are continuous. Cannot render, but has image observations."""

    metadata = {"render_modes": []}
    observation_space = spaces.Dict(
        {"camera": spaces.Box(0, 255, (8, 8, 3), np.uint8), "joints": spaces.Box(-1.0, 1.0, (2,), np.float32)}
    )
    action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)

    def observe(self):
        return {
            "camera": self.np_random.integers(0, 256, (8, 8, 3)).astype(np.uint8),
            "joints": self.np_random.uniform(-1, 1, 2).astype(np.float32),
        }

    def reward(self, action):
        return float(action[0])


class Uneven(Sound):
    """With seed n, episodes have n + 1 steps, and each step pays 1."""

    def __init__(self, first_seed: int):
        super().__init__()
        self.first_seed = first_seed

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.steps = seed - self.first_seed + 1
        return super().reset(seed=seed)

    def reward(self, action):
        return 1.0


class Fails(Sound):
    """Fails at its step number `after`. how: the kind of failure."""

    def __init__(self, how: str, after: int = 8):
        super().__init__()
        self.how, self.left = how, after
        if how == "spaces":
            self.observation_space = spaces.Text(5)
        if how == "action space":
            self.action_space = spaces.Text(3)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.left -= 1
        if self.left <= 0:
            if self.how == "nan":
                obs[1] = np.nan
            if self.how == "outside":
                obs[2] = 7.0
            if self.how == "raise":
                raise RuntimeError("the cable is loose")
            if self.how == "interrupt":
                raise KeyboardInterrupt
        return obs, reward, terminated, truncated, info


class FailsOnce(Sound):
    """Raises at its third step, unless the file `note` exists, which records that another one has."""

    def __init__(self, note: str, render_mode: str | None = None):
        super().__init__(render_mode=render_mode)
        self.note = pathlib.Path(note)

    def step(self, action):
        answer = super().step(action)
        if self.time == 3 and not self.note.exists():
            self.note.touch()
            raise RuntimeError("the cable is loose")
        return answer


class Hangs(Sound):
    """Sends a signal to the process `asks` and hangs, but only once: the file `note` records it."""

    def __init__(self, asks: int, note: str):
        super().__init__()
        self.asks, self.note = asks, pathlib.Path(note)

    def step(self, action):
        if not self.note.exists():
            self.note.touch()
            os.kill(self.asks, signal.SIGINT)
            threading.Event().wait()
        return super().step(action)


class RefusesItsState(Sound):
    """Returns its state, but refuses to restore it."""

    def get_state(self):
        return self.time

    def set_state(self, state):
        raise ValueError("not from there")


class PicklesItsState(Sound):
    """Has a state of its own class, which must be pickled."""

    def get_state(self):
        return Noted(time=self.time, rng=copy.deepcopy(self.np_random))

    def set_state(self, state):
        self.time, self.np_random = state["time"], copy.deepcopy(state["rng"])


class Noted(dict):
    """A dict subclass, which has no plain form."""


def pickles_its_state() -> gymnasium.Env:
    return PicklesItsState()


def refuses_its_state() -> gymnasium.Env:
    return RefusesItsState()


def sound(steps: int = 5, render_mode: str | None = None) -> gymnasium.Env:
    return Sound(steps, render_mode)


def mixed() -> gymnasium.Env:
    return Mixed()


def uneven(first_seed: int) -> gymnasium.Env:
    return Uneven(first_seed)


def hangs(asks: int, note: str) -> gymnasium.Env:
    return Hangs(asks, note)


def never_made(asks: int) -> gymnasium.Env:
    """Signals the process `asks` and never returns."""
    os.kill(asks, signal.SIGINT)
    threading.Event().wait()
    raise AssertionError


def fails(how: str, after: int = 8) -> gymnasium.Env:
    return Fails(how, after)
