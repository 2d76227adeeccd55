"""Runs all environments in this process, one after the other. Imports no jax."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.env.parallel import ParallelRows
from dreamer.runtime.env.rows import empty_step, write_together
from dreamer.runtime.workers.faults import (
    Faults,
    as_error,
    close_in_time,
    envs_in_words,
    incident_of,
    make_rows,
    picture_of,
)
from dreamer.runtime.workers.interface import Incident, Ready, WorkerPlan, WorkersState
from dreamer.runtime.workers.own_thread import OwnThread
from dreamer.runtime.workers.screen import NoScreen
from dreamer.runtime.workers.table import BUSY, READY, Table, check_fresh


class InlineWorkers:
    """Runs the environments in `rows`. `receive` steps all that were sent an action, and returns their rows.

    An environment that raises an error or violates its space is replaced. If an environment kills its process or hangs,
    this process dies or hangs, too; use worker processes for such environments. Observations are copied after all
    environments have stepped. An array that several environments return and overwrite thus has the values of the last
    environment, as in gymnasium's SyncVectorEnv. Environments run in the caller's thread. If an environment was made in
    one thread and fails in another, all environments run in one separate thread afterwards.
    """

    backend = "inline"

    def __init__(self, plan: WorkerPlan, restarts: int = 0, why: str = ""):
        """Makes all environments. Raises UserError if one cannot be made. Arguments as in `ProcessWorkers`."""
        self._plan, self._why = plan, why
        self.envs, self.folder = plan.envs, plan.folder
        self._thread: OwnThread | None = None
        self._home = [0] * plan.envs  # the thread that made each environment
        self._screen = NoScreen(plan.render_mode)
        self._faults = Faults(plan, restarts)
        self.rows: list[Any] = []  # EnvRows, or ParallelRows
        try:
            for number in range(plan.envs):
                self.rows.append(None)
                self._make(number)
        except (KeyboardInterrupt, UserError):
            self.close()
            raise
        except BaseException as error:  # including sys.exit
            number = len(self.rows) - 1
            self.close()
            raise as_error(incident_of(error, plan, number, making=True)) from error
        self.spec = self.rows[0].spec
        self.streams = plan.envs * self.spec.agents
        self._parallel = isinstance(self.rows[0], ParallelRows)
        self._table = Table(empty_step(self.spec, self.streams), self.spec.agents)

    def receive(self, min_ready: int | None = None, max_wait: float = 0.0) -> Ready:
        """Steps all environments that were sent an action, and returns their next rows [R].

        min_ready None: raises RuntimeError if an environment still waits for its action
        min_ready n: raises RuntimeError if all environments wait for their actions; the value of n has no effect
        max_wait: has no effect
        """
        self._table.wanted(min_ready)
        self._do(self._step)
        ready = self._table.take()
        self._faults.delivered(ready, self._table.agents)
        return ready

    def send(self, envs: np.ndarray, actions: np.ndarray) -> None:
        """Sends `actions` [R, A], one for the last received row of each of the streams `envs` [R]."""
        self._table.answer(envs, actions)

    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """Returns the environments' own metrics, {stream: {name: value}}.

        They belong to the episodes that end in the last received rows.
        """
        return self._table.finished

    def render(self, number: int) -> np.ndarray | str | None:
        """Returns an image uint8 [H, W, 3], None if the environment does not render, or the reason (str) for a failure.

        Environment `number` must be waiting for an action.
        """
        return self._do(picture_of, self.rows[number])

    def restart(self, number: int) -> None:
        """Replaces environment `number`, which must be waiting for an action, by a new one with a new seed."""
        self._faults.resets[number] += 1
        self._discard(number)
        self._do(self._make, number)

    def incidents(self) -> list[Incident]:
        """Returns the incidents since the last call of this method."""
        return self._faults.drain()

    def seed(self, number: int) -> int:
        """Returns the seed of the current copy of environment `number`; each replacement has a new seed."""
        return self._faults.seed(number)

    def describe(self) -> str:
        """Returns one line of text that says where the environments run, and why."""
        return f"workers: {envs_in_words(self.envs, self.spec.agents)} in the main process{self._why}"

    def states(self) -> WorkersState:
        """Returns the state of every environment, and the rows that `receive` has not returned yet.

        First steps the environments that were sent an action. Raises RuntimeError if one waits for an action.
        """
        self._table.wanted(None)
        self._do(self._step)
        states = self._do(lambda: [rows.get_state() for rows in self.rows])
        return WorkersState(states, self._table.peek(), self._faults.resets.copy())

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Restores the fields of a WorkersState. Returns {number: reason} for environments that could not be restored.

        They start a new episode with a new seed.
        """
        check_fresh(self._faults.received, states, ready, self.envs, self._table.agents)
        # Reset first, as worker processes do: some environments cannot restore a state before a reset.
        self._do(self._step)
        refused = {i: s if isinstance(s, str) else self._do(self.rows[i].set_state, s) for i, s in enumerate(states)}
        lost = {number: why for number, why in refused.items() if why}
        self._faults.restore(resets)
        kept = [i for i in range(self.envs) if i not in lost]
        self._table.put(kept, ready)
        for number in kept:
            self._table.note(number, self.rows[number].finished(), self._plan.named(number))
        for number in lost:
            self.restart(number)
            self._table.phase[number] = BUSY
        return lost

    def shorten_timeouts(self) -> None:
        """Does nothing, because an environment that hangs inline blocks the whole process."""

    def close(self) -> None:
        """Closes the environments."""
        while self.rows:
            if self.rows[-1] is not None:
                self._discard(len(self.rows) - 1)
            self.rows.pop()
        if self._thread is not None:
            self._thread.close()
            self._thread = None
        self._screen.close()

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
        where = slice(None) if everyone else busy  # a slice for all, because views are cheaper than copies
        answers: dict[int, Any] = {}
        own = self.rows
        for number, native in zip(busy, own[0].natives(rows.action[where]), strict=True):
            try:
                answers[number] = own[number].ask(native)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._renew(number, incident_of(error, self._plan, number))
        together = len(answers) == len(busy)
        if not (together and write_together([self.rows[i] for i in busy], list(answers.values()), rows, where)):
            for number, answer in answers.items():
                try:
                    self.rows[number].accept(answer, rows, number)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    self._renew(number, incident_of(error, self._plan, number))
        self._note()
        table.phase[where] = READY

    def _step_parallel(self, busy: list[int]) -> None:
        for number in busy:
            try:
                self.rows[number].turn(self._table.rows, number)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._renew(number, incident_of(error, self._plan, number))
        self._note()
        self._table.phase[busy] = READY

    def _renew(self, number: int, incident: Incident) -> None:
        """Counts an incident and replaces the environment. Repeats both until a new one has written its reset row."""
        if self._thread is None and self._home[number] != threading.get_ident():
            self._thread = OwnThread()
            if re.search("thread|context", incident.text, re.IGNORECASE):
                hint = "; it was made in another thread: from now on all environments run in one separate thread"
                incident = incident._replace(text=incident.text + hint)
        rows = self._table.rows
        while True:
            self._faults.count(incident)
            self._discard(number)
            making = True
            try:
                self._do(self._make, number)
                making = False
                self._do(self.rows[number].turn, rows, number)
                return
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                incident = incident_of(error, self._plan, number, making)

    def _do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls `function` in the thread of the environments."""
        return self._thread.call(function, *args) if self._thread is not None else function(*args)

    def _make(self, number: int) -> None:
        self.rows[number] = make_rows(self._plan, number, self._faults.seed(number))
        self._home[number] = threading.get_ident()

    def _discard(self, number: int) -> None:
        """Closes an environment in its thread. If that hangs, abandons the environment and the thread."""
        hung = close_in_time(self.rows[number], self._plan, number, self._thread)
        if hung:
            self._faults.note(hung)
            self._thread = None if self._thread is None else OwnThread()

    def _note(self) -> None:
        """Stores the environments' own metrics of the episodes that end in their new rows."""
        table = self._table
        if not np.count_nonzero(table.rows.is_last):
            return
        for number in dict.fromkeys((np.flatnonzero(table.rows.is_last) // table.agents).tolist()):
            if table.phase[number] == BUSY and (finished := self.rows[number].finished()):
                table.note(number, finished, self._plan.named(number))
