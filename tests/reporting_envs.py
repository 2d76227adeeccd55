"""Environments that report their own numbers, fail to render, do not close, or never end. No jax."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
from broken_envs import Sound
from gymnasium import spaces


class Reporting(Sound):
    """Reports scalars in info, which are logged at the end, and other values, which are not. Episodes have 3 steps.

    name: of another number in its info, for tests of names
    """

    def __init__(self, name: str = "", render_mode: str | None = None):
        super().__init__(steps=3, render_mode=render_mode)
        self.name, self.episode = name, 0

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        info = {
            "is_success": bool(self.time == 3), "height": np.float32(self.time), "count": self.time,
            "episode": {"r": 1.0}, "array": np.zeros(2), "text": "far",
        }  # fmt: skip
        return obs, reward, terminated, truncated, info | ({self.name: 1.0} if self.name else {})

    def get_state(self):
        return self.time, self.episode, self.np_random.bit_generator.state

    def set_state(self, state):
        self.time, self.episode, self.np_random.bit_generator.state = state


class Logged(Reporting):
    """Also has observation keys "log/...": the step, nested too, and a key with two numbers."""

    observation_space = spaces.Dict(
        {
            "vector": Sound.observation_space,
            "log/step": spaces.Box(0, 10, (), np.float32),
            "log": spaces.Dict({name: spaces.Box(-9, 9, (n,), np.float32) for n, name in ((1, "one"), (2, "two"))}),
        }
    )

    def observe(self):
        parts = {"one": np.full(1, -self.time, np.float32), "two": np.zeros(2, np.float32)}
        return {"vector": super().observe(), "log/step": np.float32(self.time), "log": parts}


class Fails(Sound):
    """Fails once in an evaluation; the file `note` records that it has failed. how: the kind of failure."""

    def __init__(self, how: str, note: str, render_mode: str | None = None):
        super().__init__(render_mode=render_mode)
        self.how, self.note = how, Path(note)

    def step(self, action):
        if self.np_random_seed and self.np_random_seed > 1_000_000 and not self.note.exists():
            self.note.touch()
            if self.how == "exit":
                os._exit(0)
            if self.how == "kill":
                os.kill(os.getpid(), 11)
            if self.how in ("hang", "kill"):  # the signal takes effect in another thread a moment later
                threading.Event().wait()
            raise SystemExit(0)
        return super().step(action)


class Drawn(Sound):
    """Fails to render at step number `after`. how: the kind of failure."""

    def __init__(self, how: str, after: int = 2, render_mode: str | None = None):
        super().__init__(render_mode=render_mode)
        self.how, self.after = how, after

    def render(self):
        if self.time < self.after:
            return super().render()
        if self.how == "hang":
            threading.Event().wait()
        if self.how == "raise":
            raise RuntimeError("the lamp is out")
        if self.how == "exit":
            raise SystemExit(0)
        return {"none": None, "size": np.zeros((8, 8, 3), np.uint8), "dtype": np.zeros((16, 16, 3))}[self.how]


class NotClosed(Sound):
    """Hangs, ends the process or raises in close()."""

    def __init__(self, how: str = "hang", render_mode: str | None = None):
        super().__init__(render_mode=render_mode)
        self.how = how

    def close(self):
        if self.how == "hang":
            threading.Event().wait()
        if self.how == "exit":
            raise SystemExit(3)
        raise RuntimeError("the door is stuck")


class Exits(Sound):
    """Calls sys.exit at its third step."""

    def step(self, action):
        answer = super().step(action)
        if self.time == 3:
            raise SystemExit(5)
        return answer


class Bound(Sound):
    """Works only in the thread that made it, like a GL context. Records in `note` how often it was closed there."""

    def __init__(self, note: str):
        super().__init__()
        self.thread, self.note = threading.get_ident(), Path(note)

    def step(self, action):
        self.check()
        return super().step(action)

    def get_state(self):
        self.check()
        return self.time, self.np_random.bit_generator.state

    def set_state(self, state):
        self.time, self.np_random.bit_generator.state = state

    def check(self):
        if threading.get_ident() != self.thread:
            raise RuntimeError("the context is of another thread")

    def close(self):
        self.check()
        with self.note.open("a") as file:
            file.write("closed\n")


class Wanders(Sound):
    """Changes the current folder, and can be made only in a folder with the file `marker`."""

    def __init__(self, marker: str):
        super().__init__()
        if not Path(marker).exists():
            raise ValueError(f"made in {os.getcwd()}")

    def reset(self, *, seed=None, options=None):
        os.chdir("/")
        return super().reset(seed=seed)

    def step(self, action):
        answer = super().step(action)
        if self.time == 3:
            raise RuntimeError("the cable is loose")
        return answer


class Endless(Sound):
    """Never ends."""

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, 1.0, False, False, {}


class Slow(Sound):
    """Has a step that takes longer than a round trip to a process."""

    def step(self, action):
        end = time.perf_counter() + 3e-4
        while time.perf_counter() < end:
            pass
        return super().step(action)


def drivers(render_mode: str | None = None) -> gymnasium.Env:
    """Makes an environment whose number of actions shows whether SDL draws only into memory: 5, otherwise 3."""
    env = Sound(render_mode=render_mode)
    env.action_space = spaces.Discrete(5 if os.environ.get("SDL_VIDEODRIVER") == "dummy" else 3, start=1)
    return env
