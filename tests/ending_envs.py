"""Environments of gymnasium that end a run: one raises, one hangs, and one kills its process. No jax."""

from __future__ import annotations

import os
import signal
import threading

import gymnasium
from broken_envs import Sound


class Ending(Sound):
    """Fails at its step number `after`, in one way."""

    def __init__(self, how: str, after: int):
        super().__init__()
        self.how, self.left = how, after

    def step(self, action):
        self.left -= 1
        if self.left == 0:
            if self.how == "hang":
                threading.Event().wait()
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("the cable is loose")
        return super().step(action)


def raises(after: int = 30) -> gymnasium.Env:
    return Ending("raise", after)


def hangs(after: int = 30) -> gymnasium.Env:
    return Ending("hang", after)


def dies(after: int = 30) -> gymnasium.Env:
    return Ending("die", after)
