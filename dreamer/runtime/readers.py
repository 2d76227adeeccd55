"""What the spaces of an environment become, and its values checked against them. No jax.

How spaces become keys (nested Dicts are flattened with "/", a lone space is "image" or "vector"):

    Box uint8 [H, W, C], [H, W]       picture uint8 [H, W, C], [H, W, 1]
    other Box, rank 0 to 2            float32, shape kept, [] becomes [1]
    Discrete                          int32 [], 0 .. n - 1 whatever its start
    MultiDiscrete                     int32, shape kept, classes of the largest entry
    MultiBinary                       float32, shape kept
    action: Discrete or float Box     one-hot [n], or [A] where finite bounds are stretched to [-1, 1]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.spaces import Space, Spec

RESERVED = ("reward", "is_first", "is_last", "is_terminal")
SUPPORTED = "supported are Box, Discrete, MultiDiscrete, MultiBinary and Dicts of them"
LARGEST = float(np.finfo(np.float32).max)
_TOLERANCE = 1e-4  # relative; environments round their bounds and their states differently
_KINDS = {"fiub": "float", "iub": "integer", "iu": "uint8", "u": "uint8"}


class Reader(NamedTuple):
    """How one key of the observation is found, checked and written.

    path: keys into nested Dicts | shape, kinds: of the environment's array and numpy's letters of its dtype
    low, high: accepted bounds, None for a picture of all uint8 | start: of the classes
    plain: whether an array of the environment is the row's as it is
    """

    key: str
    path: tuple
    space: Space
    shape: tuple[int, ...]
    kinds: str
    low: Any = None
    high: Any = None
    start: Any = 0
    plain: bool = False


def spec_of(env: gymnasium.Env, name: str = "") -> Spec:
    """What `env` shows and takes. Raises UserError for a space that is not supported."""
    obs = {reader.key: reader.space for reader in readers(env, name)}
    return Spec(obs, action_reader(env, name)[0])


def find(reader: Reader, obs: Any) -> Any:
    """The value of one key in an observation. Raises ValueError when it is not there."""
    for key in reader.path:
        if not isinstance(obs, Mapping) or key not in obs:
            raise ValueError(f"observation has no key {reader.key!r}, its space promises one")
        obs = obs[key]
    return obs


def read(reader: Reader, value: Any) -> np.ndarray:
    """The value of one key, checked against its space and with classes from 0. Raises ValueError."""
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    wrong_dtype = array.dtype.kind not in reader.kinds if reader.kinds != "u" else array.dtype != np.uint8
    if wrong_dtype or array.shape != reader.shape:
        raise ValueError(
            f"key {reader.key!r} is {array.dtype} {list(array.shape)}, its space is "
            f"{_KINDS[reader.kinds]} {list(reader.shape)}"
        )
    if reader.low is not None and not inside(reader, array):
        raise ValueError(outside(reader, array))
    return array - reader.start if reader.space.discrete else array


def agent_obs(keys: list[Reader], obs: Any, name: str = "") -> tuple[dict[str, np.ndarray], bool]:
    """An observation of an environment, or a batch of them, as the agent takes it: {k: [E, ..]}; and was it one alone.

    Raises UserError when it does not fit the spaces.
    """
    try:
        values = {reader.key: np.asarray(find(reader, obs)) for reader in keys}
        single = all(values[reader.key].ndim == len(reader.shape) for reader in keys)
        for reader in keys:
            if not single and (values[reader.key].ndim <= len(reader.shape) or not len(values[reader.key])):
                raise ValueError(
                    f"key {reader.key!r} is {values[reader.key].dtype} {list(values[reader.key].shape)}, "
                    f"neither {list(reader.shape)} nor a batch of such"
                )
        lists = {key: [value] if single else list(value) for key, value in values.items()}
        rows = {r.key: [read(r, x).reshape(r.space.shape) for x in lists[r.key]] for r in keys}
    except (ValueError, TypeError) as error:
        raise UserError(f"observation of env {name!r}: {error}") from None
    if len({len(row) for row in rows.values()}) > 1:
        raise UserError(f"observation of env {name!r}: its keys hold different numbers of rows")
    return {r.key: np.stack(rows[r.key]).astype(r.space.dtype) for r in keys}, single


def readers(env: gymnasium.Env, name: str = "") -> list[Reader]:
    """How each key of the observation is read, sorted by key. Keys "log/..." are not for the agent."""
    space = env.observation_space
    leaves: dict[str, tuple[tuple, spaces.Space]] = {}
    for key, path, leaf in _leaves(space, ()):
        if key in leaves:
            raise UserError(f"env {name!r}: two observations are called {key!r} once its Dicts are flattened")
        leaves[key] = path, leaf
    if not isinstance(space, spaces.Dict):
        picture = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)
        leaves = {"image" if picture else "vector": ((), space)}
    for key in leaves:
        if key in RESERVED:
            raise UserError(f"env {name!r}: the observation key {key!r} is taken by the row itself; rename it")
    kept = sorted(key for key in leaves if not key.startswith("log/"))
    if not kept:
        raise UserError(f"env {name!r}: its observation space {space} holds no key for the agent")
    return [_reader(key, leaves[key][0], leaves[key][1], name) for key in kept]


def action_reader(env: gymnasium.Env, name: str = "") -> tuple[Space, Callable[[np.ndarray], Any]]:
    """The action's Space, and the function from an action vector [A] to what `env.step` takes."""
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return Space((), "int32", int(space.n)), lambda action: start + int(action.argmax())
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
        raise UserError(
            f"env {name!r}: the action space {space} is not supported; supported are Discrete and float Box"
        )
    low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
    finite = (low > -LARGEST) & (high < LARGEST)
    low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2
    shape, dtype = space.shape, space.dtype

    def to_env(action: np.ndarray) -> np.ndarray:
        return (middle + half * np.clip(action, -1.0, 1.0)).astype(dtype).reshape(shape)

    return Space((low.size,), "float32"), to_env


def _leaves(space: spaces.Space, path: tuple) -> Iterator[tuple[str, tuple, spaces.Space]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield "/".join(map(str, path)), path, space


def _reader(key: str, path: tuple, space: spaces.Space, name: str) -> Reader:
    if isinstance(space, spaces.Discrete):
        start, n = int(space.start), int(space.n)
        return Reader(key, path, Space((), "int32", n), (), "iub", start, start + n - 1, start)
    if isinstance(space, spaces.MultiDiscrete):
        wide = Space(space.shape, "int32", int(space.nvec.max()))
        last = space.start + space.nvec - 1
        return Reader(key, path, wide, space.shape, "iub", space.start, last, space.start)
    if isinstance(space, spaces.MultiBinary):
        return Reader(key, path, Space(space.shape, "float32"), space.shape, "iub", 0, 1)
    if not isinstance(space, spaces.Box):
        raise UserError(f"env {name!r}: the space of observation key {key!r} is {space}; {SUPPORTED}")
    return _box_reader(key, path, space, name)


def _box_reader(key: str, path: tuple, space: spaces.Box, name: str) -> Reader:
    shape, dtype = space.shape, space.dtype
    low, high = _bounds(space)
    if dtype == np.uint8 and len(shape) in (2, 3):
        if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
            raise UserError(f"env {name!r}: the picture {key!r} is {list(shape)}; channels come last, [H, W, C]")
        whole = bool((space.low == 0).all() and (space.high == 255).all())
        image = Space(shape if len(shape) == 3 else (*shape, 1), "uint8")
        return Reader(key, path, image, shape, "u") if whole else Reader(key, path, image, shape, "iu", low, high)
    if len(shape) > 2:
        raise UserError(
            f"env {name!r}: observation key {key!r} is a {dtype} Box {list(shape)}; "
            "three axes are for pictures, uint8 [H, W, C], vectors have at most two"
        )
    kinds = "fiub" if dtype.kind == "f" else "iub"
    plain = dtype == np.float32 and shape != ()
    return Reader(key, path, Space(shape or (1,), "float32"), shape, kinds, low, high, plain=plain)


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    low = np.clip(low - _TOLERANCE * np.maximum(1.0, np.abs(low)), -LARGEST, LARGEST)
    high = np.clip(high + _TOLERANCE * np.maximum(1.0, np.abs(high)), -LARGEST, LARGEST)
    return (low, high) if space.dtype == np.float64 else (low.astype(np.float32), high.astype(np.float32))


def inside(reader: Reader, array: np.ndarray) -> bool:
    """Whether all of `array`, whatever axes stand in front, is inside the bounds of the key."""
    # Written as NaN >= low is False: one pair of comparisons catches NaN, infinities and bounds. all() would take
    # twice as long for the few numbers of most observations, and this runs for every row.
    return np.count_nonzero((array >= reader.low) & (array <= reader.high)) == array.size


def outside(reader: Reader, array: np.ndarray) -> str:
    """Where a value of one key is outside its bounds, in words."""
    array, low, high = np.broadcast_arrays(array, reader.low, reader.high)
    where = tuple(int(i) for i in np.argwhere(~((array >= low) & (array <= high)))[0])
    place = f" at {list(where)}" if where else ""
    value = array[where]
    if not np.isfinite(value):
        return f"key {reader.key!r}{place} is {value}"
    limits = f"{low[where]:.6g} to {high[where]:.6g}"
    return f"key {reader.key!r}{place} is {value:.6g}, outside of its space's bounds {limits}"
