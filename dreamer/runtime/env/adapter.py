"""Finds out how to read an environment: its observations, its actions, and where its action masks are.

This module imports no jax.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.runtime.env.actions import ActionReader, action_reader, flat_mask
from dreamer.runtime.env.api_errors import NO_SEED, takes_no_seed
from dreamer.runtime.env.observations import Reader, readers
from dreamer.spaces import MASK, Space, Spec

MASK_DTYPE = "int8"


class EnvAdapter(NamedTuple):
    """How to read the observations of an environment, and how to convert actions for it.

    keys: a Reader for each key of the observation | actions: the converter of actions
    spec: the Spec of the agent's observations and actions
    masks: the action space, if `info` contains "action_mask" at each step; None: it does not
    first: the (obs, info) of the reset that `adapt` made; None: `adapt` made no reset
    """

    keys: list[Reader]
    actions: ActionReader
    spec: Spec
    masks: spaces.Space | None
    first: tuple[Any, dict] | None


def adapt(env: gymnasium.Env, name: str = "", seed: int | None = None) -> EnvAdapter:
    """Returns the EnvAdapter of `env`. Raises UserError for spaces that are not supported.

    Resets the environment with `seed` if it has discrete actions and no observation "action_mask", because then only
    `info` can contain a mask. name: the environment's name in errors.
    """
    actions = action_reader(env, name)
    keys = readers(env, name, actions.action)
    obs = {reader.key: reader.space for reader in keys}
    if MASK in obs or not actions.action.onehots:
        return EnvAdapter(keys, actions, Spec(obs, actions.action), None, None)
    first = checked_reset(env, seed, name)
    if not (isinstance(first[1], dict) and MASK in first[1]):
        return EnvAdapter(keys, actions, Spec(obs, actions.action), None, first)
    obs[MASK] = Space((actions.action.onehots,), MASK_DTYPE, 2)
    return EnvAdapter(keys, actions, Spec(dict(sorted(obs.items())), actions.action), env.action_space, first)


def spec_of(env: gymnasium.Env, name: str = "") -> Spec:
    """Returns the Spec of an environment. Raises UserError as `adapt` does.

    This may reset the environment, so reset it again before you step it.
    """
    return adapt(env, name).spec


def checked_reset(env: Any, seed: int | None, name: str) -> tuple[Any, dict]:
    """Returns (obs, info) from `env.reset(seed=seed)`. name: the environment's name in errors.

    Raises UserError if `reset` does not accept a seed or does not return a pair.
    """
    try:
        answer = env.reset(seed=seed)
    except TypeError as error:
        if not takes_no_seed(error):
            raise
        raise UserError(f"env {name!r}: {NO_SEED}") from error
    if isinstance(answer, tuple) and len(answer) == 2:
        return answer
    old = "" if isinstance(answer, tuple) else " (the old gym interface returns only the observation)"
    raise UserError(f"env {name!r}: reset() must return (obs, info), it returned {described(answer)}{old}")


def mask_in(info: Any, masks: spaces.Space) -> np.ndarray:
    """Returns the action mask in `info`, int8 [N]. Raises ValueError if the mask is missing or invalid.

    masks: the action space. N: the length of all its one-hots together.
    """
    if not (isinstance(info, dict) and MASK in info):
        raise ValueError(f"info has no {MASK!r}, although it had one at the first reset")
    return flat_mask(masks, info[MASK])


def described(value: Any) -> str:
    """Returns a short description of an unexpected value, for an error message."""
    if isinstance(value, tuple):
        return f"{len(value)} values" + (" (the old gym interface)" if len(value) == 4 else "")
    if isinstance(value, np.ndarray):
        return f"one array {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}: {str(value)[:60]}"
