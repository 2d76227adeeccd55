"""Reads untrusted files safely: only regular files, and no more bytes than expected. Imports no jax."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dreamer.errors import UserError

LARGEST_TEXT = 1 << 20  # bytes of a config
def open_regular(path: Path, *, follow: bool = False) -> BinaryIO:
    """Opens a regular file for reading bytes. Never waits for a pipe.

    follow: whether the path may be a symbolic link.
    Raises FileNotFoundError if the file is missing, and UserError if it is not a regular file or cannot be read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        if error.errno == errno.ENXIO:
            why = "it is not a regular file"  # a socket
        raise UserError(f"{path} cannot be read: {why}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} cannot be read: it is not a regular file")
    return open(descriptor, "rb")


def check_inside(path: Path, run_dir: Path) -> None:
    """Raises UserError if `path`, which is inside a run directory, leads out of it through a symbolic link."""
    real, root = os.path.realpath(path), os.path.realpath(run_dir)
    if os.path.commonpath([real, root]) != root:
        raise UserError(f"{path} leads out of the run directory, to {real}; replace the link by its target")


def check_links(run_dir: Path) -> None:
    """Raises UserError if a run directory contains, at any depth, a pipe, a device or a link that leads out of it.

    An attacker can guess which files a run will write and put a link in such a place; the run would then write to the
    link's target.
    """
    waiting = [run_dir]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_symlink():
                    check_inside(Path(entry.path), run_dir)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    raise UserError(f"{entry.path} is neither a file nor a folder; remove it")


def special(folder: Path) -> Iterator[str]:
    """Yields the relative path of everything in `folder` that is not a regular file or a folder, such as a link."""
    for place, folders, files in os.walk(folder):
        for name in sorted(folders + files):
            mode = os.lstat(os.path.join(place, name)).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield os.path.relpath(os.path.join(place, name), folder)


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """Returns the text of a small file.

    Raises UserError if it is missing, is larger than `most` bytes, is not UTF-8, or is not a regular file.
    """
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > most:
        raise UserError(f"{path} cannot be read: it is larger than {most:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} cannot be read: it is not UTF-8 text") from None


def json_value(text: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises ValueError if the text is not JSON, contains nan or infinity, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
