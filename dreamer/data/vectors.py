"""Converts recorded actions of an environment to the agent's action vectors: the inverse of `ActionReader.to_env`.

The order of the one-hots and numbers in a vector is that of `dreamer/runtime/env/actions.py`. Imports no jax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from dreamer.data.episodes import Fault
from dreamer.runtime.env.actions import ranges
from dreamer.spaces import Action

_TOLERANCE = 1e-4  # relative: environments round their bounds differently


class Vectors(NamedTuple):
    """Action vectors [N, A] float32, and the faults of the actions that they were made from."""

    array: np.ndarray
    faults: list[Fault]


def to_vectors(space: spaces.Space, actions: Any, count: int, where: str) -> Vectors:
    """Converts N actions of `space` to vectors [N, A].

    actions: nested like the space, with an array [N, ..] for each leaf | count: N | where: the episode, for faults
    Rows that are at fault have zeros.
    """
    onehots: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    faults: list[Fault] = []
    for path, leaf, value in _leaves(space, actions, ()):
        key = "/".join(["action", *path])
        fault, array = _array(leaf, value, count)
        row = None
        if fault is None:
            into = numbers if isinstance(leaf, spaces.Box) else onehots
            own, row = _numbers(leaf, array) if isinstance(leaf, spaces.Box) else _onehots(leaf, array)
            into.append(own)
            fault = None if row is None else f"is {in_a_line(array[row])}, outside of {leaf}"
        if fault is not None:
            faults.append(Fault(where, fault, row, key))
    if faults:
        return Vectors(np.zeros((count, 0), np.float32), faults)
    return Vectors(np.concatenate([*onehots, *numbers], 1).astype(np.float32), [])


def from_stored(action: Action, stored: np.ndarray, where: str) -> Vectors:
    """Returns the vectors [N, A] of a file of this program: what `to_stored` made of them, or vectors as they are."""
    if single(action) and stored.ndim == 1:
        return to_vectors(spaces.Discrete(action.classes[0]), stored, len(stored), where)
    if stored.shape[1:] != (action.width,) or stored.dtype.kind != "f":
        what = f"is {stored.dtype} {list(stored.shape)}, its rows must be vectors [{action.width}]"
        return Vectors(np.zeros((len(stored), 0), np.float32), [Fault(where, what, None, "action")])
    return Vectors(stored.astype(np.float32), vector_faults(action, stored, where))


def vector_faults(action: Action, vectors: np.ndarray, where: str) -> list[Fault]:
    """Returns a Fault for the first of the vectors [N, A] that is not finite, or has a part that is not a one-hot."""
    whole = np.isfinite(vectors).all(1)
    begin = 0
    for size in action.classes:
        own = vectors[:, begin : begin + size]
        whole &= ((own == 0) | (own == 1)).all(1) & (own.sum(1) == 1)
        begin += size
    if whole.all():
        return []
    row = int(np.argmin(whole))
    return [Fault(where, f"is {in_a_line(vectors[row])}, which is not an action of {action.text}", row, "action")]


def to_stored(action: Action, vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [N, A] as other programs expect them: classes [N] int64 for one discrete action, or vectors."""
    return vectors.argmax(1).astype(np.int64) if single(action) else vectors


def in_a_line(values: np.ndarray) -> str:
    """Returns the numbers of an action as text without line breaks."""
    return " ".join(str(values).split())


def single(action: Action) -> bool:
    """Whether the action is a single choice."""
    return len(action.classes) == 1 and not action.continuous


def _leaves(space: spaces.Space, value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inner = space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in inner:
            held = isinstance(value, Mapping) and key in value
            held |= isinstance(value, (tuple, list)) and isinstance(key, int) and key < len(value)
            yield from _leaves(part, value[key] if held else None, (*path, str(key)))
    else:
        yield path, space, value


def _array(leaf: spaces.Space, value: Any, count: int) -> tuple[str | None, np.ndarray]:
    """Returns what is wrong with the form of the actions of one leaf, or None, and the actions as an array [N, ..]."""
    if value is None:
        return "is missing, although the action space has it", np.zeros(0)
    array = np.asarray(value)
    number = np.dtype(leaf.dtype).kind == "f"
    kinds = "iub" if isinstance(leaf, spaces.MultiBinary) else "fiu" if number else "iu"
    if array.dtype.kind not in kinds or array.shape[1:] != leaf.shape:
        form = f"{leaf.dtype} [N{''.join(f', {n}' for n in leaf.shape or ())}]"
        return f"is {array.dtype} {list(array.shape)}, its space is {form}", array
    if len(array) != count:
        return f"has {len(array)} entries, there are {count} steps", array
    return None, array


def _onehots(leaf: spaces.Space, array: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Returns one-hots [N, sum of classes], and the first row that is outside of the space."""
    flat = array.reshape(len(array), -1).astype(np.int64)
    if isinstance(leaf, spaces.Discrete):
        sizes, starts = np.array([int(leaf.n)]), np.array([int(leaf.start)])
    elif isinstance(leaf, spaces.MultiDiscrete):
        sizes, starts = leaf.nvec.ravel().astype(np.int64), leaf.start.ravel().astype(np.int64)
    else:
        sizes, starts = np.full(flat.shape[1], 2), np.zeros(flat.shape[1], np.int64)
    index = flat - starts
    whole = ((index >= 0) & (index < sizes)).all(1)
    if not whole.all():
        return np.zeros((len(flat), 0)), int(np.argmin(whole))
    rows = np.arange(len(flat))[:, None]
    out = np.zeros((len(flat), int(sizes.sum())), np.float32)
    out[rows, np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) + index] = 1
    return out, None


def _numbers(leaf: spaces.Box, array: np.ndarray) -> tuple[np.ndarray, int | None]:
    """Returns numbers [N, n], and the first row that is outside of the space."""
    flat = array.reshape(len(array), -1).astype(np.float64)
    low, high, bounded = ranges(leaf)
    least, most = leaf.low.ravel().astype(np.float64), leaf.high.ravel().astype(np.float64)
    slack_low, slack_high = (_TOLERANCE * np.maximum(1, np.abs(np.nan_to_num(end))) for end in (least, most))
    if leaf.dtype.kind != "f":
        slack_low = slack_high = np.zeros_like(least)
    whole = (np.isfinite(flat) & (flat >= least - slack_low) & (flat <= most + slack_high)).all(1)
    if not whole.all():
        return np.zeros((len(flat), 0)), int(np.argmin(whole))
    if leaf.dtype.kind != "f":
        return ((flat - low + 0.5) / (high - low + 1)) * 2 - 1, None
    half = (high - low) / 2
    scaled = (flat - (low + high) / 2) / np.where(half > 0, half, 1)
    return np.where(bounded, np.clip(scaled, -1, 1), scaled), None
