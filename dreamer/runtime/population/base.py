"""What every population does: starts, tends, saves and ends the runs of its members, and lets them inherit."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer import agent as agents
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.log.terminal import Display
from dreamer.runtime.population import exploit, places, standing
from dreamer.runtime.population.hyper import hyper_of
from dreamer.runtime.population.members import Member
from dreamer.runtime.population.standing import Standing
from dreamer.runtime.run import ending, header
from dreamer.runtime.run.build import Opened
from dreamer.runtime.run.listening import Callback
from dreamer.runtime.run.loop import Run


class Population(abc.ABC):
    """Owns the runs of the members that train. A subclass owns the program that advances all members."""

    def __init__(
        self, root: Path, members: Sequence[Member], opened: dict[str, Opened], known: Standing, display: Display,
        config: Config, callbacks: Sequence[Callback],
    ):  # fmt: skip
        """root: the directory of the population | members: those that train | known: what its file records

        config: that of the population
        """
        self._root, self._standing, self._display, self._config = root, known, display, config.population
        self._seed = config.seed
        self._members = {member.name: member for member in members}
        self._runs = {name: Run(one, callbacks, saving=self._saving) for name, one in opened.items()}
        self._names = [*self._runs]
        self._alive = dict(self._runs)
        self._spread = places.spread_of(config, len(self._runs))
        self._together = places.together(config.population.together, self._spread.each)

    @abc.abstractmethod
    def _compile(self) -> None:
        """Joins the states of all members, and compiles their program if that is possible already."""

    @abc.abstractmethod
    def _advance(self) -> None:
        """Makes turns of all members, at most until something is due. A member that fails stops, see `_drop`."""

    @abc.abstractmethod
    def _descend(self, number: int, parent: int, hyper: Any) -> None:
        """Gives member `number` what member `parent` has learned, and the numbers `hyper`."""

    @abc.abstractmethod
    def _release(self, name: str) -> None:
        """Makes a member that stops keep the state that its parts have."""

    def _in_flight(self) -> int:
        """Returns the number of turns that were dispatched and that the runs have not received yet."""
        return 0

    @abc.abstractmethod
    def _close(self) -> None:
        """Ends the threads of the program, if it has any."""

    def train(self, step: int | None, ended: Collection[str]) -> None:
        """Trains until every member has made its steps.

        step: the checkpoint to resume from; None: the runs are new | ended: the members that have nothing left to do
        """
        self._lineage = [] if step is None else exploit.read(self._root, step)
        start_values = {name: member.values for name, member in self._members.items()}
        self._values = exploit.newest_values(start_values, self._lineage)
        try:
            if step is None:
                # Before a new run keeps its directory, so that nothing is left of a population too large.
                self._compile()
            self._train(step, ended)
        finally:
            self._close()

    def _train(self, step: int | None, ended: Collection[str]) -> None:
        """Trains as `train`. A new population is compiled already."""
        try:
            if step is not None:
                self._remember(saved=step, saving=step)
            for run in self._alive.values():
                run.start()
            # A checkpoint holds the members as they were before they inherited anything at its step.
            begun = max(0, self._steps() - self._first.parts.workers.streams)
            self._exploit_due = exploit.next_due(self._config.exploit_every, begun)
            if step is None:
                self._remember(saved=self._steps(), saving=self._steps())
            self._for_each(Run.evaluate_if_due)
            if step is not None:
                self._compile()
            self._exploit_if_due()
            while self._in_flight() or (self._steps() < self._first.parts.config.env_steps and not self._stopped()):
                self._advance()
                self._tend()
                self._exploit_if_due()
            self._end(ended)
        except KeyboardInterrupt as stop:
            for run in self._each():
                ending.interrupted(run, stop)
            self._display.end("stopped", [f"stopped; to continue: {header.to_go_on(self._root)}"])
            raise
        except BaseException as error:
            # Members that fail in the middle of a turn have no step in common; they resume from their last checkpoint.
            level = len({run.parts.replay.steps for run in self._alive.values()}) == 1
            raised = [ending.failed(run, error, checkpoint=level) for run in self._each()]
            raise (raised[0] if raised else error) from error

    @property
    def _first(self) -> Run:
        """The first member that still trains. Its counters equal those of all others."""
        return next(iter(self._alive.values()))

    def _steps(self) -> int:
        return self._first.parts.replay.steps

    def _stopped(self) -> bool:
        return any(run.stopped for run in self._alive.values())

    def _drop(self, name: str, error: UserError) -> None:
        """Stops a member that has failed. Its place in the program stays, because the others must not change."""
        run = self._alive.pop(name)
        self._release(name)
        run.parts.display.leave()  # type: ignore[attr-defined]
        failure = ending.failed(run, error)
        self._display.message(f"{name} has stopped, the others continue: {failure}")
        self._remember(stopped={**self._standing.stopped, name: str(error)})

    def _exploit_if_due(self) -> None:
        """Lets the worst members continue from the best, with numbers of their own.

        Everything that this depends on is on the disk, so that a resumed population repeats it.
        """
        steps = self._steps()
        if steps < self._exploit_due or steps >= self._first.parts.config.env_steps:
            return
        self._exploit_due = exploit.next_due(self._config.exploit_every, steps)
        rng = np.random.default_rng((self._seed, steps))
        scores = {name: exploit.score(run.parts.run_dir) for name, run in self._alive.items()}
        for name, parent in exploit.pairs(scores, self._config.exploit_share, rng):
            wanted = exploit.explored(self._values[parent], self._config.explore_factor, rng)
            config, values = exploit.with_values(self._members[name].config, wanted, self._values[parent])
            spec = self._first.parts.workers.spec
            hyper = hyper_of(agents.make(config.agent, spec))
            self._descend(self._names.index(name), self._names.index(parent), hyper)
            self._values[name] = values
            descent = exploit.Descent(steps, name, parent, scores[name], scores[parent], values)
            self._lineage.append(descent)
            self._display.message(f"at {steps:,} steps, {name} continues from {parent}: {values}")
        exploit.write(self._root, self._lineage)

    def _tend(self) -> None:
        """Logs, evaluates and saves, each if it is due, for all members at the same step."""
        step, in_flight = self._steps(), self._in_flight()
        due = not in_flight and (self._first.save_due() or self._first.evaluation_due())
        if due:
            self._remember(saving=step)
        self._for_each(Run.tend)
        if due or (not in_flight and any(run.saved.step == step for run in self._alive.values())):
            self._save(step)

    def _save(self, step: int) -> None:
        self._remember(saving=step)
        self._for_each(Run.save)
        self._for_each(lambda run: run.parts.checkpoints.wait())
        self._remember(saved=step)

    def _end(self, ended: Collection[str]) -> None:
        step = self._steps()
        self._remember(saving=step)
        if self._stopped():
            self._for_each(Run.leave)
            self._display.end("stopped", [f"stopped by a callback; to continue: {header.to_go_on(self._root)}"])
        else:
            for name, run in self._alive.items():
                if name not in ended:
                    run.finish()
            self._display.end("done", header.next_steps(self._root, self._first.parts.run_dir.name))
        self._remember(saved=step)

    def _for_each(self, do: Callable[[Run], object]) -> None:
        for run in self._each():
            do(run)

    def _each(self) -> Iterator[Run]:
        """Yields the members that still train; one may stop meanwhile."""
        yield from (self._alive[name] for name in self._names if name in self._alive)

    def _saving(self, step: int) -> None:
        """Records the step before the first member is saved there, so that a kill leaves a common checkpoint."""
        if self._standing.saving != step:
            self._remember(saving=step)

    def _remember(self, **changes: Any) -> None:
        self._standing = self._standing._replace(**changes)
        standing.write(self._root, self._standing)
