"""Columns of the rings in memory-mapped files, so that the replay can be larger than the memory. Imports no jax."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dreamer.runtime.files.atomic import disk_error
from dreamer.runtime.replay import columns
from dreamer.spaces import Space

FOLDER = "replay-tier"  # the process id is appended
BLOCK = 8 * 2**20  # disk space is allocated in blocks of this many bytes per ring


class DiskTier:
    """Owns a folder `replay-tier-...` of a run, with a sparse file for each column. `close` removes the folder.

    A write into a mapped file kills the process if the disk is full. So `reserve` allocates the space before rows are
    written and raises an error if the disk is full. (Copy-on-write file systems do not guarantee this.)
    columns {name: [E, rows_per_stream, ..]}: zeros at first; the system caches the columns in free memory.
    """

    def __init__(self, run_dir: str | Path, spaces: Mapping[str, Space], streams: int, rows_per_stream: int):
        """Raises UserError if the files cannot be created."""
        self.folder = Path(run_dir).expanduser() / f"{FOLDER}-{os.getpid()}-{time.time_ns()}"
        self.columns: dict[str, np.ndarray] = {}
        self._rows_per_stream = rows_per_stream
        row_bytes = {name: math.prod(space.shape) * columns.dtype_of(space).itemsize for name, space in spaces.items()}
        self._row_bytes = {self._path(name): size for name, size in row_bytes.items()}
        self._block = max(1, BLOCK // max(row_bytes.values(), default=1))
        self._reserved = np.zeros(streams, np.int64)
        try:
            self.folder.mkdir(parents=True)
            for name, space in spaces.items():
                shape = (streams, rows_per_stream, *space.shape)
                with open(self._path(name), "xb") as file:
                    file.truncate(streams * rows_per_stream * row_bytes[name])
                mapped = np.memmap(self._path(name), columns.dtype_of(space), "r+", shape=shape)
                self.columns[name] = mapped.view(np.ndarray)  # so that copies of its rows are plain arrays
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise disk_error(error, self.folder) from error

    def reserve(self, stream: np.ndarray, slot: np.ndarray) -> None:
        """Allocates disk space for slots [N] of different streams [N], and for all earlier slots of these streams.

        Raises UserError if the disk is full.
        """
        short = slot >= self._reserved[stream]
        for one, last in zip(stream[short].tolist(), slot[short].tolist(), strict=True):
            begin = int(self._reserved[one])
            end = min(max(begin + self._block, last + 1), self._rows_per_stream)
            for path, size in self._row_bytes.items():
                try:
                    _take_space(path, (one * self._rows_per_stream + begin) * size, (end - begin) * size)
                except OSError as error:
                    raise disk_error(error, path) from error
            self._reserved[one] = end

    def close(self) -> None:
        """Removes the files. The columns must not be used afterwards."""
        self.columns.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.bin"


def remove_left_over(run_dir: Path) -> None:
    """Removes the folders that earlier processes of this run have left behind. Keeps those of this process.

    The caller must hold the lock of the run.
    """
    for folder in run_dir.glob(f"{FOLDER}*"):
        if not folder.name.startswith(f"{FOLDER}-{os.getpid()}-"):
            shutil.rmtree(folder, ignore_errors=True)


def free_space(path: str | Path) -> int:
    """Returns the number of free bytes on the disk of a path. The path need not exist yet."""
    path = Path(path).expanduser().absolute()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.is_dir())).free


def _take_space(path: Path, offset: int, length: int) -> None:
    """Allocates disk space for a range of a sparse file that was never written."""
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), offset, length)
        else:  # macOS
            file.seek(offset)
            file.write(bytes(length))
