"""One gymnasium environment, turned into the rows that `runtime/steps.py` draws. No jax.

How spaces become keys (nested Dicts are flattened with "/", a lone space is "image" or "vector"):

    Box uint8 [H, W, C], [H, W]       picture uint8 [H, W, C], [H, W, 1]
    other Box, rank 0 to 2            float32, shape kept, [] becomes [1]
    Discrete                          int32 [], 0 .. n - 1 whatever its start
    MultiDiscrete                     int32, shape kept, classes of the largest entry
    MultiBinary                       float32, shape kept
    action: Discrete or float Box     one-hot [n], or [A] where finite bounds are stretched to [-1, 1]

Every row is checked against its space, so that a broken environment is named where it breaks.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.runtime import env_state
from dreamer.runtime.steps import Step
from dreamer.spaces import Space, Spec

RESERVED = ("reward", "is_first", "is_last", "is_terminal")
SUPPORTED = "supported are Box, Discrete, MultiDiscrete, MultiBinary and Dicts of them"
_LARGEST = float(np.finfo(np.float32).max)
_TOLERANCE = 1e-4  # relative; environments round their bounds and their states differently


class Reader(NamedTuple):
    """How one key of the observation is found, checked and written.

    path: keys into nested Dicts | shape, kinds: of the environment's array and numpy's letters of its dtype
    low, high: accepted bounds, None for a picture of all uint8 | start: of the classes
    late: whether an array of the environment may be the row's as it is, so that bounds can be checked in the row
    """

    key: str
    path: tuple
    space: Space
    shape: tuple[int, ...]
    kinds: str
    low: Any = None
    high: Any = None
    start: Any = 0
    late: bool = False


def spec_of(env: gymnasium.Env, name: str = "") -> Spec:
    """What `env` shows and takes. Raises UserError for a space that is not supported."""
    obs = {reader.key: reader.space for reader in readers(env, name)}
    return Spec(obs, action_reader(env, name)[0])


def empty_step(spec: Spec, envs: int) -> Step:
    """A Step of `envs` rows to be written; actions, rewards and flags are zero."""
    obs = {key: np.zeros((envs, *space.shape), space.dtype) for key, space in spec.obs.items()}
    flags = np.zeros((3, envs), bool)
    return Step(obs, np.zeros((envs, spec.action_width), np.float32), np.zeros(envs, np.float32), *flags)


class EnvRows:
    """Owns one environment; makes one row of it at a time.

    spec: Spec. seed: of the first reset. action_repeat: how often each action is taken, rewards summed.
    name: for messages. Raises UserError when the environment breaks its own spaces.
    """

    def __init__(self, env: gymnasium.Env, *, name: str = "", seed: int | None = None, action_repeat: int = 1):
        if action_repeat < 1:
            raise UserError(f"action_repeat is {action_repeat}; it must be 1 or more")
        self.env = env
        self.name = name or type(env).__name__
        self._readers = readers(env, self.name)
        action, self._to_env = action_reader(env, self.name)
        self.spec = Spec({reader.key: reader.space for reader in self._readers}, action)
        self._seed = seed
        self._late = [reader for reader in self._readers if reader.late]
        self._repeat = action_repeat
        self._over = True
        self._episode = 0
        self._step = 0

    def write(self, action: np.ndarray, out: Step, index: int, late: bool = False) -> None:
        """Answer to `action` [A], written into row `index` of `out`; its action stays as it is.

        The first call, and the one after a row that is_last, ignore the action and reset. late: float32 observations
        are not compared with their bounds here, but with those of other rows by `sound` and `unsound`.
        """
        if self._over:
            self._reset(out, index, late)
        else:
            self._advance(action, out, index, late)

    def sound(self, out: Step, indices: list[int]) -> bool:
        """Whether rows of such environments, written late, are inside their bounds: one comparison for all of them."""
        for reader in self._late:
            rows = out.obs[reader.key]
            if not _inside(reader, rows if len(rows) == len(indices) else rows[indices]):
                return False
        return True

    def unsound(self, out: Step, index: int) -> UserError | None:
        """What is wrong with row `index`, written late."""
        for reader in self._late:
            if not _inside(reader, out.obs[reader.key][index]):
                return self._error(_outside(reader, out.obs[reader.key][index]))
        return None

    def step(self, action: np.ndarray) -> Step:
        """The same as a new Step of one row."""
        out = empty_step(self.spec, 1)
        self.write(action, out, 0)
        return out

    def render(self) -> np.ndarray | None:
        """A picture uint8 [H, W, 3], or None when the environment was not made to draw any."""
        if getattr(self.env, "render_mode", None) != "rgb_array":
            return None
        return np.asarray(self.env.render(), np.uint8)

    def get_state(self) -> bytes | None:
        """Where the environment is, after the row written last; None when it cannot tell."""
        env = env_state.get_state(self.env)
        return None if env is None else pickle.dumps((env, self._over, self._episode, self._step, self._seed))

    def set_state(self, state: bytes) -> bool:
        """Goes on from there; False when the environment refuses, and is of no use any more."""
        try:
            env, self._over, self._episode, self._step, self._seed = pickle.loads(state)
            env_state.set_state(self.env, env)
        except Exception:
            return False
        return True

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _reset(self, out: Step, index: int, late: bool) -> None:
        self._episode += 1
        self._step = 0
        seed, self._seed = self._seed, None
        answer = self.env.reset(seed=seed)
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise self._error(f"reset() must give (obs, info), it gave {_described(answer)}")
        self._write_obs(answer[0], out, index, late)
        out.reward[index] = 0.0
        out.is_first[index] = True
        out.is_last[index] = out.is_terminal[index] = self._over = False

    def _advance(self, action: np.ndarray, out: Step, index: int, late: bool) -> None:
        native = self._to_env(action)
        total = 0.0
        for _ in range(self._repeat):
            self._step += 1
            answer = self.env.step(native)
            if not (isinstance(answer, tuple) and len(answer) == 5):
                raise self._error(
                    f"step() must give (obs, reward, terminated, truncated, info), it gave {_described(answer)}"
                )
            obs, reward, terminated, truncated, _ = answer
            total += self._number(reward)
            terminal = self._flag(terminated, "terminated")
            last = self._flag(truncated, "truncated") or terminal
            if last:
                break
        self._write_obs(obs, out, index, late)
        out.reward[index] = total
        out.is_first[index] = False
        out.is_last[index] = self._over = last
        out.is_terminal[index] = terminal

    def _write_obs(self, obs: Any, out: Step, index: int, late: bool) -> None:
        for reader in self._readers:
            target = out.obs[reader.key]
            try:
                value = find(reader, obs) if reader.path else obs
                if late and reader.late and type(value) is np.ndarray and value.dtype == np.float32:
                    if value.shape == reader.shape:
                        target[index] = value
                        continue
                array = read(reader, value)
            except ValueError as error:
                raise self._error(str(error)) from None
            target[index] = array if array.shape == reader.space.shape else array.reshape(reader.space.shape)

    def _number(self, reward: Any) -> float:
        try:
            number = float(reward) if not isinstance(reward, np.ndarray) or reward.ndim == 0 else None
        except (TypeError, ValueError):
            number = None
        if number is None:
            raise self._error(f"reward must be a number, it is {_described(reward)}")
        if not -_LARGEST <= number <= _LARGEST:
            raise self._error(f"reward is {number}, not a finite float32")
        return number

    def _flag(self, flag: Any, name: str) -> bool:
        if flag is True or flag is False:
            return flag
        array = np.asarray(flag)
        if array.shape != () or array.dtype.kind not in "biu":
            raise self._error(f"{name} must be a bool, it is {_described(flag)}")
        return bool(array)

    def _error(self, text: str) -> UserError:
        return UserError(f"env {self.name!r}, episode {self._episode}, step {self._step}: {text}")


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
    if reader.low is not None and not _inside(reader, array):
        raise ValueError(_outside(reader, array))
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
        start, kind = int(space.start), space.dtype.type
        return Space((), "int32", int(space.n)), lambda action: kind(start + action.argmax())
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
        raise UserError(
            f"env {name!r}: the action space {space} is not supported; supported are Discrete and float Box"
        )
    low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
    finite = (low > -_LARGEST) & (high < _LARGEST)
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
    late = dtype == np.float32 and shape != ()
    return Reader(key, path, Space(shape or (1,), "float32"), shape, kinds, low, high, late=late)


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    low = np.clip(low - _TOLERANCE * np.maximum(1.0, np.abs(low)), -_LARGEST, _LARGEST)
    high = np.clip(high + _TOLERANCE * np.maximum(1.0, np.abs(high)), -_LARGEST, _LARGEST)
    return (low, high) if space.dtype == np.float64 else (low.astype(np.float32), high.astype(np.float32))


def _inside(reader: Reader, array: np.ndarray) -> bool:
    # Written as NaN >= low is False: one pair of comparisons catches NaN, infinities and bounds. all() would take
    # twice as long for the few numbers of most observations, and this runs for every row.
    return np.count_nonzero((array >= reader.low) & (array <= reader.high)) == array.size


def _outside(reader: Reader, array: np.ndarray) -> str:
    array, low, high = np.broadcast_arrays(array, reader.low, reader.high)
    where = tuple(int(i) for i in np.argwhere(~((array >= low) & (array <= high)))[0])
    place = f" at {list(where)}" if where else ""
    value = array[where]
    if not np.isfinite(value):
        return f"key {reader.key!r}{place} is {value}"
    limits = f"{low[where]:.6g} to {high[where]:.6g}"
    return f"key {reader.key!r}{place} is {value:.6g}, outside of its space's bounds {limits}"


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} values" + (" (the old gym interface)" if len(value) == 4 else "")
    if isinstance(value, np.ndarray):
        return f"one array {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}: {str(value)[:60]}"


_KINDS = {"fiub": "float", "iub": "integer", "iu": "uint8", "u": "uint8"}
