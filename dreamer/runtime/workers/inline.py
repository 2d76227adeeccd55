"""All environments in this process, one after the other. No jax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamer.runtime.parallel import ParallelRows
from dreamer.runtime.rows import empty_step, write_together
from dreamer.runtime.workers.faults import Faults, close_quietly, envs_in_words, make_rows, told
from dreamer.runtime.workers.seam import Incident, Plan, Ready, Snapshot
from dreamer.runtime.workers.table import BUSY, READY, Table, check_fresh


class InlineWorkers:
    """The environments in `rows`, stepped when their rows are received: all that were sent an action are ready then.

    One that raises or breaks its space is made anew. One that exits, is killed or hangs takes this process with it:
    only worker processes survive that. Rows are read when all have stepped: an array that environments share
    would hold what the last of them wrote, as in gymnasium's SyncVectorEnv.
    """

    def __init__(self, plan: Plan, restarts: int = 0, why: str = ""):
        """Raises UserError when an environment cannot be made."""
        self._plan, self._why = plan, why
        self.envs = plan.envs
        self._faults = Faults(plan, restarts)
        self.rows: list[Any] = []  # EnvRows, or ParallelRows
        try:
            for number in range(plan.envs):
                self.rows.append(make_rows(plan, number, self._faults.seed(number)))
        except BaseException:
            self.close()
            raise
        self.spec = self.rows[0].spec
        self.streams = plan.envs * self.spec.agents
        self._parallel = isinstance(self.rows[0], ParallelRows)
        self._table = Table(empty_step(self.spec, self.streams), self.spec.agents)

    def receive(self, least: int | None = None, patience: float = 0.0) -> Ready:
        """The next row of all environments that were sent an action; `least` None: of all E."""
        self._table.wanted(least)
        self._step()
        ready = self._table.take()
        self._faults.delivered(ready, self._table.agents)
        return ready

    def send(self, envs: np.ndarray, actions: np.ndarray) -> None:
        """Answer the rows of streams `envs` [R] with `actions` [R, A]."""
        self._table.answer(envs, actions)

    def incidents(self) -> list[Incident]:
        """What happened since the last call."""
        return self._faults.drain()

    def seed(self, number: int) -> int:
        """The seed with which an environment began, as it is now: each that is made anew has another."""
        return self._faults.seed(number)

    def describe(self) -> str:
        """One line: where the environments run, and why."""
        return f"workers: {envs_in_words(self.envs, self.spec.agents)} in the main process{self._why}"

    def states(self) -> Snapshot:
        """The state of every environment, and their rows that nobody has received."""
        self._table.wanted(None)
        self._step()
        return Snapshot([rows.get_state() for rows in self.rows], self._table.peek(), self._faults.resets.copy())

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Goes on from a Snapshot; gives those that begin a new episode instead, and why."""
        check_fresh(self._faults.received, states, ready, self.envs, self._table.agents)
        # A first reset, as worker processes have had one: some environments must not be set before it.
        self._step()
        refused = {i: s if isinstance(s, str) else self.rows[i].set_state(s) for i, s in enumerate(states)}
        lost = {number: why for number, why in refused.items() if why}
        self._faults.restore(resets)
        self._table.put([i for i in range(self.envs) if i not in lost], ready)
        for number in lost:
            self._faults.resets[number] += 1
            close_quietly(self.rows[number])
            self.rows[number] = make_rows(self._plan, number, self._faults.seed(number))
            self._table.phase[number] = BUSY
        return lost

    def hurry(self) -> None:
        """Nothing to be done: here an environment that hangs holds everything."""

    def close(self) -> None:
        """Close the environments."""
        rows, self.rows = self.rows, []
        for row in rows:
            row.close()

    def __enter__(self) -> InlineWorkers:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _step(self) -> None:
        table, rows = self._table, self._table.rows
        everyone = table.all_in(BUSY)
        busy = list(range(self.envs)) if everyone else np.flatnonzero(table.phase == BUSY).tolist()
        if not busy:
            return
        if self._parallel:
            self._step_parallel(busy)
            return
        where = slice(None) if everyone else busy  # all: views are cheaper than copies
        answers: dict[int, Any] = {}
        own = self.rows
        for number, native in zip(busy, own[0].natives(rows.action[where]), strict=True):
            try:
                answers[number] = own[number].ask(native)
            except Exception as error:
                self._renew(number, told(error, self._plan, number))
        together = len(answers) == len(busy)
        if not (together and write_together([self.rows[i] for i in busy], list(answers.values()), rows, where)):
            for number, answer in answers.items():
                try:
                    self.rows[number].accept(answer, rows, number)
                except Exception as error:
                    self._renew(number, told(error, self._plan, number))
        table.phase[where] = READY

    def _step_parallel(self, busy: list[int]) -> None:
        for number in busy:
            try:
                self.rows[number].turn(self._table.rows, number)
            except Exception as error:
                self._renew(number, told(error, self._plan, number))
        self._table.phase[busy] = READY

    def _renew(self, number: int, incident: Incident) -> None:
        """Counts the incident, and those of the new environment, until it has written its reset row."""
        rows = self._table.rows
        while True:
            self._faults.count(incident)
            close_quietly(self.rows[number])
            making = True
            try:
                self.rows[number] = make_rows(self._plan, number, self._faults.seed(number))
                making = False
                self.rows[number].turn(rows, number)
                return
            except Exception as error:
                incident = told(error, self._plan, number, making)
