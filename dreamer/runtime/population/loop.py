"""The loop of a population: advances all members in one program, and tends the run of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import agent as agents
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.devices import placement
from dreamer.runtime.fused import population as fused
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.log.terminal import Display
from dreamer.runtime.population import exploit, standing
from dreamer.runtime.population.hyper import hyper_of
from dreamer.runtime.population.members import Member
from dreamer.runtime.population.room import check_room, check_temporaries
from dreamer.runtime.population.standing import Standing
from dreamer.runtime.run import ending, header
from dreamer.runtime.run.build import Opened
from dreamer.runtime.run.listening import Callback
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.pipeline import Chunk, Pace, Pipeline


class Population:
    """Owns the runs of the members that train, and the program that advances all of them."""

    def __init__(
        self, root: Path, members: Sequence[Member], opened: dict[str, Opened], known: Standing, display: Display,
        config: Config, callbacks: Sequence[Callback],
    ):  # fmt: skip
        """root: the directory of the population | members: those that train | known: where the population stands

        config: that of the population
        """
        self._root, self._standing, self._display, self._config = root, known, display, config.population
        self._seed = config.seed
        self._members = {member.name: member for member in members}
        runs = {name: Run(one, callbacks, saving=self._saving) for name, one in opened.items()}
        self._devices: dict[str, Any] = {name: run.parts.device for name, run in runs.items()}
        self._names = [*runs]
        self._alive = dict(runs)
        self._together = config.population.together or (1 if jax.default_backend() == "cpu" else len(runs))
        self._pipeline: Pipeline | None = None

    def train(self, step: int | None, ended: Collection[str]) -> None:
        """Trains until every member has made its steps.

        step: the checkpoint to resume from; None: the runs are new | ended: the members that have nothing left to do
        """
        self._lineage = [] if step is None else exploit.read(self._root, step)
        start_values = {name: member.values for name, member in self._members.items()}
        self._values = exploit.newest_values(start_values, self._lineage)
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
            self._display.end("stopped", [f"stopped; to go on: {header.to_go_on(self._root)}"])
            raise
        except BaseException as error:
            raised = [ending.failed(run, error) for run in self._each()]
            raise (raised[0] if raised else error) from error
        finally:
            if self._pipeline:
                self._pipeline.close()

    @property
    def _first(self) -> Run:
        """The first member that still trains, whose counters are those of all."""
        return next(iter(self._alive.values()))

    def _steps(self) -> int:
        return self._first.parts.replay.steps

    def _stopped(self) -> bool:
        return any(run.stopped for run in self._alive.values())

    def _compile(self) -> None:
        """Moves all members to the device and compiles their program."""
        self._display.phase("compiling")
        loops = []
        for device in self._devices.values():
            loops.append(device.moving.take())
            check_room(loops[0], len(self._devices) - len(loops))
        check_room(loops[0], len(loops))  # for the joined arrays, beside those of each member
        check_counters(self._names, loops)
        loop = fused.stack(loops)
        del loops
        run = fused.make_population(self._devices[self._names[0]].turns, len(self._devices), self._together)
        learner = self._first.parts.learner
        with learner.as_user_errors("compiling the population"):
            program: Any = jax.jit(run, donate_argnums=0).lower(loop, jnp.int32(1)).compile()
        check_temporaries(program, self._together)
        longest = self._devices[self._names[0]].moving.plan.sizes.rows
        guard = functools.partial(learner.as_user_errors, "the population on the device")
        self._pipeline = Pipeline(
            loop, program, jax.jit(fused.newest, static_argnums=1), longest, Pace(self._first.parts.replay), guard,
            lambda: self._for_each(lambda run: run.parts.learner.forget()),
        )  # fmt: skip
        for number, device in enumerate(self._devices.values()):
            device.hold(functools.partial(self._member, number), self._in_flight)
        self._inherit: Any = jax.jit(fused.inherit, donate_argnums=0)
        self._for_each(Run.compiled)

    def _in_flight(self) -> int:
        return self._pipeline.in_flight if self._pipeline else 0

    def _member(self, number: int) -> Loop | None:
        """Receives the turns in flight, and returns the Loop of a member."""
        assert self._pipeline is not None
        while self._pipeline.in_flight:
            self._receive(self._pipeline.receive())
        return None if self._pipeline.loop is None else fused.member(self._pipeline.loop, number)

    def _advance(self) -> None:
        """Receives turns of all members, while the device makes more."""
        assert self._pipeline is not None
        self._receive(self._pipeline.next(int(self._first.parts.replay.counts[0]), self._turns_until_due))

    def _receive(self, chunk: Chunk) -> None:
        """Adds turns to the run of each member. A member whose parameters have diverged stops; the others go on."""
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

    def _drop(self, name: str, error: UserError) -> None:
        """Stops a member that has failed. Its place in the program stays, because the others must not change."""
        run = self._alive.pop(name)
        self._devices[name].hold(lambda: None)
        run.parts.display.leave()  # type: ignore[attr-defined]
        failure = ending.failed(run, error)
        self._display.message(f"{name} has stopped, the others go on: {failure}")
        self._remember(stopped={**self._standing.stopped, name: str(error)})

    def _turns_until_due(self, ahead: int) -> int:
        """Returns what `Run.turns_until_due` does, for all members and also for what they inherit."""
        left = -(-(self._exploit_due - self._steps()) // self._first.parts.workers.streams) - ahead
        return min(max(0 if ahead else 1, left), *(run.turns_until_due(ahead) for run in self._alive.values()))

    def _exploit_if_due(self) -> None:
        """Lets the worst members continue from the best, with numbers of their own.

        Everything that this depends on is on the disk, so that a resumed population repeats it.
        """
        steps = self._steps()
        if steps < self._exploit_due or steps >= self._first.parts.config.env_steps:
            return
        self._exploit_due = exploit.next_due(self._config.exploit_every, steps)
        pipeline: Any = self._pipeline
        rng = np.random.default_rng((self._seed, steps))
        scores = {name: exploit.score(run.parts.run_dir) for name, run in self._alive.items()}
        for name, parent in exploit.pairs(scores, self._config.exploit_share, rng):
            wanted = exploit.explored(self._values[parent], self._config.explore_factor, rng)
            config, values = exploit.with_values(self._members[name].config, wanted, self._values[parent])
            spec = self._first.parts.workers.spec
            hyper = hyper_of(agents.make(config.agent, spec))
            numbers = self._names.index(name), self._names.index(parent)
            pipeline.loop = self._inherit(pipeline.loop, *map(jnp.int32, numbers), hyper)
            self._values[name] = values
            descent = exploit.Descent(steps, name, parent, scores[name], scores[parent], values)
            self._lineage.append(descent)
            self._display.message(f"at {steps:,} steps, {name} continues from {parent}: {values}")
        exploit.write(self._root, self._lineage)

    def _tend(self) -> None:
        """Logs, evaluates and saves whatever is due, for all members at the same step."""
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
            self._display.end("stopped", [f"stopped by a callback; to go on: {header.to_go_on(self._root)}"])
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


def check_counters(names: Sequence[str], loops: Sequence[Loop]) -> None:
    """Raises UserError if the members are not at the same point, because then one program cannot advance them."""
    found = [(loop.ring.added, loop.ring.taken, loop.acted, loop.started, loop.debt) for loop in loops]
    for name, own in zip(names, placement.to_host(found), strict=True):
        if tuple(map(int, own)) != tuple(map(int, found[0])):
            raise UserError(f"the members {names[0]} and {name} have collected different rows; resume them one by one")
