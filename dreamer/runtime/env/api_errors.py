"""Explains errors of environments, or of their callers, that do not follow gymnasium's interface. Imports no jax."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import gymnasium

SIGNATURE = "reset(self, *, seed=None, options=None)"
NO_SEED = (
    f"reset() does not take a seed and options: write {SIGNATURE} and call super().reset(seed=seed) in it, because "
    "every environment is reset with a seed"
)
_UNEXPECTED = re.compile(r"unexpected keyword argument '(seed|options)'|takes no keyword arguments")


def takes_no_seed(error: BaseException | None) -> bool:
    """Whether `error` was raised because a `reset` does not accept the argument `seed` or `options`."""
    text = str(error)
    return isinstance(error, TypeError) and "reset" in text and bool(_UNEXPECTED.search(text))


def foreign(space: Any) -> str:
    """Returns advice if `space` is not a gymnasium.Space, and "" if it is one.

    The advice begins with a comma, because an error message has it directly after the space.
    """
    if isinstance(space, gymnasium.Space):
        return ""
    if "gym" in {part.__module__.partition(".")[0] for part in type(space).__mro__}:
        return (
            ", a space of the old gym package; use gymnasium.spaces, or wrap the environment with shimmy: "
            "gymnasium.make('GymV26Environment-v0', env=env), GymV21Environment-v0 for gym before 0.26"
        )
    return f", a {type(space).__module__}.{type(space).__qualname__} and no gymnasium.Space; use gymnasium.spaces"


def whole_answer(obs: Any) -> str:
    """Returns advice if `obs` looks like the whole tuple that reset or step returns, and "" if it does not."""
    if not isinstance(obs, tuple) or not obs or not isinstance(obs[-1], Mapping) or len(obs) not in (2, 4, 5):
        return ""
    what = "reset() gives, (obs, info)" if len(obs) == 2 else "step() gives"
    return f"this tuple is everything that {what}; pass only its first value: act(obs, state, info=info)"
