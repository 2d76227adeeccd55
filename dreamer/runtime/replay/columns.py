"""The columns of the rings [E, rows_per_stream, ..]: allocation, checks, and copies of sequences. Imports no jax."""

from __future__ import annotations

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from dreamer.errors import UserError, nearest
from dreamer.runtime.replay import columns
from dreamer.spaces import Space, Spec

# Rows of at least this many bytes are copied faster as slices than by index.
WIDE = 1024


def in_memory(spaces: Mapping[str, Space], streams: int, rows_per_stream: int) -> dict[str, np.ndarray]:
    """Returns a column [E, rows_per_stream, ..] of zeros for each space.

    `np.zeros` takes no memory at first: the system provides each page when it is first written.
    """
    ring = streams, rows_per_stream
    return {name: np.zeros((*ring, *space.shape), columns.dtype_of(space)) for name, space in spaces.items()}


def gather(column: np.ndarray, stream: np.ndarray, number: np.ndarray, length: int) -> np.ndarray:
    """Copies `length` successive rows for each of B sequences. Returns [B, length, ..].

    stream, number [B]: the stream and the first row number of each sequence. length: at most the length of a ring.
    """
    rows = column.shape[1]
    first = number % rows
    if column[0, 0].nbytes < WIDE:
        return flat(column).take((stream * rows)[:, None] + (first[:, None] + np.arange(length)) % rows, axis=0)
    out = np.empty((len(stream), length, *column.shape[2:]), column.dtype)
    for sequence, source, begin in zip(out, stream.tolist(), first.tolist(), strict=True):
        before_wrap = min(length, rows - begin)
        sequence[:before_wrap] = column[source, begin : begin + before_wrap]
        sequence[before_wrap:] = column[source, : length - before_wrap]
    return out


def scatter(column: np.ndarray, stream: np.ndarray, number: np.ndarray, value: np.ndarray, skip: np.ndarray) -> None:
    """Writes value [B, L, ..] to L successive rows for each of B sequences, except for the first `skip` [B] of them.

    stream, number [B]: the stream and the first row number of each sequence.
    If several sequences share a row, the value of the last sequence is kept.
    """
    rows = column.shape[1]
    if column[0, 0].nbytes < WIDE:
        written = np.arange(value.shape[1]) >= skip[:, None]
        row = (stream * rows)[:, None] + (number[:, None] + np.arange(value.shape[1])) % rows
        flat(column)[row[written]] = value[written]
        return
    first = (number + skip) % rows
    for sequence, target, begin, less in zip(value, stream.tolist(), first.tolist(), skip.tolist(), strict=True):
        kept = sequence[less:]
        before_wrap = min(len(kept), rows - begin)
        column[target, begin : begin + before_wrap] = kept[:before_wrap]
        column[target, : len(kept) - before_wrap] = kept[before_wrap:]


def flat(column: np.ndarray) -> np.ndarray:
    """Returns a column as a view [E * rows_per_stream, ..]."""
    return column.reshape(-1, *column.shape[2:])


def checked(
    spaces: Mapping[str, Space], given: Mapping[str, np.ndarray], leading: tuple[int, ...], where: str
) -> dict[str, np.ndarray]:
    """Returns the arrays `given` {name: [*leading, ..]} if names, shapes and dtypes are those of `spaces`.

    Raises UserError otherwise, naming the wrong column. where: the name of the calling method for this error.
    """
    for name in sorted(given.keys() - spaces.keys()):
        raise UserError(f"replay.{where}: unknown column {name!r}{nearest(name, spaces)}")
    values = {}
    for name, space in spaces.items():
        if name not in given:
            raise UserError(f"replay.{where}: column {name!r} is missing")
        value = np.asarray(given[name])
        shape, dtype = (*leading, *space.shape), columns.dtype_of(space)
        if value.shape != shape or value.dtype != dtype:
            raise UserError(
                f"replay.{where}: column {name!r} must be {dtype} {list(shape)}, got {value.dtype} {list(value.shape)}"
            )
        values[name] = value
    return values


def dtype_of(space: Space) -> np.dtype:
    """Returns the numpy dtype of a space. numpy itself does not know the name "bfloat16"."""
    return np.dtype(ml_dtypes.bfloat16) if space.dtype == "bfloat16" else np.dtype(space.dtype)


def columns_of(spec: Spec, storage: Mapping[str, Space]) -> dict[str, Space]:
    """Returns the columns of a row, {name: Space}. storage: the packed latents of a row.

    The names are "obs/<key>", "action", "reward", "is_first", "is_last", "is_terminal" and "latent/<name>".
    """
    return {
        **{f"obs/{key}": space for key, space in spec.obs.items()},
        "action": Space((spec.action_width,), "float32"),
        "reward": Space((), "float32"),
        "is_first": Space((), "bool"),
        "is_last": Space((), "bool"),
        "is_terminal": Space((), "bool"),
        **{f"latent/{name}": space for name, space in storage.items()},
    }


def row_bytes(columns: Mapping[str, Space]) -> int:
    """Returns the number of bytes of one row."""
    return sum(math.prod(space.shape) * dtype_of(space).itemsize for space in columns.values())
