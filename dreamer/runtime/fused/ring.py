"""The replay on the device: a ring of rows for each stream, as pure functions.

All streams add a row in each turn, so one count serves all of them. Rows, slots, items and sequences are those of
runtime/replay/replay.py: row `number` is in slot `number % R`, and a sequence has `context` + T rows.
Source: spec section 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, Batch, Key


class Sizes(NamedTuple):
    """The sizes of a ring: S streams, R rows for each, sequences of `context` + T rows.

    online: whether new sequences are trained on first | reads: the packed latents that batches hold for all rows
    """

    streams: int
    rows: int
    context: int
    length: int
    online: bool = True
    reads: frozenset[str] = frozenset()

    @property
    def sequence(self) -> int:
        """Returns the number of rows of a sequence."""
        return self.context + self.length


class Ring(NamedTuple):
    """The stored rows.

    columns {name: [S, R, ..]} | added [] int32: the number of rows ever added to each stream
    taken [] int32: the number of new sequences that were trained on or dropped. The stream of new sequence j is j % S;
        its first row has number (j // S) * sequence. On several devices it is [devices], see `mesh.py`.
    """

    columns: Mapping[str, Array]
    added: Array
    taken: Array


class Places(NamedTuple):
    """The rows of a batch: stream [B], and number [B, T] of the rows that are trained on, both int32."""

    stream: Array
    number: Array


def add(ring: Ring, values: Mapping[str, Array]) -> Ring:
    """Appends a row to each stream. values {name: [S, ..]}, with the names and dtypes of the columns."""
    slot = ring.added % _rows(ring)
    columns = {
        name: jax.lax.dynamic_update_index_in_dim(column, values[name], slot, 1)
        for name, column in ring.columns.items()
    }
    return ring._replace(columns=columns, added=ring.added + 1)


def newest(ring: Ring, rows: int) -> Mapping[str, Array]:
    """Returns the last `rows` rows {name: [S, rows, ..]} of each stream, oldest first."""
    number = ring.added - rows + jnp.arange(rows)
    return {name: column[:, _slots(ring, number)] for name, column in ring.columns.items()}


def items(ring: Ring, sizes: Sizes) -> Array:
    """Returns the number [] of rows of one stream at which a sequence can start."""
    return jnp.maximum(0, jnp.minimum(ring.added, sizes.rows) - sizes.sequence + 1)


def draw(ring: Ring, sizes: Sizes, key: Key, batch_size: int) -> tuple[Ring, Array, Array]:
    """Draws sequences: new ones first, the rest uniformly. At least one item must exist.

    Returns the ring, and the stream [B] and the number [B] of the first row of each sequence.
    """
    keys = jax.random.split(key)
    stream = jax.random.randint(keys[0], (batch_size,), 0, sizes.streams)
    start = jnp.maximum(0, ring.added - sizes.rows) + jax.random.randint(
        keys[1], (batch_size,), 0, items(ring, sizes)
    )
    if not sizes.online:
        return ring, stream, start
    first, fresh = new_sequences(ring, sizes)
    taken = jnp.minimum(fresh, batch_size)
    new = first + jnp.arange(batch_size)
    chosen = jnp.arange(batch_size) < taken
    stream = jnp.where(chosen, new % sizes.streams, stream)
    start = jnp.where(chosen, new // sizes.streams * sizes.sequence, start)
    return ring._replace(taken=first + taken), stream, start


def new_sequences(ring: Ring, sizes: Sizes) -> tuple[Array, Array]:
    """Returns the index [] of the oldest new sequence that is still held, and how many there are []."""
    whole = ring.added // sizes.sequence
    oldest = -(-jnp.maximum(0, ring.added - sizes.rows) // sizes.sequence)
    most = sizes.rows // sizes.sequence
    first = jnp.maximum(ring.taken, sizes.streams * jnp.maximum(oldest, whole - most))
    return first, jnp.maximum(0, sizes.streams * whole - first)


def gather(ring: Ring, sizes: Sizes, stream: Array, start: Array) -> tuple[Batch, Places]:
    """Returns the batch of the sequences that begin at row `start` [B] of `stream` [B], as `Replay.sample` does.

    In the batch (not in the ring), is_first is set on row 0, and is_last on every row after which an episode starts.
    """
    number = start[:, None] + jnp.arange(sizes.sequence)[None]
    data = {
        name: column[stream[:, None], _slots(ring, number[:, : _length(sizes, name)])]
        for name, column in ring.columns.items()
    }
    following = ring.columns["is_first"][stream[:, None], _slots(ring, number + 1)]
    is_last = data["is_last"] | (following & (number + 1 < ring.added))
    obs = {name.removeprefix("obs/"): x for name, x in data.items() if name.startswith("obs/")}
    latent = {name.removeprefix("latent/"): x for name, x in data.items() if _latent(name)}
    batch = Batch(
        obs, data["action"], data["reward"], data["is_first"].at[:, 0].set(True), is_last, data["is_terminal"], latent
    )
    return batch, Places(stream, number[:, sizes.context :])


def refresh(ring: Ring, places: Places, latent: Mapping[str, Array]) -> Ring:
    """Writes recomputed latents {name: [B, T, ..]} to the rows of a batch. No row was added since it was drawn.

    If several sequences of the batch share a row, the value of the last sequence is kept, as in `Replay.refresh`. JAX
    does not define which of several writes to one place wins, so the others are dropped.
    """
    stream, number = places
    order, row = jnp.arange(len(stream)), number[:, :, None]
    later = (order[:, None] < order[None]) & (stream[:, None] == stream[None])
    first, last = number[None, None, :, 0], number[None, None, :, -1]
    again = later[:, None] & (first <= row) & (row <= last)
    slot = jnp.where(again.any(-1), _rows(ring), _slots(ring, number))
    columns = dict(ring.columns)
    for name, value in latent.items():
        column = columns[f"latent/{name}"]
        columns[f"latent/{name}"] = column.at[stream[:, None], slot].set(value, mode="drop")
    return ring._replace(columns=columns)


def _rows(ring: Ring) -> int:
    return ring.columns["reward"].shape[1]


def _slots(ring: Ring, number: Array) -> Array:
    return number % _rows(ring)


def _length(sizes: Sizes, name: str) -> int:
    """Returns of how many rows of a sequence a batch holds this column."""
    context_only = _latent(name) and name.removeprefix("latent/") not in sizes.reads
    return sizes.context if context_only else sizes.sequence


def _latent(name: str) -> bool:
    return name.startswith("latent/")
