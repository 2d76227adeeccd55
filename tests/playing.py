"""Plays environments with random actions and compares their results."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


def play(env: gymnasium.Env, seed: int, steps: int = 30) -> list[Any]:
    """Returns the results of the first `steps` steps, over several episodes, with fixed random actions."""
    answers: list[Any] = [env.reset(seed=seed)[0]]
    env.action_space.seed(0)
    for _ in range(steps):
        *answer, _ = env.step(env.action_space.sample())
        answers.append(answer)
        if answer[2] or answer[3]:
            answers.append(env.reset()[0])
    return answers


def same(a: Any, b: Any) -> bool:
    """Whether two nested structures are equal, including their arrays."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return np.array_equal(a, b)
