"""How sequences are chosen: evenly, by priority, by recency, and mixtures of these. Plain numpy, no jax.

Source: spec section 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dreamer.runtime.replay.items import Items, existing, rank_sums, recent, uniform
from dreamer.runtime.replay.priorities import Priorities

__all__ = ["Items", "Mixture", "Sampler", "bytes_per_row", "existing", "recent", "uniform"]


class Mixture(NamedTuple):
    """The share of the sequences that each way chooses, and the settings of the ways.

    priority_exponent, priority_maxfrac: see `priorities`. recency_exponent: an item weighs 1 / rank ** this.
    """

    uniform: float
    priority: float
    recency: float
    priority_exponent: float
    priority_maxfrac: float
    recency_exponent: float

    @property
    def total(self) -> float:
        """The shares added up, which must be 1."""
        return self.uniform + self.priority + self.recency


def bytes_per_row(mixture: Mixture) -> int:
    """Memory that choosing takes for each row of the replay: priorities and two weights with their sums, rank sums."""
    return (4 + 18 if mixture.priority else 0) + (8 if mixture.recency else 0)


class Sampler:
    """Owns what the ways of choosing remember. Random numbers come from the caller's generator.

    With one way alone no random number is spent on choosing the way.
    """

    def __init__(self, mixture: Mixture, *, envs: int, rows_per_env: int, sequence: int):
        shares = np.array([mixture.uniform, mixture.priority, mixture.recency])
        self._shares = shares / shares.sum()
        self.priorities = None
        if mixture.priority:
            self.priorities = Priorities(
                envs, rows_per_env, sequence, exponent=mixture.priority_exponent, maxfrac=mixture.priority_maxfrac
            )
        most = envs * (rows_per_env - sequence + 1)
        self._rank_sums = rank_sums(most if mixture.recency else 0, mixture.recency_exponent)

    def added(self, ring: np.ndarray, number: np.ndarray) -> None:
        """Rows `number` [N] were just appended to different rings [N]."""
        if self.priorities:
            self.priorities.added(ring, number)

    def draw(self, rng: np.random.Generator, items: Items, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Ring [size] and first row number [size] of items. One item at least must exist."""
        ways = np.flatnonzero(self._shares)
        if len(ways) == 1:
            return self._draw(int(ways[0]), rng, items, size)
        way = rng.choice(len(self._shares), size, p=self._shares)
        ring, number = np.zeros(size, np.int64), np.zeros(size, np.int64)
        for one in map(int, ways):
            here = way == one
            ring[here], number[here] = self._draw(one, rng, items, int(here.sum()))
        return ring, number

    def prioritise(self, items: Items, ring: np.ndarray, number: np.ndarray, priority: np.ndarray) -> None:
        """Priorities [B, T] of the successive rows `number` [B, T] of rings [B]; rows no longer held are left alone."""
        if self.priorities:
            self.priorities.write(items, ring, number, priority)

    def state(self) -> dict[str, np.ndarray]:
        """All that is remembered, by name; the arrays themselves, not copies. Nothing for uniform and recency."""
        if not self.priorities:
            return {}
        return {f"priority/{name}": value for name, value in self.priorities.state().items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from a `state` of a sampler with the same settings and size."""
        if self.priorities:
            self.priorities.load({name: state[f"priority/{name}"] for name in self.priorities.state()})

    def _draw(self, way: int, rng: np.random.Generator, items: Items, size: int) -> tuple[np.ndarray, np.ndarray]:
        if way == 1 and self.priorities:
            return self.priorities.draw(rng, items, size)
        if way == 2:
            return recent(rng, items, size, self._rank_sums)
        return uniform(rng, items, size)
