"""Turns recorded arrays into an Episode, and finds their faults. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.data.episodes import Episode, Fault, Found
from dreamer.runtime.env.observations import LARGEST, Reader, find, inside, outside
from dreamer.spaces import Spec


class Recorded(NamedTuple):
    """The rows of an episode as they were recorded, before they are checked.

    name: where they come from | obs: nested mappings and tuples with an array [T, ..] for each key, in the form that
    the readers expect | action [T, A]: agent's vectors, already checked | reward, is_first, is_last, is_terminal [T]
    faults: what is already known to be wrong
    """

    name: str
    obs: Any
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray
    faults: Sequence[Fault] = ()


def readers_of(spec: Spec) -> list[Reader]:
    """Returns Readers for observations that already have the keys, shapes and dtypes of `spec`."""
    return [_reader(key, spec) for key in sorted(spec.obs)]


def checked(readers: Sequence[Reader], recorded: Recorded) -> Found:
    """Checks the rows of an episode against their spaces. Returns them, or all their faults.

    For each key, the first row at fault is named.
    """
    name, faults = recorded.name, list(recorded.faults)
    reward, notes = _reward(recorded, faults)
    count = len(reward)
    obs = {}
    for reader in readers:
        array, note = _observed(reader, recorded.obs, count, name, faults)
        obs[reader.key] = array
        notes += note
    flags = {key: _flag(key, getattr(recorded, key), count, name, faults) for key in _FLAGS}
    if not faults:
        _check_flags(flags, name, faults)
    if faults:
        return Found(None, tuple(faults), tuple(notes))
    return Found(Episode(name, obs, recorded.action, reward.astype(np.float32), **flags), (), tuple(notes))


def length_faults(name: str, lengths: Mapping[str, int], expected: int) -> list[Fault]:
    """Returns a Fault for each array {key: length} whose length is not `expected`."""
    return [
        Fault(name, f"has {length} entries, it must have {expected}", None, key)
        for key, length in lengths.items()
        if length != expected
    ]


_FLAGS = ("is_first", "is_last", "is_terminal")


def _reader(key: str, spec: Spec) -> Reader:
    space = spec.obs[key]
    kind = np.dtype(space.dtype).kind
    low: Any = None
    high: Any = None
    if space.discrete:
        return Reader(key, (key,), space, space.shape, "iub", 0, (space.classes or 1) - 1)
    if space.image and space.bounds is None:
        return Reader(key, (key,), space, space.shape, "u")
    if space.bounds is not None:
        slack = 1e-4 * max(1.0, *map(abs, space.bounds))
        low, high = space.bounds[0] - slack, space.bounds[1] + slack
    elif kind == "f":
        low, high = -np.inf, LARGEST  # -inf marks a missing value
    return Reader(key, (key,), space, space.shape, "fiub" if kind == "f" else "iub", low, high)


def _observed(
    reader: Reader, obs: Any, count: int, name: str, faults: list[Fault]
) -> tuple[np.ndarray, list[str]]:
    """Returns the rows [T, ..] of one key, and notes on conversions. Adds what is wrong to `faults`."""
    nothing = np.zeros(0)
    try:
        array = np.asarray(find(reader, obs))
    except ValueError:
        faults.append(Fault(name, "is missing, although the observation space has it", None, _key(reader)))
        return nothing, []
    wrong = array.dtype.kind not in reader.kinds if reader.kinds != "u" else array.dtype != np.uint8
    if wrong or array.shape[1:] != reader.shape:
        form = f"{reader.space.dtype} {list(reader.shape)}"
        what = f"is {array.dtype} {list(array.shape[1:])} in each row, its space is {form}"
        faults.append(Fault(name, what, None, _key(reader)))
        return nothing, []
    if len(array) != count:
        faults.extend(length_faults(name, {_key(reader): len(array)}, count))
        return nothing, []
    if reader.low is not None and not inside(reader, array):
        row = next(number for number in range(count) if not inside(reader, array[number]))
        key, _, what = outside(reader, array[row]).partition(" is ")
        place = key.partition("' at ")[2]
        faults.append(Fault(name, f"{f'at {place} ' if place else ''}is {what}", row, _key(reader)))
        return nothing, []
    note = []
    dtype = np.dtype(reader.space.dtype)
    if array.dtype != dtype:
        note.append(f"observation {reader.key!r} is converted from {array.dtype} to {dtype}")
    if reader.space.discrete:
        array = array - np.asarray(reader.start)
    if reader.axes:
        array = array.transpose(0, *(axis + 1 for axis in reader.axes))
    return np.ascontiguousarray(array.reshape(count, *reader.space.shape)).astype(dtype, copy=False), note


def _reward(recorded: Recorded, faults: list[Fault]) -> tuple[np.ndarray, list[str]]:
    reward, name = np.asarray(recorded.reward), recorded.name
    if reward.dtype.kind not in "fiu" or reward.ndim != 1:
        what = f"is {reward.dtype} {list(reward.shape)}, it must be one number in each row"
        faults.append(Fault(name, what, None, "reward"))
        return np.zeros(len(recorded.is_first), np.float32), []
    whole = np.isfinite(reward) & (np.abs(reward.astype(np.float64)) <= LARGEST)
    if not whole.all():
        row = int(np.argmin(whole))
        faults.append(Fault(name, f"is {reward[row]}, not a finite float32", row, "reward"))
        return np.where(whole, reward, 0), []
    return reward, [f"rewards are converted from {reward.dtype} to float32"] if reward.dtype.kind != "f" else []


def _flag(key: str, values: np.ndarray, count: int, name: str, faults: list[Fault]) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all():
        what = f"is {array.dtype} {list(array.shape)}, it must be 0 or 1 in each row"
        faults.append(Fault(name, what, None, key))
        return np.zeros(count, bool)
    faults.extend(length_faults(name, {key: len(array)}, count))
    return array.astype(bool)


def _check_flags(flags: Mapping[str, np.ndarray], name: str, faults: list[Fault]) -> None:
    """Adds a Fault if a flag is set in a row in which it cannot be."""
    for key, inner, what in (
        ("is_first", flags["is_first"][1:], "begins an episode in the middle of one"),
        ("is_last", flags["is_last"][:-1], "ends the episode, which has rows after it"),
        ("is_terminal", flags["is_terminal"] & ~flags["is_last"], "is terminal, but not the last row of an episode"),
    ):
        if inner.any():
            faults.append(Fault(name, what, int(np.argmax(inner)) + (key == "is_first"), key))


def _key(reader: Reader) -> str:
    return f"observation {reader.key!r}"
