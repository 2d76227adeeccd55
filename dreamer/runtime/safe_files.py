"""Files that somebody else may have made: only regular ones are read, and no further than expected. No jax."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from dreamer.errors import UserError

LARGEST_TEXT = 1 << 20  # bytes of a config


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened to read; neither a link is followed nor a pipe waited for.

    Raises FileNotFoundError when it is missing, UserError when it is something else or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise UserError(f"{path} cannot be read: {why}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} cannot be read: it is no regular file")
    return open(descriptor, "rb")


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """The text of a small file. Raises UserError: missing, larger than `most` bytes, not UTF-8, or no regular file."""
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
