"""Writes files whole or not at all, and explains errors of the disk. No jax."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dreamer.errors import UserError

UNFINISHED = ".unfinished"  # suffix of a file until it is whole


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Writes a file and the folders above it, whole or not at all; returns its path.

    write: called with the path at which to make the file. Raises UserError when the file cannot be written.
    """
    with _in_place_of(path) as half:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(half)
        os.replace(half, path)
    return path


def write_durably(path: Path, write: Callable[[Path], object]) -> Path:
    """Like `write_whole`, but the folder must exist, and the call waits until the file is on the disk."""
    with _in_place_of(path) as half:
        write(half)
        sync(half)
        os.replace(half, path)
        sync(path.parent)
    return path


@contextlib.contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """The unfinished file, which is removed at the end of the block."""
    half = path.with_name(path.name + UNFINISHED)
    try:
        yield half
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            half.unlink()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: str | Path) -> UserError:
    """A UserError of one line for an OSError while writing `path`; for a full disk with the free bytes."""
    path = Path(path)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"cannot write {path}: {error.strerror or error}")
    place = next((parent for parent in (path, *path.absolute().parents) if parent.is_dir()), Path("/"))
    free = shutil.disk_usage(place).free
    return UserError(f"no space left on the disk of {path} ({free} bytes free); all that was written before is kept")
