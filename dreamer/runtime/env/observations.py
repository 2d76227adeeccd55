"""Converts the observations of an environment into rows, and checks them against its space. Imports no jax.

A row has one or more keys. The keys of nested Dicts and Tuples are joined with "/". A space that is neither a Dict nor
a Tuple gets the key "image" or "vector". Rows and replay keep the environment's own dtype. The form of a key:

    Box of 3 axes                       image [H, W, C] if its bounds are at most 1e6 apart; if the first axis is the
                                        shortest, it holds the channels
    Box uint8 [H, W]                    image [H, W, 1]
    Box uint8 of 4 axes                 a stack of images, [H, W, N * C]
    other Box                           numbers; keeps shapes of 1 or 2 axes, [] becomes [1], others are flattened
    Discrete, MultiDiscrete             classes from 0, for any start; MultiDiscrete uses its largest number of classes
    MultiBinary                         numbers; an image if it has 3 axes
    an empty space                      dropped, for example a Box of shape [0]

A value outside its space is an error. In a float Box without a lower bound, -inf marks a missing value: the encoder
then sees zeros for the whole key, and the decoder has no loss for that key in that row. Nothing marks a missing class:
an environment whose class may be missing needs an extra class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.runtime.env.api_errors import foreign, whole_answer
from dreamer.spaces import MASK, Action, Space, for_device

RESERVED = ("reward", "is_first", "is_last", "is_terminal")
SUPPORTED = "supported are Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"
LARGEST = float(np.finfo(np.float32).max)
MOST_WIDTH = 2**24  # numbers that the encoder sees for one key of classes
WIDEST_PICTURE = 1e6  # a Box with bounds further apart holds numbers, not an image
_TOLERANCE = 1e-4  # relative, because environments round bounds and states differently
_KINDS = {"fiub": "float", "iub": "integer", "iu": "uint8", "u": "uint8"}


class Reader(NamedTuple):
    """How to find, check and convert one key of the observation.

    path: the keys that lead to it in nested Dicts and Tuples | space: the Space of the key in a row
    shape: the shape of the environment's array
    kinds: the accepted dtype kinds, as letters of `numpy.dtype.kind`; "u" alone: only uint8
    low, high: the accepted bounds; None: a uint8 image that may have any value | start: the first class
    axes: the new order of the environment's axes, before the reshape to the row's shape; (): unchanged
    plain: whether the environment's array can be used as the row without conversion
    floor: the lowest finite number allowed for a float without a lower bound; None: no such limit
    """

    key: str
    path: tuple
    space: Space
    shape: tuple[int, ...]
    kinds: str
    low: Any = None
    high: Any = None
    start: Any = 0
    axes: tuple[int, ...] = ()
    plain: bool = False
    floor: float | None = None


def find(reader: Reader, obs: Any) -> Any:
    """Returns the value of one key of an observation. Raises ValueError if the key is missing."""
    for key in reader.path:
        listed = isinstance(obs, (tuple, list)) and isinstance(key, int) and key < len(obs)
        if not listed and not (isinstance(obs, Mapping) and key in obs):
            raise ValueError(f"observation has no key {reader.key!r}, although its space has one")
        obs = obs[key]
    return obs


def read(reader: Reader, value: Any) -> np.ndarray:
    """Converts the environment's array of one key to the row's array [*reader.space.shape].

    value: the environment's array, of shape `reader.shape`. Raises ValueError if it does not fit its space.
    """
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    wrong_dtype = array.dtype.kind not in reader.kinds if reader.kinds != "u" else array.dtype != np.uint8
    if wrong_dtype or array.shape != reader.shape:
        raise ValueError(
            f"key {reader.key!r} is {array.dtype} {list(array.shape)}, its space is "
            f"{_KINDS[reader.kinds]} {list(reader.shape)}"
        )
    if reader.low is not None and not inside(reader, array):
        raise ValueError(outside(reader, array))
    if reader.space.discrete:
        return array - reader.start
    if reader.axes:
        array = array.transpose(reader.axes)
    return array if array.shape == reader.space.shape else array.reshape(reader.space.shape)


def restore(keys: Sequence[Reader], space: spaces.Space, row: Mapping[str, np.ndarray]) -> Any:
    """Rebuilds an observation of `space` from its row {k: [..]}, as the exact inverse of `read`.

    The result has no keys "log/...", because rows do not contain them.
    """
    values: dict[tuple, np.ndarray] = {}
    for path, leaf in _leaves(space, ()):
        if _empty(leaf) and not "/".join(map(str, path)).startswith("log/"):
            values[path] = np.zeros(leaf.shape or (), leaf.dtype)
    for reader in keys:
        array = row[reader.key]
        if reader.space.discrete:
            array = array + np.asarray(reader.start, array.dtype)
        if reader.axes:
            moved = array.reshape([reader.shape[axis] for axis in reader.axes])
            array = moved.transpose(np.argsort(reader.axes))
        values[reader.path] = array.reshape(reader.shape)
    return _gathered(space, values, ())


def agent_obs(keys: Sequence[Reader], obs: Any, name: str = "") -> tuple[dict[str, np.ndarray], bool]:
    """Returns ({k: [E, ..]}, single): a batch of observations in the agent's dtypes, and whether `obs` was only one.

    obs: one observation, or a batch of E | name: the environment's name in errors
    Raises UserError if `obs` does not fit the spaces.
    """
    try:
        values = {reader.key: np.asarray(find(reader, obs)) for reader in keys}
        single = all(values[reader.key].ndim == len(reader.shape) for reader in keys)
        for reader in keys:
            if not single and (values[reader.key].ndim <= len(reader.shape) or not len(values[reader.key])):
                raise ValueError(
                    f"key {reader.key!r} is {values[reader.key].dtype} {list(values[reader.key].shape)}, "
                    f"neither {list(reader.shape)} nor a batch of these"
                )
        lists = {key: [value] if single else list(value) for key, value in values.items()}
        rows = {r.key: [read(r, x) for x in lists[r.key]] for r in keys}
    except (ValueError, TypeError) as error:
        raise UserError(f"observation of env {name!r}: {whole_answer(obs) or error}") from None
    if len({len(row) for row in rows.values()}) > 1:
        raise UserError(f"observation of env {name!r}: its keys have different numbers of rows")
    stacked = {r.key: np.stack(rows[r.key]) for r in keys}
    return for_device({r.key: r.space for r in keys}, stacked), single


def readers(env: gymnasium.Env, name: str = "", action: Action | None = None) -> list[Reader]:
    """Returns the Readers of the observation, sorted by key. Leaves out keys that the agent does not get (`dropped`).

    action: if given, an observation "action_mask" at the top level must be a mask for the one-hots of this action.
    name: the environment's name in errors. Raises UserError if a space is not supported or no key is left.
    """
    space = env.observation_space
    leaves: dict[str, tuple[tuple, spaces.Space]] = {}
    for path, leaf in _leaves(space, ()):
        key = "/".join(map(str, path))
        if key in leaves:
            raise UserError(f"env {name!r}: two observations have the key {key!r} after its Dicts are flattened")
        leaves[key] = path, leaf
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        leaves = {"vector": ((), space)}
    for key in leaves:
        if key in RESERVED:
            raise UserError(f"env {name!r}: the observation key {key!r} is reserved for a column of the row; rename it")
    kept = sorted(leaves.keys() - dropped(env))
    found = [_reader(key, *leaves[key], name) for key in kept]
    found = [_as_mask(reader, action, name) if reader.key == MASK and action else reader for reader in found]
    if not [reader for reader in found if reader.key != MASK]:
        raise UserError(f"env {name!r}: its observation space {space} has no key for the agent{_reasons(env)}")
    if not isinstance(space, (spaces.Dict, spaces.Tuple)) and found[0].space.image:
        return [found[0]._replace(key="image")]
    return found


def dropped(env: gymnasium.Env) -> dict[str, str]:
    """Returns {key: reason} for the keys of the observation that the agent does not get: "log/..." and empty ones."""
    reasons = {}
    for path, leaf in _leaves(env.observation_space, ()):
        key = "/".join(map(str, path))
        if key.startswith("log/"):
            reasons[key] = "keys log/... are for logs"
        elif _empty(leaf):
            reasons[key or "vector"] = f"its shape {list(leaf.shape or ())} is empty"
    return reasons


def _empty(space: spaces.Space) -> bool:
    return 0 in (getattr(space, "shape", None) or ())


def _reasons(env: gymnasium.Env) -> str:
    reasons = [f"{key!r}: {why}" for key, why in dropped(env).items()]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _leaves(space: spaces.Space, path: tuple) -> Iterator[tuple[tuple, spaces.Space]]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for key, inner in space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
            yield from _leaves(inner, (*path, key))
    else:
        yield path, space


def _gathered(space: spaces.Space, values: Mapping[tuple, np.ndarray], path: tuple) -> Any:
    if isinstance(space, spaces.Dict):
        inside = {key: (*path, key) for key in space}
        kept = [key for key, own in inside.items() if any(p[: len(own)] == own for p in values)]
        return {key: _gathered(space[key], values, inside[key]) for key in kept}
    if isinstance(space, spaces.Tuple):
        return tuple(_gathered(inner, values, (*path, number)) for number, inner in enumerate(space.spaces))
    # The values of a Discrete are scalars of its dtype.
    return values[path][()] if isinstance(space, spaces.Discrete) else values[path]


def _reader(key: str, path: tuple, space: spaces.Space, name: str) -> Reader:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return _class_reader(key, path, space, name)
    if isinstance(space, spaces.MultiBinary):
        shape, dtype = tuple(space.shape), space.dtype.name
        if len(shape) != 3:
            flat: tuple[int, ...] = shape if len(shape) < 3 else (int(np.prod(shape)),)
            return Reader(key, path, Space(flat, dtype), shape, "iub", 0, 1)
        row, axes = _picture_form(shape)
        return Reader(key, path, Space(row, dtype, bounds=(0.0, 1.0)), shape, "iub", 0, 1, axes=axes)
    if not isinstance(space, spaces.Box) or space.dtype.kind not in "fiub":
        what = foreign(space) or f"; {SUPPORTED}"
        raise UserError(f"env {name!r}: the space of observation key {key!r} is {space}{what}")
    if not (space.low <= space.high).all():
        raise UserError(
            f"env {name!r}: observation key {key!r} has a bound that is NaN or a low bound above its high bound, so no "
            "value can be inside; make low <= high"
        )
    return _box_reader(key, path, space)


def _class_reader(key: str, path: tuple, space: spaces.Discrete | spaces.MultiDiscrete, name: str) -> Reader:
    start = np.asarray(space.start, np.int64)
    count = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec, np.int64)
    shape: Any = space.shape
    row = Space(shape, space.dtype.name, int(count.max()))
    if row.width > MOST_WIDTH:
        raise UserError(
            f"env {name!r}: observation key {key!r}, {space}, has {row.width:,} classes in all, each an input of the "
            f"encoder; at most {MOST_WIDTH:,}. Make it a Box of numbers"
        )
    return Reader(key, path, row, shape, "iub", start, start + count - 1, start)


def _box_reader(key: str, path: tuple, space: spaces.Box) -> Reader:
    shape, dtype = space.shape, space.dtype
    low, high = _bounds(space)
    kinds = "fiub" if dtype.kind == "f" else "iub"
    if _is_image(space):
        row, axes = _picture_form(shape)
        ends = float(space.low.min()), float(space.high.max())
        whole = dtype == np.uint8 and ends == (0.0, 255.0)
        image = Space(row, dtype.name, bounds=None if whole else ends)
        if whole and (space.low == 0).all() and (space.high == 255).all():
            return Reader(key, path, image, shape, "u", axes=axes)
        return Reader(key, path, image, shape, "iu" if dtype == np.uint8 else kinds, low, high, axes=axes)
    flat = shape or (1,) if len(shape) <= 2 else (int(np.prod(shape)),)
    plain = dtype.kind == "f" and flat == shape
    floor = -_largest(dtype) if dtype.kind == "f" and np.isneginf(low).any() else None
    return Reader(key, path, Space(flat, dtype.name), shape, kinds, low, high, plain=plain, floor=floor)


def _is_image(space: spaces.Box) -> bool:
    if not (len(space.shape) == 3 or (space.dtype == np.uint8 and len(space.shape) in (2, 4))):
        return False
    low, high = float(space.low.min()), float(space.high.max())
    return 0 < high - low <= WIDEST_PICTURE


def _picture_form(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the shape [H, W, C] that an image has in a row, and the new order of its axes; (): unchanged."""
    if len(shape) == 2:
        return (*shape, 1), ()
    stack, sides = (shape[:1], shape[1:]) if len(shape) == 4 else ((), shape)
    channels_first = sides[0] < min(sides[1:])
    order = (1, 2, 0) if channels_first else (0, 1, 2)
    height, width, channels = (sides[axis] for axis in order)
    if stack:
        moved = [axis + 1 for axis in order]
        return (height, width, stack[0] * channels), (*moved[:2], 0, moved[2])
    return (height, width, channels), order if channels_first else ()


def _as_mask(reader: Reader, action: Action, name: str) -> Reader:
    """Returns the reader of an action mask, which has two classes for each entry of the one-hots.

    Raises UserError if the observation cannot be a mask of `action`. Returns `reader` if the action has no one-hots.
    """
    if not action.onehots:
        return reader
    binary = np.all(reader.low == 0) and np.all((reader.high > 0.99) & (reader.high < 1.01))
    if reader.shape != (action.onehots,) or "f" in reader.kinds or not binary:
        raise UserError(
            f"env {name!r}: the observation {MASK!r} must have 0 or 1 for each of the {action.onehots} choices of the "
            f"action, MultiBinary({action.onehots}); rename it if it is something else"
        )
    space = Space((action.onehots,), reader.space.dtype, 2)
    return reader._replace(space=space, low=0, high=1, start=0, plain=False)


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (low, high) that values are checked against: exact for integers, with a tolerance for floats."""
    if space.dtype.kind == "b":
        return space.low.astype(np.uint8), space.high.astype(np.uint8)
    if space.dtype.kind != "f":
        return space.low, space.high
    largest = _largest(space.dtype)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    unbounded = np.isneginf(low)
    low = np.clip(low - _TOLERANCE * np.maximum(1.0, np.abs(low)), -largest, largest)
    high = np.clip(high + _TOLERANCE * np.maximum(1.0, np.abs(high)), -largest, largest)
    low = np.where(unbounded, -np.inf, low)  # -inf is allowed there: it marks a missing value
    return (low, high) if space.dtype.itemsize > 4 else (low.astype(np.float32), high.astype(np.float32))


def _largest(dtype: np.dtype) -> float:
    """Returns the largest number of a float dtype that the agent can see."""
    return min(LARGEST, float(np.finfo(dtype).max))


def inside(reader: Reader, array: np.ndarray) -> bool:
    """Whether all values of `array` [.., *shape] are inside the bounds of the key."""
    # NaN >= low is False, so one pair of comparisons catches NaN, infinities and bounds. all() would take
    # twice as long for the few numbers of most observations, and this runs for every row.
    within = np.count_nonzero((array >= reader.low) & (array <= reader.high)) == array.size
    return within and (_fits(reader, array) or not np.any((array < reader.floor) & (array > -np.inf)))


def _fits(reader: Reader, array: np.ndarray) -> bool:
    """Whether every finite number of this dtype stays finite in the agent's dtype, where -inf marks a missing value."""
    return reader.floor is None or (array.itemsize <= 4 and reader.floor == -LARGEST)


def outside(reader: Reader, array: np.ndarray) -> str:
    """Returns an error text that names the first value outside the bounds of a key."""
    array, low, high = np.broadcast_arrays(array, reader.low, reader.high)
    wrong = ~((array >= low) & (array <= high))
    if reader.floor is not None:
        wrong |= (array < reader.floor) & (array > -np.inf)
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    place = f" at {list(where)}" if where else ""
    value = array[where]
    if not np.isfinite(value):
        return f"key {reader.key!r}{place} is {value}"
    if reader.floor is not None and value < reader.floor:
        return f"key {reader.key!r}{place} is {value:.6g}, below {reader.floor:.6g}, the lowest number that fits"
    limits = f"{low[where]:.6g} to {high[where]:.6g}"
    return f"key {reader.key!r}{place} is {value:.6g}, outside its space's bounds {limits}"
