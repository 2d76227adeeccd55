"""Computes how many rows the replay can hold, before any memory is allocated. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from dreamer.errors import UserError

GB = 10**9
LEAST_BETWEEN = 256 * 10**6  # minimum bytes of rows between two checkpoints that are taken early


class Free(NamedTuple):
    """The free bytes of host memory and of disk; None: unknown. `runs` replays share them in equal parts."""

    memory: int | None
    disk: int | None
    runs: int = 1


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The size of a replay.

    streams: the number of rings | rows_per_stream: the rows of each ring | row_bytes: bytes of host memory for one row
    free_bytes: the free host memory; None: unknown | bound: the setting that limits the size
    disk_row_bytes, free_disk: like row_bytes and free_bytes, for the columns on the disk
    runs: the number of runs that have as much free memory and disk each
    """

    streams: int
    rows_per_stream: int
    row_bytes: int
    free_bytes: int | None
    bound: str
    disk_row_bytes: int = 0
    free_disk: int | None = None
    runs: int = 1

    @property
    def steps(self) -> int:
        """Returns the number of rows that all rings hold together."""
        return self.streams * self.rows_per_stream

    @property
    def nbytes(self) -> int:
        """Returns the bytes of memory that the full replay takes."""
        return self.steps * self.row_bytes

    @property
    def disk_bytes(self) -> int:
        """Returns the bytes of disk that the full replay takes."""
        return self.steps * self.disk_row_bytes

    def describe(self) -> str:
        """Returns a line of text about the size, to be printed before the memory is allocated."""
        size = f"{self.steps:,} steps x {in_words(self.row_bytes)} = {in_words(self.nbytes)}"
        if self.disk_row_bytes:
            memory, disk = _free(self.free_bytes, self.runs), _free(self.free_disk, self.runs)
            size += f" of memory{memory} and x {in_words(self.disk_row_bytes)} = {in_words(self.disk_bytes)}"
            return f"replay: {size} of disk{disk}, bounded by {self.bound}"
        return f"replay: {size}{_free(self.free_bytes, self.runs)}, bounded by {self.bound}"


def rows_between_checkpoints(size: Capacity) -> int:
    """Returns the number of new rows after which a checkpoint is saved early, before `checkpoint.every` seconds.

    Rows that the previous checkpoint needs stay on the disk until the next one. Saving early limits their disk space.
    """
    return max(size.steps // 4, LEAST_BETWEEN // (size.row_bytes + size.disk_row_bytes))


def rows_between_flushes(size: Capacity) -> int:
    """Returns the number of new rows after which a file of rows is written early, before `replay.flush` seconds.

    A file can be removed only when none of its rows is needed. So smaller files are removed earlier.
    """
    return max(size.streams, rows_between_checkpoints(size) // 16)


def rows_bound(size: Capacity, latent_bytes: int, *, keep: int, env_steps: int, keep_every: int = 0) -> int:
    """Returns the maximum disk space in bytes that a run needs for its files of rows and latents.

    latent_bytes: the bytes of the latents of one row, which are written again at each checkpoint.
    keep: the number of newest checkpoints that are kept. env_steps: the env_steps of the whole run.
    keep_every: the steps between older checkpoints that are kept too, with their rows and latents; 0: none.
    While a checkpoint is being written, the rows that `keep` + 1 checkpoints need are on the disk. The first and the
    last file also contain rows that no checkpoint needs.
    """
    fresh = (keep + 1) * rows_between_checkpoints(size) + 2 * rows_between_flushes(size)
    if keep_every:
        keep += env_steps // keep_every
        fresh = env_steps
    fresh = min(fresh, max(0, env_steps - size.steps))
    return (size.steps + fresh) * (size.row_bytes + size.disk_row_bytes) + (keep + 2) * size.steps * latent_bytes


def describe_rows(nbytes: int, free_disk: int) -> str:
    """Returns a line of text about the disk space of a run's files of rows. nbytes: the maximum that they take."""
    return f"rows on the disk: at most {in_words(nbytes)}{_free(free_disk)}"


def fit(
    bytes_per_row: int,
    *,
    streams: int,
    sequence: int,
    env_steps: int,
    capacity_steps: int,
    capacity_gb: float,
    free_bytes: int | None,
    disk_bytes_per_row: int = 0,
    disk_gb: float = 0,
    free_disk: int | None = None,
    runs: int = 1,
) -> Capacity:
    """Returns the size of the largest replay that satisfies every limit.

    bytes_per_row: the bytes of memory for one row. streams: the number of rings.
    sequence: the number of rows of one sampled sequence. capacity_steps: the limit on rows, all rings together.
    env_steps: the number of rows that the run collects, and so the most that the replay needs.
    capacity_gb: the limit on memory; 0: half of the replay's share of it. free_bytes: the free memory; None: unknown.
    disk_bytes_per_row, disk_gb, free_disk: like bytes_per_row, capacity_gb and free_bytes, for the columns on the disk;
    0 bytes per row: there are no such columns. runs: the number of replays that share the free memory and disk.
    Raises UserError if no sequence fits in a ring, or if the requested memory or disk space is not free.
    """
    memory, disk = (None if whole is None else whole // runs for whole in (free_bytes, free_disk))
    limits = {"env_steps": -(-env_steps // streams), "replay.capacity_steps": capacity_steps // streams}
    stores = [("memory", "replay.capacity_gb", bytes_per_row, capacity_gb, memory)]
    if disk_bytes_per_row:
        stores.append(("disk", "replay.disk_gb", disk_bytes_per_row, disk_gb, disk))
    for store, setting, row, asked, share in stores:
        if asked:
            limits[setting] = int(asked * GB / (row * streams))
        elif share is not None:
            limits[f"half of the free {store} ({setting})"] = int(share / 2 / (row * streams))
        else:
            raise UserError(f"{setting} is 0 (half of the free {store}), but this system does not report free {store}")
    bound = min(limits, key=lambda name: limits[name])
    capacity = Capacity(streams, limits[bound], bytes_per_row, memory, bound, disk_bytes_per_row, disk, runs)
    if capacity.rows_per_stream < sequence:
        raise UserError(
            f"replay: {bound} leaves {capacity.rows_per_stream} rows for each of {streams} environments, "
            f"but one sequence (replay.batch_length + replay.context) needs {sequence}"
        )
    for _, setting, row, _, share in stores:
        if share is not None and capacity.steps * row > share:
            raise UserError(
                f"{setting}: {capacity.steps:,} steps x {in_words(row)} = {in_words(capacity.steps * row)}, "
                f"but only {in_words(share)} are free{_each(runs)}"
            )
    return capacity


def _free(count: int | None, runs: int = 1) -> str:
    return "" if count is None else f" (of {in_words(count)} free{_each(runs)})"


def _each(runs: int) -> str:
    return f" for each of {runs} runs" if runs > 1 else ""


def in_words(count: float) -> str:
    """Returns a number of bytes as text in decimal units, such as "1.5 GB" for 1.5 * 10^9 bytes."""
    for unit, scale in (("GB", GB), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
