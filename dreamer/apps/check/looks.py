"""Examines single observations: their contents, and whether they fit their spaces. Imports no jax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer.apps.check.verdicts import Verdict, warning, wrong
from dreamer.runtime.env.observations import Reader, find, read

COARSE = 8  # rows and columns of the small copy kept of each picture
KEPT = 4096  # the numbers of a key with more numbers are examined, but not kept


class Look(NamedTuple):
    """What the check keeps of the array of one key in one observation.

    mark: a fingerprint, which is equal for equal arrays | dtype: the dtype of the array
    value: the numbers of the array [n] float64; None for images, classes and large arrays
    low, high: the smallest and the largest finite number; NaN: there are none
    coarse: an image reduced to at most COARSE x COARSE sums of pixels [n] float64; None: not an image
    """

    mark: Any
    dtype: np.dtype
    value: np.ndarray | None
    low: float
    high: float
    coarse: np.ndarray | None = None


class Key(NamedTuple):
    """One key of the observation, with its Reader and its space in the environment."""

    reader: Reader
    space: gymnasium.Space

    @property
    def name(self) -> str:
        return self.reader.key


def keys_of(env: gymnasium.Env, readers: Sequence[Reader]) -> list[Key]:
    """Returns the keys of an environment's observation, each with its space."""
    found = []
    for reader in readers:
        space: Any = env.observation_space
        for part in reader.path:
            space = space[part]
        found.append(Key(reader, space))
    return found


def look(keys: Sequence[Key], obs: Any) -> dict[str, Look]:
    """Returns {key: Look} of an observation. A Look holds copies of the values.

    Keys that are missing, and keys whose values are not numbers, are left out.
    """
    looks = {}
    for key in keys:
        array = _array(key, obs)
        if array is not None:
            space = key.reader.space
            seen = _look(array, keep=not (space.image or space.discrete))
            looks[key.name] = seen._replace(coarse=_coarse(key.reader, array)) if space.image else seen
    return looks


def faults(keys: Sequence[Key], obs: Any) -> Iterator[tuple[str, Verdict]]:
    """Yields (key, verdict) for each key of an observation that has a fault."""
    for key in keys:
        try:
            value = find(key.reader, obs)
        except ValueError as error:
            yield key.name, wrong("missing-key", str(error))
            continue
        verdict = _unreadable(key, value) or _converted(key, value)
        if verdict:
            yield key.name, verdict


def same(one: Mapping[str, Look], other: Mapping[str, Look]) -> bool:
    """Whether two observations are equal."""
    return one.keys() == other.keys() and all(one[key].mark == other[key].mark for key in one)


def _array(key: Key, obs: Any) -> np.ndarray | None:
    try:
        array = np.asarray(find(key.reader, obs))
    except ValueError:  # missing, or a list of unequal lists
        return None
    return array if array.dtype.kind in "biuf" else None


def _look(array: np.ndarray, keep: bool) -> Look:
    data = array.tobytes()
    mark = (array.dtype.str, array.shape, data if len(data) <= KEPT else hash(data))
    finite = array if array.dtype.kind != "f" else array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
    value = array.astype(np.float64).ravel() if keep and array.size <= KEPT else None
    return Look(mark, array.dtype, value, low, high)


def _coarse(reader: Reader, array: np.ndarray) -> np.ndarray | None:
    if array.shape != reader.shape:
        return None
    moved = array.transpose(reader.axes) if reader.axes else array
    grey = moved.reshape(reader.space.shape).sum(-1, dtype=np.float64)
    for axis, size in enumerate(grey.shape):
        starts = np.unique(np.linspace(0, size, COARSE, endpoint=False, dtype=int))
        grey = np.add.reduceat(grey, starts, axis)
    return grey.ravel()


def _unreadable(key: Key, value: Any) -> Verdict | None:
    """Returns a verdict on a value that training cannot read and treats as a failed environment; None: it can."""
    try:
        read(key.reader, value)
    except ValueError as error:
        text = str(error)
    else:
        return None
    try:
        array = np.asarray(value)
    except ValueError:
        return wrong("dtype", f"key {key.name!r} holds lists of unequal lengths, not an array")
    if array.shape != key.reader.shape:
        return wrong("shape", f"key {key.name!r} is {list(array.shape)}, its space is {list(key.reader.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return wrong("nan", text)
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and key.reader.kinds in ("u", "iu", "iub")):
        return wrong("dtype", f"key {key.name!r} is {array.dtype}, its space is {key.space.dtype}")
    if key.reader.kinds == "u" and array.dtype != np.uint8:
        return wrong("dtype", f"key {key.name!r} is {array.dtype}, its space is {key.space.dtype}")
    return wrong("range", text)


def _converted(key: Key, value: Any) -> Verdict | None:
    """Returns a verdict on a value that training converts because it differs from its space; None: it fits."""
    if not isinstance(key.space, gymnasium.spaces.Box) or key.space.shape == ():
        return None  # classes may be int, np.int32 or np.int64
    if not isinstance(value, np.ndarray | np.generic):
        return warning(
            "dtype",
            f"key {key.name!r} is a {type(value).__name__}, not a numpy array: it is converted at every step, "
            "other software may not do so",
        )
    if value.dtype != key.space.dtype:
        return warning(
            "dtype",
            f"key {key.name!r} is {value.dtype}, its space is {key.space.dtype}: it is converted at every step, other "
            f"software refuses it; return np.asarray(x, np.{key.space.dtype})",
        )
    return None
