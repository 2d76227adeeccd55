"""The fused loop of a run, seen from the host: compiles the program, makes turns, and brings the run up to date."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dreamer.interfaces import Agent
from dreamer.runtime.devices import errors as device_errors
from dreamer.runtime.devices.mesh import own
from dreamer.runtime.fused import mesh
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.learning.moving import Moving
from dreamer.runtime.learning.pipeline import Chunk, Pace, Pipeline


class OnDevice:
    """Owns the fused loop of one run: its state on the device, and the program that changes it.

    moving: moves the state | turns: the function of the program, see `loop.make_run`
    """

    def __init__(self, agent: Agent, moving: Moving):
        """Moves nothing yet, see `compile`."""
        workers = moving.owners.workers
        self.moving = moving
        self._programs = mesh.programs(
            moving.owners.learner.mesh, agent, workers.spec, workers.functions, moving.plan
        )
        self.turns = self._programs.turns
        self._pipeline: Pipeline | None = None
        self._settled: Callable[[], Loop | None] = lambda: None
        self._in_flight: Callable[[], int] = lambda: 0

    @property
    def in_flight(self) -> int:
        """Returns the number of turns that were dispatched and that the parts of the run have not received yet."""
        return self._in_flight()

    def compile(self) -> None:
        """Moves the run to the device and compiles the program, without making a turn."""
        owners, loop = self.moving.owners, self.moving.take()
        with owners.learner.as_user_errors("compiling the loop on the device"):
            program = self._programs.run.lower(loop, jnp.int32(1)).compile()
            device_errors.check_fits(program, own(owners.learner.mesh))
        guard = functools.partial(owners.learner.as_user_errors, "the loop on the device")
        pipeline = self._pipeline = Pipeline(
            loop, program, self._programs.newest, self.moving.plan.sizes.rows, Pace(owners.replay), guard,
            owners.learner.forget,
        )  # fmt: skip
        self.hold(self._drained, lambda: pipeline.in_flight)

    def advance(self, most: Callable[[int], int]) -> None:
        """Receives turns that the device has made, and updates replay, counters and metrics. The device makes more.

        most: as in `Pipeline.next`. Raises UserError if the device fails, or if the parameters have diverged.
        """
        assert self._pipeline is not None
        self._receive(self._pipeline.next(int(self.moving.owners.replay.counts[0]), most))

    def hold(self, settled: Callable[[], Loop | None], in_flight: Callable[[], int] = lambda: 0) -> None:
        """Names the owner of the Loop, which can be a population.

        settled: receives the turns in flight and returns the Loop; None: the parts of the run are the newest
        in_flight: returns the number of turns in flight
        """
        self._settled, self._in_flight = settled, in_flight

    def settle(self) -> None:
        """Receives the turns in flight and copies the Loop to the parts of the run, for a checkpoint or an evaluation.

        Raises UserError as `advance`.
        """
        loop = self._settled()
        if loop is not None:
            self.moving.settle(loop)

    def close(self) -> None:
        """Ends the thread that waits for the device."""
        if self._pipeline:
            self._pipeline.close()

    def _drained(self) -> Loop | None:
        assert self._pipeline is not None
        while self._pipeline.in_flight:
            self._receive(self._pipeline.receive())
        return self._pipeline.loop

    def _receive(self, chunk: Chunk) -> None:
        pipeline: Any = self._pipeline
        self.moving.owners.learner.worked(chunk.begun, chunk.done)
        rows = {name: x[:, -chunk.turns :] for name, x in chunk.rows.items()}
        self.moving.receive(rows, chunk.report, lambda: pipeline.loop.train)
