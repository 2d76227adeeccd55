"""Keeps the device at work: it makes the next turns of a fused loop while the host handles the turns before them."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dreamer.runtime.devices import placement
from dreamer.runtime.fused.loop import Loop, Report
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.workers.own_thread import OwnThread

SECONDS = 1.0  # the time between two visits of the host, unless something is due earlier


class Pace:
    """Decides how many turns the device makes before the host sees the results."""

    def __init__(self, replay: Replay):
        """replay: that of the run, or of one member"""
        self._first = replay.start(replay.config.batch_size) // len(replay.counts)
        self._most = replay.size.rows_per_stream
        self._per_turn, self._last = 0.0, 0  # seconds of a turn, and the number of the last turns

    def turns(self, most: int, added: int) -> int:
        """Returns the number of turns for about SECONDS: at least 1, and at most `most`.

        added: the number of rows that each stream has before these turns. The turn in which training starts is made
        alone, because all turns after it take longer. From then on, each call returns at most twice as many turns as
        the call before.
        """
        left = self._first - added
        if left > 1:
            most = min(most, left - 1)
        elif left == 1:
            self._per_turn, self._last = 0.0, 0
        wanted = int(SECONDS / self._per_turn) if self._per_turn else 1
        self._last = max(1, min(wanted, most, self._most, 2 * self._last or 1))
        return self._last

    def steady(self, added: int) -> bool:
        """Whether the turns after row `added` of each stream take about as long as those that were made last."""
        return self._per_turn > 0 and self._first - added != 1

    def made(self, turns: int, seconds: float) -> None:
        """Records how long `turns` turns took."""
        self._per_turn = seconds / turns


class Chunk(NamedTuple):
    """Turns that the device has made.

    turns: their number n | rows, report: numpy arrays. The last n rows of each stream are those of these turns.
    begun, done: the time.monotonic() seconds at which they were dispatched, and at which the rows were on the host
    """

    turns: int
    rows: Mapping[str, np.ndarray]
    report: Report
    begun: float
    done: float


class Flight(NamedTuple):
    """Turns in flight. result: the future of their rows, in a bucket, their report, and the time when both arrived."""

    turns: int
    begun: float
    result: Future


class Pipeline:
    """Owns the Loop on the device, and a thread that waits for the turns in flight: at most two chunks.

    loop: the newest Loop, after all turns in flight; None: it was lost, because a failed program has taken its buffers
    """

    def __init__(
        self, loop: Loop, program: Callable[..., Any], rows: Callable[..., Any], longest: int, pace: Pace,
        as_user_errors: Callable[[], AbstractContextManager[None]], lost: Callable[[], None],
    ):  # fmt: skip
        """program: (loop, turns) -> loop, report; it donates the loop | rows: (ring, n) -> the last n rows, jitted

        longest: the rows of a ring | as_user_errors: a context for calls of the device | lost: called if one fails
        """
        self.loop: Loop | None = loop
        self._program, self._rows, self._longest, self._pace = program, rows, longest, pace
        self._as_user_errors, self._lost = as_user_errors, lost
        self._flights: collections.deque[Flight] = collections.deque()
        self._waiting = OwnThread("device")
        self._done = 0.0

    @property
    def in_flight(self) -> int:
        """Returns the number of turns that were dispatched and not received yet."""
        return sum(flight.turns for flight in self._flights)

    def next(self, added: int, most: Callable[[int], int]) -> Chunk:
        """Waits for the oldest turns in flight and returns them. Before it waits, it dispatches the turns after them.

        added: the number of rows of each stream that were received
        most(ahead) -> the largest number of turns to make after `ahead` turns in flight; 0: wait for these first
        Raises UserError if the device fails.
        """
        with self._guarded():
            if not self._flights:
                self._start(most(0), added)
            ahead = self.in_flight
            if self._pace.steady(added + ahead) and (turns := most(ahead)):
                self._start(turns, added + ahead)
        return self.receive()

    def receive(self) -> Chunk:
        """Waits for the oldest turns in flight and returns them. Raises UserError if the device fails."""
        with self._guarded():
            turns, begun, result = self._flights[0]
            rows, report, done = result.result()
        self._flights.popleft()
        self._pace.made(turns, done - max(begun, self._done))
        self._done = done
        return Chunk(turns, rows, report, begun, done)

    def close(self) -> None:
        """Ends the thread once it has nothing to wait for."""
        self._waiting.close()

    def _start(self, most: int, added: int) -> None:
        turns, begun = self._pace.turns(most, added), time.monotonic()
        loop, self.loop = self.loop, None
        self.loop, report = self._program(loop, jnp.int32(turns))
        # Dispatched before the next turns, which take the buffers of this ring.
        rows = self._rows(self.loop.ring, bucket_of(turns, self._longest))
        self._flights.append(Flight(turns, begun, self._waiting.begin(_received, rows, report)))

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self._as_user_errors():
                yield
        except BaseException:
            self.loop = None
            self._flights.clear()
            self._lost()  # the state was donated, and the state in the parts of the run is older than the rows
            raise


def _received(rows: Any, report: Any) -> tuple[Any, Any, float]:
    rows, report = placement.to_host((rows, report))
    return rows, report, time.monotonic()


def bucket_of(turns: int, rows: int) -> int:
    """Returns the number of rows to fetch for `turns` turns: a power of two, so that few programs serve any number."""
    return min(1 << (turns - 1).bit_length(), rows)
