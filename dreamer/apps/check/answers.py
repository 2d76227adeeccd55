"""Compares the results of `reset` and `step` with gymnasium's interface. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer.apps.check.verdicts import Tally, Verdict, wrong
from dreamer.apps.check.watch import EnvFailed
from dreamer.runtime.env.adapter import described
from dreamer.runtime.env.api_errors import NO_SEED, takes_no_seed
from dreamer.runtime.env.observations import LARGEST


class Answer(NamedTuple):
    """The result of reset or step. reward: None if it is not a finite number | info: {} if it is not a dict"""

    obs: Any
    reward: float | None = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[Any, Any] = {}


class NoAnswer(Exception):
    """Raised when the result of reset or step cannot be read at all; `verdict` holds the reason."""

    def __init__(self, verdict: Verdict):
        super().__init__(verdict.text)
        self.verdict = verdict


def begin(env: gymnasium.Env, seed: int | None, tally: Tally, where: str) -> Answer:
    """Resets `env`, with the seed if `env` takes one, and returns the result. Raises NoAnswer.

    tally: receives the verdicts on faults of the result | where: their place, as text
    """
    if ("reset-seed", "") in tally.first:
        answer = env.reset()
    else:
        try:
            answer = env.reset(seed=seed)
        except EnvFailed as failure:
            if not takes_no_seed(failure.error):
                raise
            answer = _begin_without(env)
            tally.add(wrong("reset-seed", NO_SEED))
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise NoAnswer(wrong("reset-api", f"reset() must return (obs, info), it returned {described(answer)}"))
    return Answer(answer[0], info=_info(answer[1], tally, where))


def _begin_without(env: gymnasium.Env) -> Any:
    try:
        return env.reset()
    except EnvFailed as failure:
        if takes_no_seed(failure.error):  # a wrapper always passes seed and options on
            raise NoAnswer(wrong("reset-seed", NO_SEED)) from None
        raise


def take(env: gymnasium.Env, action: Any, tally: Tally, where: str) -> Answer:
    """Takes one step and returns the result. tally, where: as in `begin`. Raises NoAnswer."""
    answer = env.step(action)
    if not (isinstance(answer, tuple) and len(answer) == 5):
        text = "step() must return (obs, reward, terminated, truncated, info)"
        raise NoAnswer(wrong("step-api", f"{text}, it returned {described(answer)}"))
    obs, reward, terminated, truncated, info = answer
    return Answer(
        obs, _reward(reward, tally, where), _flag(terminated, "terminated", tally, where),
        _flag(truncated, "truncated", tally, where), _info(info, tally, where),
    )  # fmt: skip


def _reward(reward: Any, tally: Tally, where: str) -> float | None:
    try:
        number = float(reward) if not isinstance(reward, np.ndarray) or reward.ndim == 0 else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        tally.add(wrong("reward-type", f"the reward must be a number, it is {described(reward)}"), place=where)
        return None
    if not -LARGEST <= number <= LARGEST:
        tally.add(wrong("reward-nan", f"the reward is {number}, not a finite float32"), place=where)
        return None
    return number


def _flag(flag: Any, name: str, tally: Tally, where: str) -> bool:
    array = np.asarray(flag)
    if array.shape != () or array.dtype.kind not in "biu":
        tally.add(wrong("flags", f"{name} must be a bool, it is {described(flag)}"), name, where)
        return array.dtype.kind in "biuf" and bool(np.any(array))  # its most likely meaning, so that the check goes on
    return bool(array)


def _info(info: Any, tally: Tally, where: str) -> Mapping[Any, Any]:
    if isinstance(info, Mapping):
        return info
    tally.add(wrong("info-type", f"info must be a dict, it is {described(info)}"), place=where)
    return {}
