"""Splits streams of rows into episodes. Imports no jax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

MOST_BYTES = 1 << 30  # rows of one piece that are held; a longer episode is given in several pieces

Columns = Mapping[str, np.ndarray]


class Cut(NamedTuple):
    """The transitions `start` to `stop` - 1 of one episode. first, last: whether it begins and ends with them."""

    start: int
    stop: int
    first: bool
    last: bool


def parts(cut: Cut, row_bytes: int) -> Iterator[Cut]:
    """Yields a cut in parts that fit the memory. row_bytes: those of the observations of a row."""
    most = max(2, MOST_BYTES // max(1, row_bytes))
    for start in range(cut.start, cut.stop, most):
        stop = min(start + most, cut.stop)
        yield Cut(start, stop, cut.first and start == cut.start, cut.last and stop == cut.stop)


class Pieces:
    """Holds the rows of the episode that is not complete yet. The columns need "is_first" and "is_last"."""

    def __init__(self) -> None:
        self._blocks: list[Columns] = []
        self._bytes = 0
        self.rows = 0  # rows that were taken out

    def add(self, columns: Columns) -> Iterator[dict[str, np.ndarray]]:
        """Adds rows {name: [n, ..]} and yields the episodes that they complete, or begin after."""
        first, last = columns["is_first"].astype(bool), columns["is_last"].astype(bool)
        cuts = {0, len(first), *np.flatnonzero(first).tolist(), *(np.flatnonzero(last) + 1).tolist()}
        edges = sorted(cuts)
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            if first[start]:
                yield from self.rest()
            self._blocks.append({name: values[start:stop] for name, values in columns.items()})
            self._bytes += sum(values[start:stop].nbytes for values in columns.values())
            if last[stop - 1] or self._bytes > MOST_BYTES:
                yield from self.rest()

    def rest(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the rows that are held, as a piece without an end, if there are any."""
        if not self._blocks:
            return
        blocks, self._blocks, self._bytes = self._blocks, [], 0
        piece = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        self.rows += len(piece["is_first"])
        yield piece
