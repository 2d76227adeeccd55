"""Prioritised selection: items drawn in proportion to the losses of their rows. Plain numpy, no jax.

An item is a row at which a sequence can start; its rows are the rows of that sequence. The priority of a row is the
last value written. It is infinite while the row is new, and 0 after an item with the row was drawn. The weight of an
item is maxfrac * max + (1 - maxfrac) * mean of priority ** exponent over its rows. Items with a new row are drawn
before all others, with equal probability. Source: spec section 10.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dreamer.runtime.replay.items import Items, uniform
from dreamer.runtime.replay.sum_tree import SumTree

NEW, KNOWN = 0, 1  # planes of the tree: 1 for items with a new row | weights of the other items


class Priorities:
    """Owns a priority for each row, and a weight for each item (sequence start), of rings of equal length.

    rows [E, rows_per_stream] float32: priority ** exponent of each row
    tree: the weight of each item, in the leaf for the slot of its first row
    """

    def __init__(self, streams: int, rows_per_stream: int, sequence: int, *, exponent: float, maxfrac: float):
        self.rows = np.zeros((streams, rows_per_stream), np.float32)
        self.tree = SumTree(streams * rows_per_stream, planes=2)
        self._sequence, self._exponent, self._maxfrac = sequence, exponent, maxfrac

    def added(self, stream: np.ndarray, number: np.ndarray) -> None:
        """Marks rows `number` [N] of different streams [N], which were just appended, as new.

        Drops the items whose rows are overwritten.
        """
        length = self.rows.shape[1]
        self.rows[stream, number % length] = np.inf
        item = number - self._sequence + 1
        begun = item >= 0
        leaf = np.concatenate([self._leaf(stream, number), self._leaf(stream[begun], item[begun])])
        weight = np.zeros((len(leaf), 2))
        weight[len(stream) :, NEW] = 1
        self.tree.update(leaf, weight)

    def draw(self, rng: np.random.Generator, items: Items, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws items, and sets the priorities of their rows to 0. Returns stream [size] and first row number [size].

        One call draws an item twice only if no other item has a weight left; it then draws the rest uniformly.
        """
        stream, number = np.zeros(0, np.int64), np.zeros(0, np.int64)
        while len(stream) < size:
            wanted = size - len(stream)
            plane = NEW if self.tree.total[NEW] else KNOWN
            if self.tree.total[plane]:
                leaf = np.unique(self.tree.find(rng.random(wanted), plane))
                drawn = leaf // self.rows.shape[1]
                slot = leaf % self.rows.shape[1]
                start = items.first[drawn] + (slot - items.first[drawn]) % self.rows.shape[1]
            else:
                drawn, start = uniform(rng, items, wanted)
            stream, number = np.concatenate([stream, drawn]), np.concatenate([number, start])
            zeros = np.zeros((len(drawn), self._sequence), np.float32)
            self.write(items, drawn, start[:, None] + np.arange(self._sequence), zeros)
        return stream, number

    def write(self, items: Items, stream: np.ndarray, number: np.ndarray, priority: np.ndarray) -> None:
        """Sets the priorities [N, L] of L successive rows of each stream [N], and updates the weights of their items.

        number [N, L]: the row numbers; rows that are no longer held are skipped. A priority that is negative or NaN
        counts as 0.
        """
        length = self.rows.shape[1]
        held = number >= items.first[stream][:, None]
        # Only rows that were never trained on may be infinite. fmax ignores NaN.
        power = np.minimum(np.fmax(priority, 0) ** self._exponent, np.finfo(np.float32).max)
        self.rows[np.broadcast_to(stream[:, None], number.shape)[held], number[held] % length] = power[held]
        # Every item that contains one of the rows starts at most one sequence before it.
        reach = self._sequence - 1
        item = number[:, :1] + np.arange(-reach, number.shape[1])
        here = (item >= items.first[stream][:, None]) & (item < (items.first + items.per_stream)[stream][:, None])
        around = number[:, :1] + np.arange(-reach, number.shape[1] + reach)
        weight = self._weights(self.rows[stream[:, None], around % length])
        self.tree.update(self._leaf(stream[:, None], item)[here], weight[here])

    def state(self) -> dict[str, np.ndarray]:
        """Returns the priorities `rows` [E, R] float32 and the weights `items` [E * R, 2] float64, for rings of R rows.

        The arrays are views. All other state can be computed from them.
        """
        return {"rows": self.rows, "items": self.tree.leaves}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what `state` returned: rows [E, R], items [E * R, 2].

        The same generator then draws the same items as before.
        """
        self.rows[...] = state["rows"]
        self.tree.fill(state["items"])

    def _leaf(self, stream: np.ndarray, number: np.ndarray) -> np.ndarray:
        return stream * self.rows.shape[1] + number % self.rows.shape[1]

    def _weights(self, rows: np.ndarray) -> np.ndarray:
        """Returns the weights [N, L - sequence + 1, 2] of all items whose sequences lie within rows [N, L]."""
        most = slide(np.maximum, rows, self._sequence)
        new = np.isinf(most)
        mean = slide(np.add, rows.astype(np.float64), self._sequence) / self._sequence
        known = self._maxfrac * np.where(new, 0, most) + (1 - self._maxfrac) * np.where(new, 0, mean)
        return np.stack([new, known], -1)


def slide(combine: np.ufunc, values: np.ndarray, length: int) -> np.ndarray:
    """Combines the values in each window of `length` successive values. Returns [N, L - length + 1] for values [N, L].

    A window whose length is a power of two is combined from two windows of half the length. A window of any other
    length is combined from such windows.
    """
    count, width, covered = values.shape[1] - length + 1, 1, 0
    result = None
    while width <= length:
        if length & width:
            part = values[:, covered : covered + count]
            result = part if result is None else combine(result, part)
            covered += width
        values = combine(values[:, :-width], values[:, width:])
        width *= 2
    assert result is not None
    return result
