"""The loop of a population on the device: one program acts, steps the environments and learns, for all members."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.runtime.devices import placement
from dreamer.runtime.fused import population as fused
from dreamer.runtime.fused import spread
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.population import places
from dreamer.runtime.population.base import Population
from dreamer.runtime.population.room import check_temporaries
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.on_device import Pace, bucket_of


class DevicePopulation(Population):
    """Owns the runs of the members that train, and the program that advances all of them on the device."""

    def __init__(self, *arguments: Any):
        """arguments: see `Population`."""
        super().__init__(*arguments)
        self._devices: dict[str, Any] = {name: run.parts.device for name, run in self._runs.items()}
        self._pace = Pace(self._first.parts.replay)
        self._done: float | None = None
        self._loop: Loop | None = None

    def _compile(self) -> None:
        """Moves all members to their devices and compiles their program."""
        self._display.phase("compiling")
        self._loop = places.take(self._spread, self._names, [device.moving for device in self._devices.values()])
        for number, device in enumerate(self._devices.values()):
            device.hold(functools.partial(self._member, number))
        run = fused.make_population(self._devices[self._names[0]].turns, self._spread.each, self._together)
        programs = spread.programs(self._spread, run)
        with self._first.parts.learner.as_user_errors("compiling the population"):
            self._program: Any = programs.run.lower(self._loop, jnp.int32(1)).compile()
        check_temporaries(self._program, self._together, self._spread.devices)
        self._rows, self._inherit = programs.newest, programs.inherit
        self._for_each(Run.compiled)

    def _member(self, number: int) -> Loop | None:
        return None if self._loop is None else fused.member(self._loop, number)

    def _descend(self, number: int, parent: int, hyper: Any) -> None:
        """Gives member `number` what member `parent` has learned, and the numbers `hyper`."""
        self._loop = self._inherit(self._loop, jnp.int32(number), jnp.int32(parent), hyper)

    def _release(self, name: str) -> None:
        """Makes a member that stops keep the state that its parts have."""
        self._devices[name].hold(lambda: None)

    def _advance(self, most: int) -> None:
        """Makes turns of all members. A member whose parameters have diverged stops; the others go on."""
        length = self._devices[self._names[0]].moving.plan.sizes.rows
        turns, before = self._pace.turns(most, int(self._first.parts.replay.counts[0])), time.monotonic()
        bucket = bucket_of(turns, length)
        loop, self._loop = self._loop, None
        try:
            with self._first.parts.learner.as_user_errors("the population on the device"):
                loop, report = self._program(loop, jnp.int32(turns))
                rows, report = placement.to_host((self._rows(loop.ring, bucket), report))
        except BaseException:
            self._for_each(lambda run: run.parts.learner.forget())
            raise
        after = time.monotonic()
        self._pace.made(turns, after - before)
        self._loop = loop
        for number, name in enumerate(self._names):
            if run := self._alive.get(name):
                if self._done is not None:
                    run.parts.learner.idle += max(0.0, before - self._done)
                own = {key: column[number, :, bucket - turns :] for key, column in rows.items()}
                train = functools.partial(fused.train_of, loop, number)
                try:
                    self._devices[name].moving.receive(own, jax.tree.map(lambda x, n=number: x[n], report), train)
                except UserError as error:
                    self._drop(name, error)
        self._done = after
        if not self._alive:
            raise UserError("every member of the population has stopped")

