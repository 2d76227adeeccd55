"""A thread that produces items in advance: it draws batches and sends them while the device trains. Imports no jax."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Owns a thread that calls `produce` and keeps at most `depth` items ready, in their order.

    The thread starts at the first `next`, so that nothing is produced before it is needed. With depth 0 there is no
    thread, and `next` calls `produce`. A ThreadPoolExecutor is not used, because the interpreter joins its threads at
    exit, and a thread that waits for a hanging device would keep the process alive.
    """

    def __init__(self, produce: Callable[[], T], depth: int):
        self._produce, self._depth = produce, depth
        self._ready: collections.deque[T] = collections.deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def next(self) -> T:
        """Waits for the next item and returns it. Raises an error of `produce` after all earlier items are returned."""
        if not self._depth:
            return self._produce()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._closed)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            if self._error:
                raise self._error
            raise RuntimeError("the prefetcher is closed")

    def close(self) -> None:
        """Waits for the item in progress, ends the thread, and drops unused items."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                item = self._produce()
                with self._changed:
                    if not self._closed:
                        self._ready.append(item)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Waits until there is room for another item. Returns False if the Prefetch is closed, else True."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._depth or self._closed)
            return not self._closed
