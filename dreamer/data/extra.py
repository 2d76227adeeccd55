"""Names the extra that a missing package belongs to. Imports no jax."""

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
            f'datasets in HDF5 and Minari need {package}, which is not installed: pip install "dreamer-jax[data]"'
        ) from error
