"""Environments that tell numbers of their own, cannot be drawn, do not close, or never end. No jax."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import gymnasium
import numpy as np
from broken_envs import Sound
from gymnasium import spaces


class Telling(Sound):
    """Episodes of 3 steps. Its info has scalars, of which the last counts, and what is not logged.

    name: of a further number in its info, for tests of names
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


class Logged(Telling):
    """Shows keys "log/..." beside what the agent sees: the step, on the way to the end, and one of two numbers."""

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
    """Fails once in an evaluation in the way that `how` says: the file `note` says that it was done."""

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
            if self.how in ("hang", "kill"):  # the signal ends another thread a moment later
                threading.Event().wait()
            raise SystemExit(0)
        return super().step(action)


class Drawn(Sound):
    """Its picture fails at the second step in the way that `how` says."""

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
    """Its close() hangs, or ends the process, or raises."""

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
    """As a GL context: of use only in the thread that made it. Notes in `note` how often it was closed there."""

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
    """Changes the current folder, and is made only in a folder that has the file `marker`."""

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
    """A step that takes longer than the way to a process."""

    def step(self, action):
        end = time.perf_counter() + 3e-4
        while time.perf_counter() < end:
            pass
        return super().step(action)


def drivers(render_mode: str | None = None) -> gymnasium.Env:
    """An environment whose action space tells in its size whether SDL draws into memory only: 5, else 3."""
    env = Sound(render_mode=render_mode)
    env.action_space = spaces.Discrete(5 if os.environ.get("SDL_VIDEODRIVER") == "dummy" else 3, start=1)
    return env
