"""A thread that handles the result of an update while the next update is dispatched to the device. Imports no jax."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Writeback(Generic[T]):
    """Owns a thread that handles items in order, with at most one waiting or in progress.

    threaded: whether there is a thread. Without a thread, `put` handles the item itself. A ThreadPoolExecutor is not
    used, for the reason given in `Prefetch`.
    """

    def __init__(self, handle: Callable[[T], None], threaded: bool):
        self._handle, self._threaded = handle, threaded
        self._items: list[T] = []
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, item: T) -> None:
        """Waits for the previous item and passes `item` to the thread. Raises an error of the previous item, if any."""
        if not self._threaded:
            self._handle(item)
            return
        self.settle()
        if self._closed:
            raise RuntimeError("the writeback is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="writeback", daemon=True)
            self._thread.start()
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def settle(self) -> None:
        """Waits until no item is in progress. If handling an item failed, raises its error, once."""
        with self._changed:
            self._changed.wait_for(lambda: not self._items)
            error, self._error = self._error, None
        if error:
            raise error

    def close(self) -> None:
        """Waits for the item in progress and ends the thread. Drops an error; call `settle` first to raise it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._items)
            self._closed, self._error = True, None
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._wait_for_item():
            try:
                self._handle(self._items[0])
            except BaseException as error:
                self._error = error
            with self._changed:
                self._items.clear()
                self._changed.notify_all()

    def _wait_for_item(self) -> bool:
        """Waits for an item. Returns False if the Writeback is closed, else True."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            return bool(self._items)
