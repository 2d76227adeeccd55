"""An environment whose rows identify it, and which fails on request. No jax, because workers import it.

Each life (one instance of the environment) writes its rows to a file, so that a test can compare them with the rows
received.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces

FAULTS = ("raise", "exit", "kill", "hang", "nan", "slow")


class Witness(gymnasium.Env):
    """Shows its seed (one for each life), its episode and its step; records its rows in folder/<seed>.

    faults: kinds of failures; each step fails in one of them with probability `rate`, by its own random generator
    only: index of the life that fails, -1 = all | spared: number of first episodes of each life without faults
    """

    observation_space = spaces.Dict(
        {
            "life": spaces.Box(0, 1e6, (1,), np.float32),
            "time": spaces.Box(0, 1e6, (2,), np.float32),
            "action": spaces.Discrete(5),
            "picture": spaces.Box(0, 255, (16, 16, 3), np.uint8),
        }
    )
    action_space = spaces.Discrete(4)

    def __init__(self, folder: str, faults: tuple[str, ...] = (), rate: float = 0.0, only: int = -1, spared: int = 0):
        self.folder, self.faults, self.rate = Path(folder), faults, rate
        if (self.folder / "nobody is made any more").exists():
            threading.Event().wait()
        self.only, self.spared = only, spared
        self.episode = self.made = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.life = seed
            self.note = os.open(self.folder / str(seed), os.O_WRONLY | os.O_CREAT)
        self.episode += 1
        self.time = 0
        self.end = int(self.np_random.integers(3, 40))
        return self.observe(4), {}

    def step(self, action):
        may = self.faults and self.only in (-1, self.life) and self.episode > self.spared
        if may and self.np_random.random() < self.rate:
            how = self.faults[self.np_random.integers(len(self.faults))]
            reward = self.fail(how)
        else:
            reward = float(action)
        self.time += 1
        return self.observe(int(action), reward), reward, self.time >= self.end, False, {}

    def observe(self, action, reward=0.0):
        if np.isfinite(reward):
            self.made += 1
            os.pwrite(self.note, b"%d" % self.made, 0)
        times = np.array([self.episode, self.time], np.float32)
        picture = np.full((16, 16, 3), (self.life + self.made) % 256, np.uint8)
        return {"life": np.full(1, self.life, np.float32), "time": times, "action": action, "picture": picture}

    def fail(self, how: str) -> float:
        if how == "raise":
            raise KeyError("lost")
        if how == "exit":
            os._exit(7)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            threading.Event().wait()
        if how == "slow":
            threading.Event().wait(0.02)
        return float("nan") if how == "nan" else 0.0

    def close(self):
        if hasattr(self, "note"):
            os.close(self.note)


def witness(folder, faults=(), rate=0.0, only=-1, spared=0):
    return Witness(folder, tuple(faults), rate, only, spared)
