"""Reads files that somebody else may have made: only regular files, and no more bytes than expected. No jax."""

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
    """A regular file, opened for reading, without waiting for a pipe. follow: the path may be a link.

    Raises FileNotFoundError when it is missing, UserError when it is something else or cannot be read.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        if error.errno == errno.ENXIO:
            why = "it is no regular file"  # a socket
        raise UserError(f"{path} cannot be read: {why}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} cannot be read: it is no regular file")
    return open(descriptor, "rb")


def check_inside(path: Path, run_dir: Path) -> None:
    """Raises UserError when a link leads from `path`, a place in a run directory, out of the directory."""
    real, root = os.path.realpath(path), os.path.realpath(run_dir)
    if os.path.commonpath([real, root]) != root:
        raise UserError(f"{path} leads out of the run directory, to {real}; put there what it leads to")


def check_links(run_dir: Path) -> None:
    """Raises UserError when a run directory contains a link that leads out of it, a pipe or a device, at any depth.

    Names of files to be written can be guessed, and a write to a link would go to its target.
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
    """The relative paths in `folder` of all that is neither a regular file nor a folder: links, pipes, devices."""
    for place, folders, files in os.walk(folder):
        for name in sorted(folders + files):
            mode = os.lstat(os.path.join(place, name)).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                yield os.path.relpath(os.path.join(place, name), folder)


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """The text of a small file. Raises UserError if missing, over `most` bytes, not UTF-8, or not a regular file."""
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
    """The value of a JSON text. Raises ValueError if it is not JSON, has nan or infinity, or is nested too deeply."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
