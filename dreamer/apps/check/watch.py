"""Watches all calls of the environment: tells its errors from those of the check, and names a call that hangs."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gymnasium

from dreamer.errors import UserError, one_line
from dreamer.plugins import make_env, suite_names

CALLS = ("reset", "step", "render", "close")


class EnvFailed(Exception):
    """Raised when a call of the environment raises `error`. call: "make", "reset", "step", "render" or "close"."""

    def __init__(self, call: str, text: str, error: BaseException):
        super().__init__(text)
        self.call, self.error = call, error


class Watch:
    """Records which call of the environment is in progress, and since when.

    After `start`, owns the thread that reports a call that hangs. Only the thread that made the Watch may use it.
    """

    def __init__(self, note: Callable[[str], object] = lambda place: None) -> None:
        """note: called with the name of each stage that the check begins, so that the stage is known after a crash."""
        self._note = note
        self.place = "its creation"
        self._call: tuple[str, float] | None = None
        self._main = threading.get_ident()

    @property
    def place(self) -> str:
        """The current stage of the check in words, for messages."""
        return self._place

    @place.setter
    def place(self, words: str) -> None:
        self._place = words
        self._note(words)

    def start(self, patience: float, beat: Callable[[], None], hung: Callable[[str], None]) -> None:
        """Starts a thread. It calls `beat` at least every second, and `hung` with a message if a call takes too long.

        patience: the seconds after which a call has taken too long
        """
        threading.Thread(target=self._run, args=(patience, beat, hung), daemon=True).start()

    def made(self, name: str, options: dict[str, Any], render_mode: str | None = None) -> Any:
        """Makes the environment called `name`, and watches all of its calls.

        Raises EnvFailed when the environment cannot be made. Raises UserError when no environment has this name, or
        when it does not take the options.
        """
        try:
            env = self.call("make", make_env, name, options, render_mode)
        except EnvFailed as failure:
            error = failure.error
            if isinstance(error, UserError):
                if _asked_wrong(name, error.__cause__):
                    raise error from error.__cause__
                cause = "" if error.__cause__ is None else one_line(error.__cause__)
                more = "" if cause in str(error) else f"; {cause}"
                raise EnvFailed("make", f"{error}{more}", error) from error
            raise
        for call in CALLS:
            setattr(env, call, self._watched(call, getattr(env, call, None) or _missing(call)))
        return env

    def call(self, name: str, function: Callable, *args: Any, **options: Any) -> Any:
        """Calls `function` and returns its result. Raises EnvFailed for any error except KeyboardInterrupt.

        name: the name of the call in messages, such as "step"
        """
        self._call = name, time.monotonic()
        try:
            return function(*args, **options)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise EnvFailed(name, f"{name}() raised in {self.place}: {one_line(error)}", error) from error
        finally:
            self._call = None

    def _watched(self, name: str, function: Callable) -> Callable:
        @functools.wraps(function)  # gymnasium's checker reads the signature
        def watched(*args: Any, **options: Any) -> Any:
            return self.call(name, function, *args, **options)

        return watched

    def _run(self, patience: float, beat: Callable[[], None], hung: Callable[[str], None]) -> None:
        while True:
            time.sleep(min(1.0, patience / 4))
            beat()
            now = self._call
            if now is not None and time.monotonic() - now[1] > patience:
                hung(f"{now[0]}() has not returned for {patience:g} s in {self.place}{self._line()}")

    def _line(self) -> str:
        """Returns " (FILE, line N)", the place of the main thread outside the standard library; "": there is none."""
        frame = sys._current_frames().get(self._main)
        library = os.path.dirname(os.__file__) + os.sep
        while frame is not None:
            file = frame.f_code.co_filename
            standard = file.startswith("<") or (file.startswith(library) and "site-packages" not in file)
            if not standard and file != __file__:
                return f" ({file}, line {frame.f_lineno})"
            frame = frame.f_back
        return ""


def close_quietly(env: Any) -> None:
    """Closes an environment and ignores errors, because close() has already been checked in an equal environment."""
    with contextlib.suppress(EnvFailed):
        env.close()


def _missing(call: str) -> Callable:
    def fail(*_: Any, **__: Any) -> None:
        raise AttributeError(f"it has no {call}()")

    return fail


def _asked_wrong(name: str, cause: BaseException | None) -> bool:
    """Whether the user gave a wrong name or wrong options. cause: the cause of the UserError that `make_env` raised."""
    if cause is None or isinstance(cause, ImportError | gymnasium.error.Error):
        return True
    return isinstance(cause, ValueError) and name.partition(":")[0] in suite_names()  # the suite has no such task
