"""Converts a dataset to another format, an episode at a time: complete or not at all. Imports no jax."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dreamer.data.d4rl import write_hdf5
from dreamer.data.episodes import Data, Episode
from dreamer.data.minari import dataset_path, write_minari
from dreamer.data.npz import write_npz
from dreamer.data.opening import HDF5
from dreamer.errors import UserError, nearest
from dreamer.runtime.files.atomic import UNFINISHED, disk_error, sync, write_durably

TARGETS = ("minari", "npz", "hdf5")


class Converted(NamedTuple):
    """What was written: where, the number of episodes, and how many were left out for lack of a beginning or an end."""

    path: Path
    episodes: int
    left_out: int


def convert(data: Data, target: str) -> Converted:
    """Writes a dataset to `target`: minari:NAME, npz:FOLDER or hdf5:FILE.

    The target gets its name only when it is complete. It is never overwritten. Episodes without a beginning or an end
    go to npz only; the other formats cannot mark that an episode continues. The dataset is read only once, so that one
    episode at a time is in memory.
    Raises UserError at the first fault of the dataset, or if the target exists or cannot be written.
    """
    kind, colon, name = target.partition(":")
    if not colon or kind not in TARGETS or not name:
        hint = nearest(kind, TARGETS) if colon else ""
        raise UserError(f"cannot convert to {target!r}: it must be minari:NAME, npz:FOLDER or hdf5:FILE{hint}")
    path = dataset_path(name) if kind == "minari" else Path(name).expanduser()
    if kind == "hdf5" and path.suffix not in HDF5:
        raise UserError(f"hdf5:{name}: the file must end in {HDF5[0]} or {HDF5[1]}, so that it is read as HDF5")
    if path.exists() or path.is_symlink():
        raise UserError(f"{target}: {path} already exists, and nothing is overwritten; choose another name")
    tally = _Tally(kind == "npz")
    spec, episodes = data.spec, tally.kept(data)
    if kind == "hdf5":
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, lambda half: tally.written(lambda: write_hdf5(half, spec, episodes), path))
    elif kind == "npz":
        _whole_folder(path, lambda half: tally.written(lambda: write_npz(half, spec, episodes), path))
    else:
        _whole_folder(path, lambda half: tally.written(lambda: write_minari(half, name, spec, episodes), path))
    return Converted(path, tally.episodes, tally.left_out)


class _Tally:
    """Counts the episodes that are written and left out. partial: whether episodes without an end are written."""

    def __init__(self, partial: bool):
        self._partial = partial
        self.episodes = self.left_out = 0

    def kept(self, data: Data) -> Iterator[Episode]:
        """Yields the episodes to write."""
        for episode in data.read():
            if self._partial or episode.whole:
                yield episode
            else:
                self.left_out += 1

    def written(self, write: Callable[[], int], path: Path) -> None:
        """Calls `write`, which returns the number of episodes. Raises UserError if there are none."""
        self.episodes = write()
        if not self.episodes:
            raise UserError(f"{path} is not written: no episode has both a beginning and an end")


def _whole_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes a folder, which gets its name when `fill(folder)` is done. Replaces what a killed call has left."""
    half = path.with_name(f".{path.name}{UNFINISHED}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        try:
            fill(half)
            for place, _, files in os.walk(half):
                for file in files:
                    sync(Path(place, file))
                sync(Path(place))
            os.rename(half, path)
            sync(path.parent)
        finally:
            shutil.rmtree(half, ignore_errors=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error
