"""The fused loop of a run, seen from the host: compiles the program, makes turns, and brings the run up to date."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax.numpy as jnp

from dreamer.interfaces import Agent
from dreamer.runtime.devices import placement
from dreamer.runtime.fused import mesh
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.run.moving import Moving

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

        added: the number of rows that each stream has had. The turn in which training starts stands alone, because all
        turns after it take longer; from then on, each call makes at most twice as many turns as the one before.
        """
        left = self._first - added
        if left > 1:
            most = min(most, left - 1)
        elif left == 1:
            self._per_turn, self._last = 0.0, 0
        wanted = int(SECONDS / self._per_turn) if self._per_turn else 1
        return max(1, min(wanted, most, self._most, 2 * self._last or 1))

    def made(self, turns: int, seconds: float) -> None:
        """Records how long `turns` turns took."""
        self._per_turn, self._last = seconds / turns, turns


class OnDevice:
    """Owns the fused loop of one run, that is, its state on the device and the program that changes it.

    moving: moves the state | turns: the function that the program is made of, see `loop.make_run`
    """

    def __init__(self, agent: Agent, moving: Moving):
        """Moves nothing yet, see `compile`."""
        workers = moving.owners.workers
        self.moving, self._pace = moving, Pace(moving.owners.replay)
        programs = mesh.programs(moving.owners.learner.mesh, agent, workers.spec, workers.functions, moving.plan)
        self.turns, self._run, self._rows = programs
        self._state: Callable[[], Loop | None] | None = None
        self._loop: Loop | None = None
        self._done: float | None = None

    def compile(self) -> None:
        """Moves the run to the device and compiles the program, without making a turn."""
        self._loop = self.moving.take()
        self.hold(lambda: self._loop)
        with self.moving.owners.learner.as_user_errors("compiling the loop on the device"):
            self._run = self._run.lower(self._loop, jnp.int32(1)).compile()

    def advance(self, most: int) -> None:
        """Makes turns for about SECONDS, at least one and at most `most`, and updates replay, counters and metrics.

        Raises UserError if the device fails, or if the parameters have diverged.
        """
        learner, rows_per_stream = self.moving.owners.learner, self.moving.plan.sizes.rows
        added = int(self.moving.owners.replay.counts[0])
        turns, before = self._pace.turns(most, added), time.monotonic()
        if self._done is not None:
            learner.idle += max(0.0, before - self._done)
        loop, self._loop = self._loop, None
        bucket = bucket_of(turns, rows_per_stream)
        try:
            with learner.as_user_errors("the loop on the device"):
                loop, report = self._run(loop, jnp.int32(turns))
                rows, report = placement.to_host((self._rows(loop.ring, bucket), report))
        except BaseException:
            learner.forget()  # the state was donated, and what the parts have is older than the rows
            raise
        self._done = time.monotonic()
        self._pace.made(turns, self._done - before)
        self._loop = loop
        self.moving.receive({name: x[:, bucket - turns :] for name, x in rows.items()}, report, lambda: loop.train)

    def hold(self, state: Callable[[], Loop | None]) -> None:
        """Makes `settle` copy the Loop that `state` returns; None: the parts of the run are the newest."""
        self._state = state

    def settle(self) -> None:
        """Copies the state of the loop to the parts of the run, for a checkpoint or an evaluation."""
        loop = self._state() if self._state else None
        if loop is not None:
            self.moving.settle(loop)


def bucket_of(turns: int, rows: int) -> int:
    """Returns the number of rows to fetch for `turns` turns: a power of two, so that few programs serve any number."""
    return min(1 << (turns - 1).bit_length(), rows)
