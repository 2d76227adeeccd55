"""The replay: a ring buffer of rows for each stream. Plain numpy, no jax.

A stream is the rows of one environment, or of one agent in it. The rows of a stream are numbered from its start. Row
`number` is in slot `number % rows_per_stream`, and the ring holds the last `rows_per_stream` rows. An item is a row at
which a sequence can start: the ring holds `context + batch_length` rows from there on. A sequence may cross episode
boundaries, but its rows are always successive rows of one stream.
The last `old` rings hold rows of datasets: nothing is added to them, and each batch draws a share from them.
The observations can be in files (`disk_tier`). `samplers` chooses the items to draw.
Source: spec section 10.
"""

from __future__ import annotations

import collections
import math
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.replay import capacity, disk_tier, memory
from dreamer.runtime.replay.capacity import Capacity, Free
from dreamer.runtime.replay.columns import checked, columns_of, flat, gather, in_memory, row_bytes, scatter
from dreamer.runtime.replay.config import Config
from dreamer.runtime.replay.disk_tier import DiskTier
from dreamer.runtime.replay.items import Items, existing, uniform
from dreamer.runtime.replay.samplers import Rings, bytes_per_row, make_sampler
from dreamer.spaces import Space, Spec
from dreamer.steps import Batch, Rows, Step


def measure_free(run_dir: str | Path, runs: int = 1) -> Free:
    """Returns the host memory and the disk of a folder that are free at this moment, for `runs` replays together."""
    return Free(memory.free_memory(), disk_tier.free_space(run_dir), runs)


def size_replay(
    spec: Spec, storage: Mapping[str, Space], config: Config, *, streams: int, env_steps: int,
    run_dir: str | Path = ".", free: Free | None = None,
) -> Capacity:  # fmt: skip
    """Returns the size that a `Replay` with these arguments will have, without old rings. Allocates nothing.

    storage: {name: Space} of the packed latents of a row. streams: the number of rings.
    env_steps: the number of rows that the run collects in all environments together.
    run_dir: the folder whose disk `tier: disk` uses. free: what this replay and others share; None: all that is free.
    Raises UserError if no sequence fits in a ring, or if the requested memory or disk space is not free.
    """
    held, disk = _tiers(spec, storage, config)
    free = free or measure_free(run_dir)
    return capacity.fit(
        row_bytes(held) + bytes_per_row(config),
        streams=streams,
        sequence=config.context + config.batch_length,
        env_steps=env_steps,
        capacity_steps=config.capacity_steps,
        capacity_gb=config.capacity_gb,
        free_bytes=free.memory,
        disk_bytes_per_row=row_bytes(disk),
        disk_gb=config.disk_gb,
        free_disk=free.disk if disk else None,
        runs=free.runs,
    )


class Replay:
    """Owns the rings, in memory and in files. Threads can share it: a lock guards every change and copy of rows.

    Complete state, with E rings, the old ones included: `columns` {name: [E, rows_per_stream, ..]} of `spaces`;
    `counts` [E], the number of rows ever added to each ring; `queue` of the (stream, first row) of new sequences that
    are not trained on yet; `sampler.state()`, `rng` and `report_rng`.

    storage: {name: Space} of the packed latents of a row; stored only if `config.context` is 1.
    streams: the number of rings that the run fills. env_steps: the number of rows that the run collects.
    old: the number of further rings, for rows of datasets.
    reads: the packed latents that batches hold for all rows, and not only for context rows.
    size: the result of an earlier `size_replay`; None: the constructor calls `size_replay`.
    run_dir: the folder where `tier: disk` keeps its files until `close`.
    Raises UserError as `size_replay` does, and if the files cannot be created.
    """

    def __init__(
        self,
        spec: Spec,
        storage: Mapping[str, Space],
        config: Config,
        *,
        streams: int,
        seed: int,
        env_steps: int,
        size: Capacity | None = None,
        run_dir: str | Path = ".",
        old: int = 0,
        reads: frozenset[str] = frozenset(),
    ):
        self.config = config
        self._reads = {f"latent/{name}" for name in reads}
        self.size = size or size_replay(spec, storage, config, streams=streams, env_steps=env_steps, run_dir=run_dir)
        self.sequence = config.context + config.batch_length
        memory, disk = _tiers(spec, storage, config)
        self.spaces = {**disk, **memory}
        self.streams, rings = streams, streams + old
        self._disk = DiskTier(run_dir, disk, rings, self.size.rows_per_stream) if disk else None
        self.columns = {
            **(self._disk.columns if self._disk else {}),
            **in_memory(memory, rings, self.size.rows_per_stream),
        }
        self.counts = np.zeros(rings, np.int64)
        self.queue: collections.deque[tuple[int, int]] = collections.deque(
            maxlen=streams * (self.size.rows_per_stream // self.sequence)
        )
        self.sampler = make_sampler(config, Rings(streams, self.size.rows_per_stream, self.sequence))
        self.rng = np.random.default_rng(seed)
        # A separate generator, so that reports do not change which sequences the run trains on.
        self.report_rng = np.random.default_rng((seed, 1))
        self.lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the number of items, the rows at which a sequence can start, without those of old rings."""
        return int(self._items().per_stream.sum())

    @property
    def steps(self) -> int:
        """Returns the number of rows ever added by all environments: the environment step counter."""
        return int(self.counts[: self.streams].sum())

    @property
    def rows(self) -> int:
        """Returns the number of rows that the rings hold."""
        return int(np.minimum(self.counts, self.size.rows_per_stream).sum())

    @property
    def nbytes(self) -> int:
        """Returns the number of bytes that the rings take when they are full, in memory and on the disk."""
        return sum(column.nbytes for column in self.columns.values())

    def ready(self, batch_size: int) -> bool:
        """Whether training may start: there are enough items (possible sequence starts), or the rings are full.

        Enough means at least batch_size * batch_length, the number of rows that one batch trains on, and at least the
        items of `prefill` rows.
        """
        return len(self) >= self.wanted(batch_size)

    def start(self, batch_size: int) -> int:
        """Returns the environment step at which training can start if all environments are equally fast."""
        streams = self.streams
        return streams * (-(-self.wanted(batch_size) // streams) + self.sequence - 1)

    def add(self, step: Step, latent: Mapping[str, np.ndarray], streams: np.ndarray | None = None) -> None:
        """Appends one row to the ring of each listed stream.

        step [E', ..]: the new rows | latent {name: [E', ..]}: the packed latents after the observations of these rows
        streams [E']: the stream of each row; None: one row for every stream that is not old, in order
        Raises UserError if a column has a wrong shape or dtype, or if the disk is full; nothing is written then.
        """
        streams = np.arange(self.streams) if streams is None else self._stream_indices(streams)
        given = {
            **{f"obs/{key}": value for key, value in step.obs.items()},
            **{name: getattr(step, name) for name in ("action", "reward", "is_first", "is_last", "is_terminal")},
            **self._named_latents(latent),
        }
        values = checked(self.spaces, given, (len(streams),), "add")
        with self.lock:
            slots = self.counts[streams] % self.size.rows_per_stream
            if self._disk:
                self._disk.reserve(streams, slots)
            for name, value in values.items():
                self.columns[name][streams, slots] = value
            self.sampler.added(streams, self.counts[streams])
            self.counts[streams] += 1
            for stream in streams[self.counts[streams] % self.sequence == 0]:
                self.queue.append((int(stream), int(self.counts[stream]) - self.sequence))

    def sample(self, batch_size: int, *, online: bool = True) -> tuple[Batch, Rows]:
        """Draws sequences: first new ones from the queue, the rest by the shares of uniform, priority and recency.

        With old rings, `config.data_share` of the sequences are drawn from them, uniformly, and stand last.
        online: False draws uniformly and changes neither the queue nor the priorities, for evaluation and reports.
        Returns a batch of sequences of context + T rows, and the stream [B] and row number [B, T] of the T trained
        rows. The batch is a copy. In it (not in the ring), is_first is set on row 0, and is_last is set on every row
        after which an episode starts. Raises ValueError if there is no item.
        """
        with self.lock:
            return self._sample(batch_size, online, [*self.columns])

    def sample_beside(
        self, batch_size: int, seen: np.ndarray
    ) -> tuple[Batch, Rows, tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """Like `sample`, for a caller that keeps its own copy of the observations, complete up to `seen` rows.

        seen [E]: how many rows of each stream the caller has copied.
        Returns a batch without observations, its rows, and the observations that the caller does not have yet, in the
        form of `rows_since`. All are read under one lock, so no row of the batch can be overwritten in between.
        """
        with self.lock:
            names = [name for name in self.columns if not name.startswith("obs/")]
            return *self._sample(batch_size, True, names), self._rows_since(seen, None)

    def rows_since(self, seen: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Returns the observations that were added after the first `seen` [E] rows of each stream.

        The result is the stream [n], the row number [n] and copies of the observations {k: [n, ..]}, stream by stream,
        oldest first. It has at most `most` rows, and only rows that the rings still hold.
        """
        with self.lock:
            return self._rows_since(seen, most)

    def _rows_since(self, seen: np.ndarray, most: int | None) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        length = self.size.rows_per_stream
        first = np.maximum(seen, self.counts - length)
        behind = self.counts - first
        stream = np.repeat(np.arange(len(first)), behind)[:most]
        number = (np.arange(len(stream)) - np.repeat(np.cumsum(behind) - behind, behind)[:most]) + first[stream]
        row = stream * length + number % length
        names = [name for name in self.columns if name.startswith("obs/")]
        return stream, number, {name.removeprefix("obs/"): flat(self.columns[name])[row] for name in names}

    def _sample(self, batch_size: int, online: bool, names: list[str]) -> tuple[Batch, Rows]:
        """Returns a batch of the columns `names`, and its trained rows. The caller must hold the lock."""
        context = self.config.context
        stream, start = self._choose(batch_size, online)
        number = start[:, None] + np.arange(self.sequence)
        short = {*self._latent_names()} - self._reads
        lengths = {name: context if name in short else self.sequence for name in names}
        data = {name: gather(self.columns[name], stream, start, length) for name, length in lengths.items()}
        follows = number + 1 < self.counts[stream][:, None]
        data["is_last"] |= follows & gather(self.columns["is_first"], stream, start + 1, self.sequence)
        data["is_first"][:, 0] = True
        batch = Batch(
            obs={n.removeprefix("obs/"): value for n, value in data.items() if n.startswith("obs/")},
            action=data["action"],
            reward=data["reward"],
            is_first=data["is_first"],
            is_last=data["is_last"],
            is_terminal=data["is_terminal"],
            latent={n.removeprefix("latent/"): value for n, value in data.items() if n.startswith("latent/")},
        )
        return batch, Rows(stream, number[:, context:])

    def refresh(self, rows: Rows, latent: Mapping[str, np.ndarray]) -> None:
        """Writes recomputed latents {name: [B, T, ..]} back to the rows of a sample.

        Skips rows that were overwritten after the sample. If several sequences share a row, the last value is kept.
        Raises UserError if a latent has a wrong shape or dtype.
        """
        spaces = {name: self.spaces[name] for name in self._latent_names()}
        values = checked(spaces, self._named_latents(latent), rows.number.shape, "refresh")
        with self.lock:
            overwritten = (self.counts - self.size.rows_per_stream)[rows.stream] - rows.number[:, 0]
            skip = np.clip(overwritten, 0, rows.number.shape[1])
            for name, value in values.items():
                scatter(self.columns[name], rows.stream, rows.number[:, 0], value, skip)

    def prioritise(self, rows: Rows, priority: np.ndarray) -> None:
        """Writes the priorities [B, T] float32 of the rows of a sample. Does nothing if `config.priority` is 0.

        Old rows have no priorities.
        Skips rows that were overwritten after the sample. If several sequences share a row, the last value is kept.
        Raises UserError if the shape or dtype is wrong.
        """
        values = checked({"priority": Space((), "float32")}, {"priority": priority}, rows.number.shape, "prioritise")
        new = rows.stream < self.streams
        with self.lock:
            self.sampler.prioritise(self._items(), rows.stream[new], rows.number[new], values["priority"][new])

    def reserve(self, stream: int, slot: int) -> None:
        """Allocates the disk space of a ring up to `slot`, with `tier: disk`; else does nothing.

        Raises UserError if the disk is full.
        """
        if self._disk:
            self._disk.reserve(np.array([stream]), np.array([slot]))

    def close(self) -> None:
        """Removes the files of `tier: disk`. The replay must not be used afterwards."""
        if self._disk:
            self._disk.close()

    def wanted(self, batch_size: int) -> int:
        """Returns the number of items at which training starts, see `ready`."""
        most = self.streams * (self.size.rows_per_stream - self.sequence + 1)
        prefill = self.config.prefill - self.streams * (self.sequence - 1)  # rows to items
        return min(max(batch_size * self.config.batch_length, prefill), most)

    def _items(self) -> Items:
        return existing(self.counts[: self.streams], self.size.rows_per_stream, self.sequence)

    def _old(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws items of the old rings. Returns their stream and first row number, both [n], n at most `size`."""
        items = existing(self.counts[self.streams :], self.size.rows_per_stream, self.sequence)
        wanted = self.config.data_share * size
        count = math.floor(wanted) + int(self.rng.random() < wanted % 1)
        stream, number = uniform(self.rng, items, count)
        return stream + self.streams, number

    def _choose(self, batch_size: int, online: bool) -> tuple[np.ndarray, np.ndarray]:
        """Chooses the sequences of a batch. Returns their stream [B] and first row number [B]."""
        items = self._items()
        if not items.per_stream.any():
            raise ValueError(f"the replay holds {self.rows} rows, too few for one sequence of {self.sequence}")
        if not online:
            return uniform(self.report_rng, items, batch_size)
        old, olds = self._old(batch_size) if len(self.counts) > self.streams else (np.zeros(0, np.int64),) * 2
        batch_size -= len(old)
        chosen: list[tuple[int, int]] = []
        while self.config.online and self.queue and len(chosen) < batch_size:
            stream, start = self.queue.popleft()
            if start >= self.counts[stream] - self.size.rows_per_stream:
                chosen.append((stream, start))
        fresh = np.array(chosen, np.int64).reshape(-1, 2)
        streams, numbers = self.sampler.draw(self.rng, items, batch_size - len(fresh))
        return np.concatenate([fresh[:, 0], streams, old]), np.concatenate([fresh[:, 1], numbers, olds])

    def _latent_names(self) -> list[str]:
        return [name for name in self.columns if name.startswith("latent/")]

    def _named_latents(self, latent: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the latents by column name; {} if latents are not stored."""
        return {f"latent/{name}": value for name, value in latent.items()} if self.config.context else {}

    def _stream_indices(self, streams: np.ndarray) -> np.ndarray:
        streams = np.asarray(streams)
        known = np.issubdtype(streams.dtype, np.integer) and ((streams >= 0) & (streams < self.streams)).all()
        if not known or streams.ndim != 1 or len(np.unique(streams)) != len(streams):
            limit = self.streams
            raise UserError(f"replay.add: streams must be different numbers below {limit}, got {streams.tolist()}")
        return streams


def _tiers(spec: Spec, storage: Mapping[str, Space], config: Config) -> tuple[dict[str, Space], dict[str, Space]]:
    """Returns the columns in memory and those on the disk, each {name: Space}. Without context there are no latents."""
    columns = columns_of(spec, storage if config.context else {})
    on_disk = {name for name in columns if config.tier == "disk" and name.startswith("obs/")}
    return {n: s for n, s in columns.items() if n not in on_disk}, {n: columns[n] for n in columns if n in on_disk}
