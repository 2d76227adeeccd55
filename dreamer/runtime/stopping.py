"""Ctrl-C and SIGTERM: the first asks a run to save and end, the second ends it at once. No jax."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run was asked to end, and has saved. code: the exit code that says by which signal."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Stopping:
    """Owns the handlers of both signals while a run is under way; use as a context manager.

    Outside of the main thread no handler can be set, and signals keep their meaning.
    """

    def __init__(self, tell: Callable[[str], None]):
        """tell: takes the line that answers the first signal."""
        self._tell = tell
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises Stopped when a signal has come."""
        if self._signal is not None:
            raise Stopped(self._signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(128 + number)  # workers end by themselves when their pipe closes
        self._signal = number
        self._tell(f"{signal.Signals(number).name}: saving, then the end; once more ends at once")
