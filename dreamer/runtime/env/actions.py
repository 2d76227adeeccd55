"""Converts between the action spaces of gymnasium and the agent's action vectors. Imports no jax.

An action vector has one-hots first, then numbers (see `dreamer.spaces.Action`). Each space becomes these parts of it:

    Discrete                a one-hot of n classes, for any start
    MultiDiscrete           a one-hot for each entry
    MultiBinary             a one-hot of two classes for each entry
    Box                     a number for each entry: [-1, 1] is mapped to its bounds; for integers, [-1, 1] is divided
                            into bins of equal width. An entry without bounds keeps its number; an entry with one bound
                            covers the 2 units next to it. The largest number of the dtype is no bound (see `ranges`)
    Dict, Tuple of these    the parts of each member, in the order of the keys
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.runtime.env.api_errors import foreign
from dreamer.spaces import Action, choosable

SUPPORTED = "supported are Discrete, MultiDiscrete, MultiBinary, Box, and Dict and Tuple of them"
LARGEST = float(np.finfo(np.float32).max)
MOST_CLASSES = 65_536


class ActionReader(NamedTuple):
    """Converts the agent's action vectors to actions of an environment.

    action: the form of the agent's action vector
    to_env(vector [A]) -> the argument of `env.step`, always inside the action space: takes the class with the largest
    entry of each one-hot, and clips numbers to [-1, 1]
    start: the first class, if the whole action space is one Discrete; None: it is any other space
    """

    action: Action
    to_env: Callable[[np.ndarray], Any]
    start: int | None


def action_reader(env: gymnasium.Env, name: str = "") -> ActionReader:
    """Returns the ActionReader of `env`. name: the environment's name in errors.

    Raises UserError if the action space contains an unsupported space, and names its path, or if it is empty.
    """
    space = env.action_space
    sizes: list[int] = []
    numbers = 0
    for path, leaf in _leaves(space, ()):
        _check(leaf, "/".join(path), name)
        sizes += _classes(leaf)
        numbers += int(np.prod(leaf.shape)) if isinstance(leaf, spaces.Box) else 0
    if not sizes and not numbers:
        raise UserError(
            f"env {name!r}: the action space {space} has nothing to choose; it needs at least one number or class"
        )
    action = Action(tuple(sizes), numbers)
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return ActionReader(action, lambda vector: start + int(vector.argmax()), start)
    if isinstance(space, spaces.Box):
        return ActionReader(action, _stretch(space), None)
    build, ends = _builder(space), np.cumsum(sizes, dtype=int).tolist()

    def to_env(vector: np.ndarray) -> Any:
        onehots = np.split(vector[: action.onehots], ends[:-1]) if sizes else []
        return build(iter(onehots), _Numbers(vector[action.onehots :]))

    return ActionReader(action, to_env, None)


def flat_mask(space: spaces.Space, mask: Any) -> np.ndarray:
    """Converts an action mask to int8 [N], 1 = allowed. N is the total length of the one-hots.

    mask: as in `space.sample(mask=..)` of gymnasium (an array for Discrete, a tuple of arrays for MultiDiscrete, a dict
    or tuple of masks for Dict and Tuple, None where everything is allowed), or already an array [N].
    Raises ValueError for any other value.
    """
    total = sum(sum(_classes(leaf)) for _, leaf in _leaves(space, ()))
    array = None if mask is None or isinstance(mask, (Mapping, tuple)) else np.asarray(mask)
    if array is not None and array.shape == (total,) and not isinstance(space, spaces.MultiBinary):
        flat = array
    else:
        flat = np.concatenate([np.zeros(0, np.int8), *_masks(space, mask, ())])
    if flat.dtype.kind not in "biu" or not ((flat == 0) | (flat == 1)).all():
        raise ValueError("the action mask must contain only 0 and 1")
    return flat.astype(np.int8)


def ranges(space: spaces.Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (lowest, highest, bounded): the range from which the agent can choose each entry of the box.

    lowest, highest [n] float64, flat | bounded [n] bool: whether the entry has two bounds, which are then its range
    """
    low, high = (bound.astype(np.float64).ravel() for bound in (space.low, space.high))
    most = min(LARGEST, float(np.finfo(space.dtype.name).max)) if space.dtype.kind == "f" else np.inf
    return choosable(low, high, most)


def random_actions(
    action: Action, rng: np.random.Generator, count: int, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Returns `count` random action vectors [count, A] float32: one-hots, then numbers uniform in [-1, 1].

    allowed: the action mask [n] for the one-hots; None: everything is allowed. If a one-hot has no allowed entry, any
    of its entries is chosen.
    """
    mask = np.ones(action.onehots) if allowed is None else allowed
    parts = []
    for own in np.split(mask, np.cumsum(action.classes, dtype=int)[:-1]) if action.classes else []:
        choices = np.flatnonzero(own) if own.any() else np.arange(len(own))
        parts.append(np.eye(len(own), dtype=np.float32)[choices[rng.integers(len(choices), size=count)]])
    return np.concatenate([*parts, rng.uniform(-1, 1, (count, action.continuous)).astype(np.float32)], 1)


class _Numbers:
    """The continuous part of an action vector; `take` returns its next numbers."""

    def __init__(self, vector: np.ndarray):
        self.vector, self.taken = vector, 0

    def take(self, count: int) -> np.ndarray:
        self.taken += count
        return self.vector[self.taken - count : self.taken]


_Builder = Callable[[Iterator[np.ndarray], _Numbers], Any]


def _leaves(space: spaces.Space, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], spaces.Space]]:
    if isinstance(space, spaces.Dict):
        for key, inner in space.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(space, spaces.Tuple):
        for number, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, str(number)))
    else:
        yield path, space


def _check(leaf: spaces.Space, path: str, name: str) -> None:
    place = f"the action space at {path!r}" if path else "the action space"
    if not isinstance(leaf, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)) or (
        isinstance(leaf, spaces.Box) and leaf.dtype.kind not in "fiub"
    ):
        what = foreign(leaf) or f", is not supported; {SUPPORTED}"
        raise UserError(f"env {name!r}: {place}, {leaf}{what}")
    if isinstance(leaf, spaces.Box) and not (leaf.low <= leaf.high).all():
        raise UserError(
            f"env {name!r}: {place} has a bound that is NaN or a low bound above its high bound; give low <= high"
        )
    if sum(_classes(leaf)) > MOST_CLASSES:
        raise UserError(
            f"env {name!r}: {place}, {leaf}, has {sum(_classes(leaf)):,} choices, each an output of the actor; "
            f"at most {MOST_CLASSES:,}"
        )


def _classes(leaf: spaces.Space) -> list[int]:
    if isinstance(leaf, spaces.Discrete):
        return [int(leaf.n)]
    if isinstance(leaf, spaces.MultiDiscrete):
        return [int(n) for n in leaf.nvec.ravel()]
    if isinstance(leaf, spaces.MultiBinary):
        return [2] * int(np.prod(leaf.shape))
    return []


def _builder(space: spaces.Space) -> _Builder:
    """Returns a function that builds an action of `space` from the next one-hots and numbers of an action vector."""
    if isinstance(space, spaces.Dict):
        named = {key: _builder(inner) for key, inner in space.items()}
        return lambda onehots, numbers: {key: build(onehots, numbers) for key, build in named.items()}
    if isinstance(space, spaces.Tuple):
        ordered = [_builder(inner) for inner in space.spaces]
        return lambda onehots, numbers: tuple(build(onehots, numbers) for build in ordered)
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda onehots, numbers: start + int(next(onehots).argmax())
    if isinstance(space, spaces.Box):
        stretch, size = _stretch(space), int(np.prod(space.shape))
        return lambda onehots, numbers: stretch(numbers.take(size))
    shape, dtype, count = space.shape, space.dtype, len(_classes(space))
    starts = space.start.ravel() if isinstance(space, spaces.MultiDiscrete) else np.zeros(count, int)

    def chosen(onehots: Iterator[np.ndarray], numbers: _Numbers) -> np.ndarray:
        return (starts + [next(onehots).argmax() for _ in range(count)]).astype(dtype).reshape(shape)

    return chosen


def _stretch(space: spaces.Box) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that maps numbers [n] in [-1, 1] to an array inside the box."""
    low, high, _ = ranges(space)
    middle, half, shape, dtype = (low + high) / 2, (high - low) / 2, space.shape, space.dtype
    if dtype.kind == "f":
        # Rounding to a shorter dtype may exceed the bounds by the last bit.
        least, most = space.low.ravel(), space.high.ravel()
        return lambda numbers: np.clip(
            (middle + half * np.clip(numbers, -1.0, 1.0)).astype(dtype), least, most
        ).reshape(shape)
    bins = high - low + 1
    # 2 ** 63 - 1 is not a float64, and rounding it up would overflow.
    high = np.where([int(h) > int(whole) for h, whole in zip(high, space.high.ravel(), strict=True)],
                    np.nextafter(high, low), high)  # fmt: skip
    return lambda numbers: np.clip(
        low + np.floor((np.clip(numbers, -1.0, 1.0) + 1) / 2 * bins), low, high
    ).astype(dtype).reshape(shape)


def _masks(space: spaces.Space, mask: Any, path: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Yields a flat mask for the one-hots of each space inside `space`, in order. A missing mask allows everything."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inner = space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in inner:
            try:
                own = None if mask is None else mask[key]
            except (KeyError, IndexError, TypeError):
                own = None
            yield from _masks(part, own, (*path, str(key)))
        return
    sizes = _classes(space)
    if mask is None or not sizes:
        yield np.ones(sum(sizes), np.int8)
        return
    if isinstance(space, spaces.MultiBinary):
        forced = np.asarray(mask).ravel()  # gymnasium: 0 and 1 are forced, 2 is free
        flat = np.stack([forced != 1, forced != 0], -1).ravel().astype(np.int8)
    else:
        flat = np.asarray(mask) if not isinstance(mask, tuple) else _joined(mask)
    if flat.shape != (sum(sizes),):
        place = f" at {'/'.join(path)!r}" if path else ""
        raise ValueError(f"the action mask{place} is {list(flat.shape)}, it must be {[sum(sizes)]}")
    yield flat


def _joined(masks: tuple) -> np.ndarray:
    """Concatenates nested tuples of arrays into one array."""
    return np.concatenate([_joined(one) if isinstance(one, tuple) else np.asarray(one).ravel() for one in masks])
