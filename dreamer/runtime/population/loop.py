"""The loop of a population on the device: one program acts, steps the environments and learns, for all members."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.runtime.fused import population as fused
from dreamer.runtime.fused import spread
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.learning.pipeline import Chunk, Pace, Pipeline
from dreamer.runtime.population import places
from dreamer.runtime.population.base import Population
from dreamer.runtime.population.room import check_temporaries
from dreamer.runtime.run.loop import Run


class DevicePopulation(Population):
    """Owns the runs of the members that train, and the program that advances all of them on the device."""

    def __init__(self, *arguments: Any):
        """arguments: see `Population`."""
        super().__init__(*arguments)
        self._devices: dict[str, Any] = {name: run.parts.device for name, run in self._runs.items()}
        self._pipeline: Pipeline | None = None

    def _compile(self) -> None:
        """Moves all members to their devices and compiles their program."""
        self._display.phase("compiling")
        first, learner = self._devices[self._names[0]], self._first.parts.learner
        with learner.as_user_errors("moving the population to the device"):
            parts, counters = places.take(self._spread, [device.moving for device in self._devices.values()])
        places.check_counters(self._root, self._names, counters)
        loop = spread.join(self._spread, parts)
        del parts  # because the program donates the arrays of the members
        programs = spread.programs(
            self._spread, fused.make_population(first.turns, self._spread.each, self._together)
        )
        with learner.as_user_errors("compiling the population"):
            program: Any = programs.run.lower(loop, jnp.int32(1)).compile()
        check_temporaries(program, self._spread.each, self._together, self._spread.devices)
        guard = functools.partial(learner.as_user_errors, "the population on the device")
        self._pipeline = Pipeline(
            loop, program, programs.newest, first.moving.plan.sizes.rows, Pace(self._first.parts.replay), guard,
            lambda: self._for_each(lambda run: run.parts.learner.forget()),
        )  # fmt: skip
        for number, device in enumerate(self._devices.values()):
            device.hold(functools.partial(self._member, number), self._in_flight)
        self._inherit = programs.inherit
        self._for_each(Run.compiled)

    def _in_flight(self) -> int:
        """Returns the number of turns that were dispatched and that the runs have not received yet."""
        return self._pipeline.in_flight if self._pipeline else 0

    def _close(self) -> None:
        """Ends the thread that waits for the device."""
        if self._pipeline:
            self._pipeline.close()

    def _member(self, number: int) -> Loop | None:
        """Receives the turns in flight, and returns the Loop of a member."""
        assert self._pipeline is not None
        while self._pipeline.in_flight:
            self._receive(self._pipeline.receive())
        return None if self._pipeline.loop is None else fused.member(self._pipeline.loop, number)

    def _descend(self, number: int, parent: int, hyper: Any) -> None:
        """Gives member `number` what member `parent` has learned, and the numbers `hyper`."""
        pipeline: Any = self._pipeline
        pipeline.loop = self._inherit(pipeline.loop, jnp.int32(number), jnp.int32(parent), hyper)

    def _release(self, name: str) -> None:
        """Makes a member that stops keep the state that its parts have."""
        self._devices[name].hold(lambda: None)

    def _advance(self) -> None:
        """Receives turns of all members, while the device makes more."""
        assert self._pipeline is not None
        self._receive(self._pipeline.next(int(self._first.parts.replay.counts[0]), self._turns_until_due))

    def _receive(self, chunk: Chunk) -> None:
        """Adds turns to the run of each member. A member whose parameters have diverged stops; the others continue."""
        pipeline: Any = self._pipeline
        for number, name in enumerate(self._names):
            if run := self._alive.get(name):
                run.parts.learner.worked(chunk.begun, chunk.done)
                own = {key: column[number, :, -chunk.turns :] for key, column in chunk.rows.items()}
                report = jax.tree.map(lambda x, n=number: x[n], chunk.report)
                try:
                    self._devices[name].moving.receive(own, report, lambda n=number: fused.train_of(pipeline.loop, n))
                except UserError as error:
                    self._drop(name, error)
        if not self._alive:
            raise UserError("every member of the population has stopped")

    def _turns_until_due(self, ahead: int) -> int:
        """Returns what `Run.turns_until_due` does, for all members and also for what they inherit."""
        left = -(-(self._exploit_due - self._steps()) // self._first.parts.workers.streams) - ahead
        return min(max(0 if ahead else 1, left), *(run.turns_until_due(ahead) for run in self._alive.values()))
