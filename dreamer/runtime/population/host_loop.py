"""The loop of a population on the host: all members collect in turns, and one program makes their updates."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax

from dreamer.errors import UserError
from dreamer.interfaces import Batch
from dreamer.runtime.learning.learner import Pending
from dreamer.runtime.population.base import Population
from dreamer.runtime.population.room import check_temporaries
from dreamer.runtime.population.updates import States
from dreamer.runtime.run.loop import Run


class HostPopulation(Population):
    """Owns the runs of the members that train, and the states that they learn in one program.

    Each member has workers, a replay, a limiter and random keys of its own. The members take equal turns, so that all
    have the same counters.
    """

    _states: States

    def _compile(self) -> None:
        """Joins the train states. The program of the updates is compiled for the first batches."""
        runs = [*self._runs.values()]
        check_counters(runs)
        states, learner = [run.parts.learner.state for run in runs], runs[0].parts.learner
        self._states = States(states, runs[0].parts.agent, learner.part, self._together, learner.mesh)
        for number, run in enumerate(runs):
            run.parts.learner.hold(functools.partial(self._states.state, number))

    def _descend(self, number: int, parent: int, hyper: Any) -> None:
        """Gives member `number` what member `parent` has learned, and the numbers `hyper`."""
        self._states.inherit(number, parent, hyper)
        self._follow()

    def _release(self, name: str) -> None:
        """Makes a member that stops keep the state that its parts have."""
        learner = self._runs[name].parts.learner
        learner.settle()
        learner.hold(lambda: None)

    def _advance(self) -> None:
        """Makes one turn: each member collects a row of every environment, then all make the updates that are due."""
        self._collect()
        learns = False
        while self._first.parts.limiter.due():
            learns = True
            self._learn()
        if learns:
            self._follow()

    def _close(self) -> None:
        """Does nothing, because the program has no thread."""

    def _collect(self) -> None:
        """Lets each member collect. A member stops if one of its environments fails too often."""
        for name, run in [*self._alive.items()]:
            try:
                run.collect()
            except UserError as error:
                if isinstance(error.__cause__, jax.errors.JaxRuntimeError | OSError):  # the device or the disk of all
                    raise
                self._stop(name, error)

    def _learn(self) -> None:
        """Makes one update of every member. A member whose parameters have diverged stops."""
        drawn = {name: run.parts.batches.next() for name, run in self._alive.items()}
        if self._states.program is None:
            self._compile_updates(next(iter(drawn.values()))[0])
        batches = [drawn[name][0] if name in drawn else None for name in self._names]
        sent = time.monotonic()
        try:
            with self._first.parts.learner.as_user_errors("an update of the population"):
                results = self._states.update(batches)
        except BaseException:
            self._for_each(lambda run: run.parts.learner.forget())
            raise
        for name, result in zip(self._names, results, strict=True):
            if result is None:
                continue
            (out, finite), parts = result, self._alive[name].parts
            parts.learner.updates += 1
            parts.limiter.trained()
            if finite:
                parts.writeback.put(Pending(drawn[name][1], out, sent))
            else:
                self._stop(name, UserError("the parameters have diverged: they are no longer finite"))

    def _compile_updates(self, batch: Batch) -> None:
        """Compiles the program of the updates, and checks whether the device has the memory for it."""
        self._display.phase("compiling")
        with self._first.parts.learner.as_user_errors("compiling the update of the population"):
            self._states.compile(batch)
        check_temporaries(self._states.program, len(self._names), self._together)
        self._for_each(Run.compiled)

    def _follow(self) -> None:
        """Lets every member act with its newest parameters."""
        for number, name in enumerate(self._names):
            if run := self._alive.get(name):
                run.parts.learner.follow(self._states.leaves(number))

    def _stop(self, name: str, error: UserError) -> None:
        """Stops a member that has failed. Raises UserError if no member is left."""
        self._drop(name, error)
        if not self._alive:
            raise UserError("every member of the population has stopped")


def check_counters(runs: list[Run]) -> None:
    """Raises UserError if the members are not at the same point, because then one program cannot update them."""
    found = [(run.parts.replay.counts.tolist(), run.parts.limiter.state(), run.parts.learner.updates) for run in runs]
    for run, own in zip(runs, found, strict=True):
        if own != found[0]:
            names = f"{runs[0].parts.run_dir.name} and {run.parts.run_dir.name}"
            raise UserError(f"the members {names} have collected different rows; resume them one by one")
