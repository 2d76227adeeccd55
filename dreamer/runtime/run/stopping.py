"""Ctrl-C, SIGTERM and SIGUSR1: the first signal makes a run save and stop, the second stops it at once. Imports no jax.

Before there is anything to save, the first signal also stops the run at once.
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

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # a cluster may send SIGUSR1 before it ends a job


class Stopped(KeyboardInterrupt):
    """Raised after a signal, to stop a run. If the run has started, `train` saves it and then raises this again.

    code: the exit code for the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Stopping:
    """A context manager that owns the handlers of these signals and a thread that responds to signals during a run.

    Python runs signal handlers only between two steps of the main thread, which may compile for minutes; the thread
    responds meanwhile. Outside the main thread no handler can be set, and signals keep their default effect.
    failure: the error given to `fail`; None: `fail` was not called.
    """

    def __init__(self, report: Callable[[str], None]):
        """report: called with a line to print at the first signal."""
        self._answers: list[Callable[[str], object]] = [report]
        self._answers_to_failure: list[Callable[[UserError], object]] = []
        self._signal: int | None = None
        self.failure: UserError | None = None
        self._waits = False
        self._before: dict[int, Any] = {}
        self._before_fd = -1

    def on_signal(self, answer: Callable[[], object]) -> None:
        """Registers `answer`, which another thread calls at the first signal."""
        self._answers.append(lambda _: answer())

    def on_failure(self, answer: Callable[[UserError], object]) -> None:
        """Registers `answer`. `fail` calls it with the error, in the thread that calls `fail`."""
        self._answers_to_failure.append(answer)

    def begun(self) -> None:
        """Records that there is something to save: the first signal then stops the run only at the next `check`.

        Calls `check` once.
        """
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
        """Makes the run end with `error` and write nothing more, after it lost its lock. Callable from any thread."""
        self.failure = error
        for answer in self._answers_to_failure:
            answer(error)

    def check_failed(self) -> None:
        """Raises the error given to `fail`, if `fail` was called."""
        if self.failure is not None:
            raise self.failure

    def check(self) -> None:
        """Raises the error given to `fail`, if `fail` was called. Raises Stopped after a signal."""
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
                if not first and number == signal.SIGUSR1:
                    continue  # a cluster sends it to a job and to its steps
                if not first:
                    os._exit(128 + number)  # workers end by themselves when their sockets close
                first = False
                saving = "saving and stopping; a second signal stops at once"
                what = saving if self._waits else "stopping, nothing to save yet"
                for answer in self._answers:
                    answer(f"{signal.Signals(number).name}: {what}")
