"""A thread that flushes rows to the disk in time, even while the main thread evaluates or compiles. Imports no jax."""

from __future__ import annotations

import threading
import time

from dreamer.errors import UserError
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore

_SHORTEST, _LONGEST = 0.05, 1.0  # seconds between two checks


class Flushing:
    """Owns a thread that passes new rows to the store when a file is due. Use as a context manager, or call close().

    A file is due after `every` seconds or after `most` new rows, whichever comes first. If `every` is 0, it is due only
    after `most` new rows.
    """

    def __init__(self, store: RowStore, replay: Replay, *, every: float, most: int):
        self._store, self._replay, self._every, self._most = store, replay, every, most
        self._turn = threading.Lock()
        self._time, self._steps = time.monotonic(), replay.steps
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flushing", daemon=True)
        self._thread.start()

    def tend(self) -> None:
        """Passes the new rows to the store if a file is due; else does nothing. Callable from any thread.

        Raises UserError if an earlier write failed.
        """
        with self._turn:
            now, steps = time.monotonic(), self._replay.steps
            late = now - self._time >= self._every > 0
            if late or steps - self._steps >= self._most:
                self._time, self._steps = now, steps
                self._store.flush(self._replay)

    def close(self) -> None:
        """Ends the thread. May be called again."""
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> Flushing:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.wait(min(max(self._every / 2, _SHORTEST), _LONGEST) if self._every else _LONGEST):
            try:
                self.tend()
            except UserError:
                return  # the store raises it again in the main thread
