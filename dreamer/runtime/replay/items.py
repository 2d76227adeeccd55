"""Items, the possible sequence starts of the rings, and drawing them evenly or by age. Plain numpy, no jax.

Source: spec section 10.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Items(NamedTuple):
    """The items that exist: in ring e they begin at rows first[e] .. first[e] + per_ring[e] - 1.

    first, per_ring [E] int64; first is also the oldest row that the ring holds.
    """

    first: np.ndarray
    per_ring: np.ndarray


def existing(counts: np.ndarray, rows_per_env: int, sequence: int) -> Items:
    """The items whose `sequence` rows are all held, after counts [E] rows were added to rings of `rows_per_env`."""
    held = np.minimum(counts, rows_per_env)
    return Items(counts - held, np.maximum(0, held - sequence + 1))


def uniform(rng: np.random.Generator, items: Items, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ring and first row number of items, both of shape [size], all equally likely. At least one item must exist."""
    ends = np.cumsum(items.per_ring)
    item = rng.integers(ends[-1], size=size)
    ring = np.searchsorted(ends, item, side="right")
    return ring, items.first[ring] + item - (ends - items.per_ring)[ring]


def rank_sums(most: int, exponent: float) -> np.ndarray:
    """Cumulative sums of 1 / rank ** exponent from rank 1 (the newest) on, float64 of shape [most]; for `recent`."""
    return np.cumsum(np.arange(1, most + 1, dtype=np.float64) ** -exponent)


def recent(rng: np.random.Generator, items: Items, size: int, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ring and first row number of items, both of shape [size], each with weight 1 / rank ** exponent.

    Items are ranked by age, counted in rows of their own ring; at equal age, items of longer rings come first.
    sums: `rank_sums` [most] of at least the number of items. At least one item must exist. Logarithmic in the items.
    """
    total = int(items.per_ring.sum())
    rank = np.searchsorted(sums[: total - 1], rng.random(size) * sums[total - 1], side="right")
    # Rings by length, shortest first: up to the length of the j-th there are E - j items of each age.
    order = np.argsort(items.per_ring, kind="stable")
    length = items.per_ring[order]
    each = len(order) - np.arange(len(order))
    before = np.cumsum(np.diff(length, prepend=0) * each)
    stage = np.searchsorted(before, rank, side="right")
    inside = rank - np.concatenate([[0], before])[stage]
    age = np.concatenate([[0], length])[stage] + inside // each[stage]
    ring = order[len(order) - 1 - inside % each[stage]]
    return ring, (items.first + items.per_ring)[ring] - 1 - age
