"""A thread that runs calls for other threads, so that a caller can stop waiting for a call that hangs.

This module imports no jax.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Hung(Exception):
    """Raised when a call has not returned in time. The thread of the call is abandoned."""


class OwnThread:
    """Owns a thread in which calls run one after the other. The thread does not keep the process alive.

    The thread ends after `close`. If a call hangs, the thread ends with the process.
    """

    def __init__(self, name: str = "environments"):
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., Any], *args: Any, timeout: float | None = None) -> Any:
        """Runs a function in the thread and returns its result. Raises its error, or Hung after `timeout` seconds.

        timeout None: no limit. May be called from inside the thread; the timeout then has no effect.
        """
        if self.inside():
            return function(*args)
        done = self.begin(function, *args)
        try:
            return done.result(timeout)
        except TimeoutError:
            if done.done():
                raise  # raised by the function itself
            raise Hung from None

    def begin(self, function: Callable[..., Any], *args: Any) -> Future:
        """Lets the thread run a function after the calls before it. Returns the future of its result at once."""
        done: Future = Future()
        self._calls.put((done, function, args))
        return done

    def inside(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Ends the thread after the calls that are already queued. Does not wait for them."""
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            done, function, args = call
            try:
                done.set_result(function(*args))
            except BaseException as error:
                done.set_exception(error)
            del call, done, function, args
