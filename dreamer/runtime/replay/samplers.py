"""The sampling methods for sequences: uniform, by priority, by recency, and mixtures of these. Plain numpy, no jax.

A new method needs a function that makes it, an entry in WAYS, and a field of `config.Config` annotated with SHARE.
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
    """The sizes of a replay: the number of rings, the rows of each ring, and the rows of a sequence."""

    streams: int
    rows_per_stream: int
    sequence: int


def _nothing(*args: Any) -> None:
    pass


class Way(NamedTuple):
    """A sampling method, as functions that share state. Functions that a method does not need do nothing.

    An item is a row at which a sequence can start.
    draw(rng, items, size): returns the stream [size] and first row number [size] of drawn items; an item must exist
    added(stream [N], number [N]): called after these rows were appended to different streams
    prioritise(items, stream [B], number [B, T], priority [B, T]): sets the priorities of T successive rows of each
    stream; skips rows that are no longer held
    state(): returns the complete state {name: array}, not copied | load(state): restores it
    """

    draw: Callable[[np.random.Generator, Items, int], Drawn]
    added: Callable[[np.ndarray, np.ndarray], None] = _nothing
    prioritise: Callable[[Items, np.ndarray, np.ndarray, np.ndarray], None] = _nothing
    state: Callable[[], dict[str, np.ndarray]] = dict
    load: Callable[[Mapping[str, np.ndarray]], None] = _nothing


def uniform_way(config: Config, rings: Rings) -> Way:
    """Returns the method that draws every item with equal probability."""
    return Way(uniform)


def priority_way(config: Config, rings: Rings) -> Way:
    """Returns the method that draws items with new rows first and the other items by priority; see `priorities`."""
    memory = Priorities(*rings, exponent=config.priority_exponent, maxfrac=config.priority_maxfrac)
    return Way(memory.draw, memory.added, memory.write, memory.state, memory.load)


def recency_way(config: Config, rings: Rings) -> Way:
    """Returns the method that draws items with weight 1 / rank ** recency_exponent; the newest item has rank 1."""
    most = rings.streams * (rings.rows_per_stream - rings.sequence + 1)
    return Way(functools.partial(recent, sums=rank_sums(most, config.recency_exponent)))


class Maker(NamedTuple):
    """A function that makes a sampling method, and the bytes of host memory that the method needs per row."""

    make: Callable[[Config, Rings], Way]
    bytes_per_row: int = 0


WAYS = {
    "uniform": Maker(uniform_way),
    "priority": Maker(priority_way, 4 + 18),  # the priority; two weights with their sums
    "recency": Maker(recency_way, 8),  # a rank sum
}


def bytes_per_row(config: Config) -> int:
    """Returns the bytes of host memory that all sampling methods together need for each row of the replay."""
    return sum(WAYS[name].bytes_per_row for name, share in config.shares.items() if share)


class Part(NamedTuple):
    """A sampling method with its name and its share of the sequences."""

    name: str
    share: float
    way: Way


def make_sampler(config: Config, rings: Rings) -> Sampler:
    """Returns a new sampler with the methods whose share in `config` is positive."""
    parts = [Part(name, share, WAYS[name].make(config, rings)) for name, share in config.shares.items() if share]
    return Sampler(tuple(parts))


class Sampler:
    """Draws items with several sampling methods, and owns the state of these methods.

    Each sequence is drawn by a method chosen at random. If there is a single method, this choice uses no random number.
    """

    def __init__(self, parts: tuple[Part, ...]):
        shares = np.array([part.share for part in parts])
        self._parts, self._shares = parts, shares / shares.sum()

    def draw(self, rng: np.random.Generator, items: Items, size: int) -> Drawn:
        """Draws items. Returns their stream [size] and first row number [size]. At least one item must exist."""
        if len(self._parts) == 1:
            return self._parts[0].way.draw(rng, items, size)
        chosen = rng.choice(len(self._parts), size, p=self._shares)
        stream, number = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for index, part in enumerate(self._parts):
            here = chosen == index
            stream[here], number[here] = part.way.draw(rng, items, int(here.sum()))
        return stream, number

    def added(self, stream: np.ndarray, number: np.ndarray) -> None:
        """Informs all methods of new rows: row number[i] was just appended to stream[i]. The streams must differ."""
        for part in self._parts:
            part.way.added(stream, number)

    def prioritise(self, items: Items, stream: np.ndarray, number: np.ndarray, priority: np.ndarray) -> None:
        """Sets the priorities [B, T] of T successive rows of each stream [B].

        number [B, T]: the row numbers; rows that are no longer held are skipped.
        """
        for part in self._parts:
            part.way.prioritise(items, stream, number, priority)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state of all methods, {"method/name": array}, not copied. For shapes see `Priorities.state`."""
        return {f"{part.name}/{name}": array for part in self._parts for name, array in part.way.state().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what `state` returned for a sampler with the same settings and size; each array keeps its shape."""
        for part in self._parts:
            part.way.load({name: state[f"{part.name}/{name}"] for name in part.way.state()})
