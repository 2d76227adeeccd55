"""Exports and restores the replay for the files of a run: rows, latents, and the state of the sampler.

Rows are exchanged as spans and columns. A span is a range of successive rows of one stream; the columns {name: [R, ..]}
contain the rows of all spans in order. Plain numpy, no jax.
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
    """The rows `start` to `stop` - 1 of one stream, by row number."""

    stream: int
    start: int
    stop: int


def rows_since(replay: Replay, numbers: np.ndarray, most: int | None = None) -> tuple[list[Span], Columns]:
    """Returns copies of the rows that the replay holds from row number `numbers` [E] of each stream on.

    most: the most rows of each stream; None: all. If there are no such rows, returns [] and {}.
    """
    with replay.lock:
        start = np.maximum(numbers, oldest(replay))
        stop = replay.counts if most is None else np.minimum(replay.counts, start + most)
        ends = zip(start.tolist(), stop.tolist(), strict=True)
        spans = [Span(stream, first, stop) for stream, (first, stop) in enumerate(ends) if stop > first]
        return spans, {name: _copy(replay, name, spans) for name in replay.columns} if spans else {}


def held_latents(replay: Replay, nbytes: int) -> Iterator[tuple[list[Span], Columns]]:
    """Yields copies of the latents of all rows in the replay, in parts of about `nbytes` bytes.

    Yields nothing if the replay does not store latents.
    """
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
    """Restores rows from `rows_since`. In a ring with rows, a span must continue them or fill the whole ring.

    fresh: whether to add the rows to the queue and the sampler, as `Replay.add` does; if not, call `load` afterwards.
    Raises UserError naming a wrong column.
    """
    values = checked(replay.spaces, columns, (_length(spans),), "put_rows")
    with replay.lock:
        _put(replay, spans, values)
        for span in spans:
            replay.counts[span.stream] = span.stop
            if fresh:
                _mark_new(replay, span)


def put_latents(replay: Replay, spans: Sequence[Span], columns: Columns) -> None:
    """Restores latents from `held_latents`. Raises UserError for a wrong column, or if the replay lacks the rows."""
    if any(span.stop > replay.counts[span.stream] for span in spans):
        raise UserError("replay.put_latents: the latents belong to rows that are not held")
    spaces = {name: replay.spaces[name] for name in latent_names(replay)}
    values = checked(spaces, columns, (_length(spans),), "put_latents")
    with replay.lock:
        _put(replay, spans, values)


def taken(spans: Sequence[Span], columns: Columns, streams: Mapping[int, int]) -> tuple[list[Span], Columns]:
    """Returns the rows of some streams, under new numbers. streams: {number in `spans`: number in the result}."""
    kept = np.repeat([span.stream in streams for span in spans], [span.stop - span.start for span in spans])
    ours = [span._replace(stream=streams[span.stream]) for span in spans if span.stream in streams]
    return ours, {name: values[kept] for name, values in columns.items()}


def append(replay: Replay, columns: Columns) -> None:
    """Appends rows {name: [S, n, ..]} to all streams. The caller keeps the queue of new sequences, see `put_queue`.

    The streams have equally many rows, and n is at most the length of a ring.
    """
    added = columns["reward"].shape[1]
    with replay.lock:
        first = int(replay.counts[0])
        slots = np.arange(first, first + added) % replay.size.rows_per_stream
        for name, values in columns.items():
            replay.columns[name][:, slots] = values
        replay.counts += added


def put_held_latents(replay: Replay, columns: Columns) -> None:
    """Replaces the latents of all rings by `columns` {name: [S, rows_per_stream, ..]}."""
    with replay.lock:
        for name, values in columns.items():
            replay.columns[name][...] = values


def put_queue(replay: Replay, queue: Sequence[tuple[int, int]]) -> None:
    """Replaces the queue of new sequences, each a (stream, number of its first row)."""
    with replay.lock:
        replay.queue.clear()
        replay.queue.extend(queue)


def state(replay: Replay) -> tuple[dict[str, Any], Columns]:
    """Returns the queue, the random generators and the sampler's memory, as JSON values and copies of arrays.

    Together with the rows, they determine the sequences that are drawn next.
    """
    with replay.lock:
        values = {
            "counts": replay.counts.tolist(), "rows_per_stream": replay.size.rows_per_stream,
            "queue": list(replay.queue), "rng": replay.rng.bit_generator.state,
            "report_rng": replay.report_rng.bit_generator.state,
        }  # fmt: skip
        return values, {name: array.copy() for name, array in replay.sampler.state().items()}


def load(replay: Replay, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Restores what `state` returned. Call it after restoring the rows.

    If the ring length has changed, the sampler treats every row as new.

    values: the JSON values, checked by `manifest.head`. arrays: the arrays, with the shapes of `Sampler.state`.
    Raises UserError if the state belongs to another replay.
    """
    if values["counts"] != replay.counts.tolist():
        raise UserError("the state of the replay belongs to other rows")
    if any(start + replay.sequence > replay.counts[env] for env, start in values["queue"]):
        raise UserError("the state of the replay queues rows that are not held")
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
    """Returns the number [E] of the oldest row that each ring holds."""
    return np.maximum(0, replay.counts - replay.size.rows_per_stream)


def latent_names(replay: Replay) -> list[str]:
    """Returns the names of the columns with latents."""
    return [name for name in replay.columns if name.startswith("latent/")]


def _check_sampler(replay: Replay, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises UserError if the sampler cannot be restored from these arrays."""
    expected = replay.sampler.state()
    fits = arrays.keys() == expected.keys() and all(
        arrays[name].shape == array.shape and arrays[name].dtype == array.dtype and not (np.isnan(arrays[name])).any()
        for name, array in expected.items()
    )
    if not fits or any((array < 0).any() for array in arrays.values()):
        raise UserError("the state of the sampler belongs to another replay")


def _mark_new(replay: Replay, span: Span) -> None:
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
