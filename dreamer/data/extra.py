"""Errors of other packages in one line: `extra` for a missing package, `reason` for its errors. No jax."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dreamer.errors import UserError


@contextlib.contextmanager
def extra() -> Iterator[None]:
    """A context manager for imports of the extra "data". Raises UserError with the command that installs it."""
    try:
        yield
    except ImportError as error:
        package = error.name or str(error)
        raise UserError(
            f"datasets in HDF5, of Minari and of LeRobot need {package}, which is not installed: "
            'pip install "dreamer-jax[data]"'
        ) from error


def reason(error: BaseException) -> str:
    """Returns an error of another package in a few words: its type and the beginning of its message."""
    text = " ".join(str(error).split())[:160]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
