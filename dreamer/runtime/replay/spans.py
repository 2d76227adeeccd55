"""Copies the replay out and restores it, for the files of a run: rows, latents, and the state of the sampler.

Rows travel as spans, runs of successive rows of one stream, and columns {name: [R, ..]} in which the spans follow
one another. Plain numpy, no jax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.replay.columns import checked
from dreamer.runtime.replay.replay import Replay

Columns = dict[str, np.ndarray]


class Span(NamedTuple):
    """The rows from `start` up to `stop` of one stream, by their running numbers."""

    stream: int
    start: int
    stop: int


def rows_since(replay: Replay, numbers: np.ndarray) -> tuple[list[Span], Columns]:
    """Copies of the rows from `numbers` [E] on that are held; {} for the columns when there is none."""
    with replay.lock:
        start = np.maximum(numbers, oldest(replay))
        ends = zip(start.tolist(), replay.counts.tolist(), strict=True)
        spans = [Span(stream, first, stop) for stream, (first, stop) in enumerate(ends) if stop > first]
        return spans, {name: _copy(replay, name, spans) for name in replay.columns} if spans else {}


def held_latents(replay: Replay, nbytes: int) -> Iterator[tuple[list[Span], Columns]]:
    """Copies of the latents of all rows held, in parts of about `nbytes` at most; nothing where none are stored."""
    names = latent_names(replay)
    row = sum(replay.columns[name][0, 0].nbytes for name in names)
    length = max(1, nbytes // row) if row else 0
    for stream, stop in enumerate(replay.counts.tolist() if names else []):
        for start in range(max(0, stop - replay.size.rows_per_stream), stop, length):
            spans = [Span(stream, start, min(start + length, stop))]
            with replay.lock:
                columns = {name: _copy(replay, name, spans) for name in names}
            yield spans, columns


def put_rows(replay: Replay, spans: Sequence[Span], columns: Columns, fresh: bool) -> None:
    """Puts rows back that `rows_since` returned; each span continues where its ring ends.

    fresh: adds the rows to queue and sampler, as `Replay.add` does; otherwise `load` restores both afterwards.
    Raises UserError naming a column that is wrong.
    """
    values = checked(replay.spaces, columns, (_length(spans),), "put_rows")
    with replay.lock:
        _put(replay, spans, values)
        for span in spans:
            replay.counts[span.stream] = span.stop
            if fresh:
                _tell_new(replay, span)


def put_latents(replay: Replay, spans: Sequence[Span], columns: Columns) -> None:
    """Puts latents back that `held_latents` returned. Raises UserError naming a column that is wrong or has no row."""
    if any(span.stop > replay.counts[span.stream] for span in spans):
        raise UserError("replay.put_latents: these are latents of rows that are not there")
    spaces = {name: replay.spaces[name] for name in latent_names(replay)}
    values = checked(spaces, columns, (_length(spans),), "put_latents")
    with replay.lock:
        _put(replay, spans, values)


def state(replay: Replay) -> tuple[dict[str, Any], Columns]:
    """All that decides the next draws besides the rows: JSON values, and copies of arrays."""
    with replay.lock:
        values = {
            "counts": replay.counts.tolist(), "rows_per_stream": replay.size.rows_per_stream,
            "queue": list(replay.queue), "rng": replay.rng.bit_generator.state,
            "report_rng": replay.report_rng.bit_generator.state,
        }  # fmt: skip
        return values, {name: array.copy() for name, array in replay.sampler.state().items()}


def load(replay: Replay, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Restores a `state`; call it after restoring the rows.

    If the ring length has changed, the sampler treats every row as new.

    values: as checked by `manifest.head`. arrays: of the same shapes as `Sampler.state` returns them.
    Raises UserError when it is the state of another replay.
    """
    if values["counts"] != replay.counts.tolist():
        raise UserError("the state of the replay is not of these rows")
    if any(start + replay.sequence > replay.counts[env] for env, start in values["queue"]):
        raise UserError("the state of the replay queues rows that are not there")
    same = values["rows_per_stream"] == replay.size.rows_per_stream
    with replay.lock:
        if same:
            _check_sampler(replay, arrays)
        replay.queue.clear()
        replay.queue.extend((int(env), int(start)) for env, start in values["queue"])
        replay.rng.bit_generator.state = values["rng"]
        replay.report_rng.bit_generator.state = values["report_rng"]
        if same:
            replay.sampler.load(arrays)
        elif arrays:
            for env, first in enumerate(oldest(replay)):
                for number in range(int(first), int(replay.counts[env])):
                    replay.sampler.added(np.array([env]), np.array([number]))


def oldest(replay: Replay) -> np.ndarray:
    """The first row [E] that each ring holds."""
    return np.maximum(0, replay.counts - replay.size.rows_per_stream)


def latent_names(replay: Replay) -> list[str]:
    """The columns that hold latents."""
    return [name for name in replay.columns if name.startswith("latent/")]


def _check_sampler(replay: Replay, arrays: Mapping[str, np.ndarray]) -> None:
    """UserError unless a sampler can draw by these arrays."""
    expected = replay.sampler.state()
    fits = arrays.keys() == expected.keys() and all(
        arrays[name].shape == array.shape and arrays[name].dtype == array.dtype and not (np.isnan(arrays[name])).any()
        for name, array in expected.items()
    )
    if not fits or any((array < 0).any() for array in arrays.values()):
        raise UserError("the state of the sampler is of another replay")


def _tell_new(replay: Replay, span: Span) -> None:
    """Adds the rows of a span to queue and sampler, as `Replay.add` does."""
    for number in range(span.start, span.stop):
        replay.sampler.added(np.array([span.stream]), np.array([number]))
        if (number + 1) % replay.sequence == 0:
            replay.queue.append((span.stream, number + 1 - replay.sequence))


def _slots(replay: Replay, span: Span) -> np.ndarray:
    return np.arange(span.start, span.stop) % replay.size.rows_per_stream


def _copy(replay: Replay, name: str, spans: Sequence[Span]) -> np.ndarray:
    column = replay.columns[name]
    return np.concatenate([column[span.stream].take(_slots(replay, span), axis=0) for span in spans])


def _put(replay: Replay, spans: Sequence[Span], columns: Mapping[str, np.ndarray]) -> None:
    offset = 0
    for span in spans:
        slots = _slots(replay, span)
        replay.reserve(span.stream, int(slots.max()))
        for name, values in columns.items():
            replay.columns[name][span.stream, slots] = values[offset : offset + len(slots)]
        offset += len(slots)


def _length(spans: Sequence[Span]) -> int:
    return sum(span.stop - span.start for span in spans)
