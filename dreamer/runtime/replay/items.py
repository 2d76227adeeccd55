"""Items are the rows at which a sequence can start. Draws items uniformly or by age. Plain numpy, no jax.

Source: spec section 10.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Items(NamedTuple):
    """The items that exist: in stream e, the rows first[e] .. first[e] + per_stream[e] - 1, where a sequence can start.

    first, per_stream [E] int64. first is also the oldest row that each ring holds.
    """

    first: np.ndarray
    per_stream: np.ndarray


def existing(counts: np.ndarray, rows_per_stream: int, sequence: int) -> Items:
    """Returns the items for sequences of `sequence` rows.

    counts [E]: the number of rows ever added to each ring. rows_per_stream: the length of the rings.
    """
    held = np.minimum(counts, rows_per_stream)
    return Items(counts - held, np.maximum(0, held - sequence + 1))


def uniform(rng: np.random.Generator, items: Items, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws items uniformly. Returns their stream [size] and first row number [size]. At least one item must exist."""
    ends = np.cumsum(items.per_stream)
    item = rng.integers(ends[-1], size=size)
    stream = np.searchsorted(ends, item, side="right")
    return stream, items.first[stream] + item - (ends - items.per_stream)[stream]


def rank_sums(most: int, exponent: float) -> np.ndarray:
    """Returns the cumulative sums of 1 / rank ** exponent for ranks 1 (the newest) to `most`, float64 [most]."""
    return np.cumsum(np.arange(1, most + 1, dtype=np.float64) ** -exponent)


def recent(rng: np.random.Generator, items: Items, size: int, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws items with weight 1 / rank ** exponent. Returns their stream [size] and first row number [size].

    Items are ranked by age, counted in rows of their own stream; at equal age, streams with more items come first.
    sums: the result of `rank_sums`, [most], where `most` is at least the number of items. At least one item must exist.
    The time is logarithmic in the number of items.
    """
    total = int(items.per_stream.sum())
    rank = np.searchsorted(sums[: total - 1], rng.random(size) * sums[total - 1], side="right")
    # With rings sorted by length, shortest first, E - j items of each age exist up to the length of ring j.
    order = np.argsort(items.per_stream, kind="stable")
    length = items.per_stream[order]
    each = len(order) - np.arange(len(order))
    before = np.cumsum(np.diff(length, prepend=0) * each)
    stage = np.searchsorted(before, rank, side="right")
    inside = rank - np.concatenate([[0], before])[stage]
    age = np.concatenate([[0], length])[stage] + inside // each[stage]
    stream = order[len(order) - 1 - inside % each[stage]]
    return stream, (items.first + items.per_stream)[stream] - 1 - age
