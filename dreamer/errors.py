"""Errors that the user can fix: one clear line that names the cause. Imports no jax."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """Raised when the user's input is wrong. The command line prints the error as one line and exits with code 2."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns a hint for an error message: "; did you mean 'x'?" with the choice most similar to `name`.

    If no choice is similar, the hint lists all choices; without choices it is "".
    """
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choices: {', '.join(choices)}" if choices else ""


def one_line(error: BaseException) -> str:
    """Returns an exception as one line: its type, its message, and the file and line that raised it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    return f"{type(error).__name__}: {message}{place}"
