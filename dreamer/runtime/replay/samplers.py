"""The ways of sampling sequences: uniform, by priority, by recency, and mixtures of these. Plain numpy, no jax.

A new way is a maker, its row in WAYS, and a field with its name and the mark SHARE in `config`.
Source: spec section 10.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dreamer.runtime.replay.config import Config
from dreamer.runtime.replay.items import Items, rank_sums, recent, uniform
from dreamer.runtime.replay.priorities import Priorities

Drawn = tuple[np.ndarray, np.ndarray]


class Rings(NamedTuple):
    """The sizes of a replay: its number of rings, the rows of each, the rows of a sequence."""

    streams: int
    rows_per_stream: int
    sequence: int


def _nothing(*args: Any) -> None:
    pass


class Way(NamedTuple):
    """A way of sampling, as functions that share their memory. A function that a way does not need does nothing.

    draw(rng, items, size) -> stream [size], first row number [size] of items; at least one item must exist
    added(stream [N], number [N]): called after these rows were appended, each to another stream
    prioritise(items, stream [B], number [B, T], priority [B, T]): for successive rows; skips rows no longer held
    state() -> {name: array}, the whole memory, not copied | load(state)
    """

    draw: Callable[[np.random.Generator, Items, int], Drawn]
    added: Callable[[np.ndarray, np.ndarray], None] = _nothing
    prioritise: Callable[[Items, np.ndarray, np.ndarray, np.ndarray], None] = _nothing
    state: Callable[[], dict[str, np.ndarray]] = dict
    load: Callable[[Mapping[str, np.ndarray]], None] = _nothing


def uniform_way(config: Config, rings: Rings) -> Way:
    """Every item is equally likely."""
    return Way(uniform)


def priority_way(config: Config, rings: Rings) -> Way:
    """Items with new rows first, others by the priorities of their rows; see `priorities`."""
    memory = Priorities(*rings, exponent=config.priority_exponent, maxfrac=config.priority_maxfrac)
    return Way(memory.draw, memory.added, memory.write, memory.state, memory.load)


def recency_way(config: Config, rings: Rings) -> Way:
    """An item weighs 1 / rank ** recency_exponent, the newest has rank 1."""
    most = rings.streams * (rings.rows_per_stream - rings.sequence + 1)
    return Way(functools.partial(recent, sums=rank_sums(most, config.recency_exponent)))


class Maker(NamedTuple):
    """Makes a way. bytes_per_row: host memory that the way takes for each row of the replay."""

    make: Callable[[Config, Rings], Way]
    bytes_per_row: int = 0


WAYS = {
    "uniform": Maker(uniform_way),
    "priority": Maker(priority_way, 4 + 18),  # the priority; two weights with their sums
    "recency": Maker(recency_way, 8),  # a rank sum
}


def bytes_per_row(config: Config) -> int:
    """Host memory that sampling takes for each row of the replay."""
    return sum(WAYS[name].bytes_per_row for name, share in config.shares.items() if share)


class Part(NamedTuple):
    """A way with its name and its share of the sequences."""

    name: str
    share: float
    way: Way


def make_sampler(config: Config, rings: Rings) -> Sampler:
    """A sampler of the ways that have a share in `config`, each with empty memory."""
    parts = [Part(name, share, WAYS[name].make(config, rings)) for name, share in config.shares.items() if share]
    return Sampler(tuple(parts))


class Sampler:
    """Owns the memory of the ways of sampling. Random numbers come from the caller's generator.

    With a single way, no random number is spent on choosing the way.
    """

    def __init__(self, parts: tuple[Part, ...]):
        shares = np.array([part.share for part in parts])
        self._parts, self._shares = parts, shares / shares.sum()

    def draw(self, rng: np.random.Generator, items: Items, size: int) -> Drawn:
        """Ring [size] and first row number [size] of items. At least one item must exist."""
        if len(self._parts) == 1:
            return self._parts[0].way.draw(rng, items, size)
        chosen = rng.choice(len(self._parts), size, p=self._shares)
        stream, number = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for index, part in enumerate(self._parts):
            here = chosen == index
            stream[here], number[here] = part.way.draw(rng, items, int(here.sum()))
        return stream, number

    def added(self, stream: np.ndarray, number: np.ndarray) -> None:
        """Notes that rows `number` [N] were appended to different streams [N]."""
        for part in self._parts:
            part.way.added(stream, number)

    def prioritise(self, items: Items, stream: np.ndarray, number: np.ndarray, priority: np.ndarray) -> None:
        """Sets the priorities [B, T] of successive rows `number` [B, T] of streams [B]; skips rows no longer held."""
        for part in self._parts:
            part.way.prioritise(items, stream, number, priority)

    def state(self) -> dict[str, np.ndarray]:
        """The memory of all ways, {"way/name": array}; priorities have rows [E, R] and items [E * R, 2]. Not copied."""
        return {f"{part.name}/{name}": array for part in self._parts for name, array in part.way.state().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the `state` of a sampler with the same settings and size; each array keeps its shape."""
        for part in self._parts:
            part.way.load({name: state[f"{part.name}/{name}"] for name in part.way.state()})
