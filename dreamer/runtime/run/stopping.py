"""Ctrl-C and SIGTERM: the first asks a run to save and end, the second ends it at once. No jax.

Until there is anything to save, the first ends it too, wherever it waits.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from dreamer.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run was asked to end, and has saved. code: the exit code that says by which signal."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Stopping:
    """Owns the handlers of both signals, and a thread that answers them, while a run is under way; a context manager.

    Python runs handlers between two steps of the main thread only, which compiles for minutes at times: the thread
    answers meanwhile. Outside of the main thread no handler can be set, and signals keep their meaning.
    failure: what `fail` was given, None before.
    """

    def __init__(self, report: Callable[[str], None]):
        """report: takes the line that answers the first signal."""
        self._answers: list[Callable[[str], object]] = [report]
        self._answers_to_failure: list[Callable[[UserError], object]] = []
        self._signal: int | None = None
        self.failure: UserError | None = None
        self._waits = False
        self._before: dict[int, Any] = {}
        self._before_fd = -1

    def on_signal(self, answer: Callable[[], object]) -> None:
        """Have `answer` called when the first signal comes, from another thread."""
        self._answers.append(lambda _: answer())

    def on_failure(self, answer: Callable[[UserError], object]) -> None:
        """Have `answer` called with what `fail` is given, from the thread that calls it."""
        self._answers_to_failure.append(answer)

    def begun(self) -> None:
        """From now on there is something to save: the first signal waits for `check`."""
        self._waits = True
        self.check()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._woken, self._wake = socket.socketpair()
            self._wake.setblocking(False)
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
            self._before_fd = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._listen, name="stopping", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._before:
            signal.set_wakeup_fd(self._before_fd)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._wake.close()
            self._thread.join()
            self._woken.close()
            self._before = {}

    def fail(self, error: UserError) -> None:
        """Another process has taken the run: it must end with `error` and write nothing more. From any thread."""
        self.failure = error
        for answer in self._answers_to_failure:
            answer(error)

    def check_failed(self) -> None:
        """Raises what `fail` was given."""
        if self.failure is not None:
            raise self.failure

    def check(self) -> None:
        """Raises what `fail` was given; Stopped when a signal has come."""
        self.check_failed()
        if self._signal is not None:
            raise Stopped(self._signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number
        if not self._waits:
            raise Stopped(number)

    def _listen(self) -> None:
        first = True
        while numbers := self._woken.recv(16):
            for number in filter(SIGNALS.__contains__, numbers):
                if not first:
                    os._exit(128 + number)  # workers end by themselves when their pipe closes
                first = False
                what = "saving, then the end; once more ends at once" if self._waits else "the end, nothing to save yet"
                for answer in self._answers:
                    answer(f"{signal.Signals(number).name}: {what}")
