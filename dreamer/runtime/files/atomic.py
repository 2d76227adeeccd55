"""Writes files completely or not at all, and explains disk errors. Imports no jax."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from dreamer.errors import UserError

UNFINISHED = ".unfinished"  # suffix of a file until it is complete


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Writes a file completely or not at all, and creates the folders above it. Returns its path.

    write: a function that creates the file at the temporary path that it is given; the file is then renamed to `path`
    Raises UserError if the file cannot be written.
    """
    with _in_place_of(path) as half:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(half)
        os.replace(half, path)
    return path


def write_durably(path: Path, write: Callable[[Path], object]) -> Path:
    """Like `write_whole`, but returns only when the file is on the disk. The folder must exist."""
    with _in_place_of(path) as half:
        write(half)
        sync(half)
        os.replace(half, path)
        sync(path.parent)
    return path


@contextlib.contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A context manager with the temporary path of the unfinished file, which it removes at the end if it is left.

    Turns an OSError into a UserError.
    """
    half = path.with_name(path.name + UNFINISHED)
    try:
        yield half
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            half.unlink()


def sync(path: Path) -> None:
    """Waits until the contents of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: str | Path) -> UserError:
    """Returns a one-line UserError for an OSError that occurred while `path` was written.

    If the disk is full, the UserError says how many bytes are free.
    """
    path = Path(path)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"cannot write {path}: {error.strerror or error}")
    place = next((parent for parent in (path, *path.absolute().parents) if parent.is_dir()), Path("/"))
    free = shutil.disk_usage(place).free
    return UserError(f"no space left on the disk of {path} ({free} bytes free); everything written before is kept")
