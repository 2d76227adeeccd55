"""Code shared by sets of environments that run outside this process: receiving, timeouts, replacements.

This module imports no jax.
"""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from dreamer.runtime.workers.faults import Faults
from dreamer.runtime.workers.interface import Incident, Ready, WorkerPlan, WorkersState
from dreamer.runtime.workers.table import BUSY, READY, Table, check_fresh
from dreamer.spaces import Spec

SILENT = "it gave no answer"
PATIENCE = 5.0  # seconds in which workers can end by themselves
START = 300.0  # seconds for making an environment, imports included, in addition to workers.timeout
LOOK = 1.0  # seconds between two checks for environments that hang


class Home(Protocol):
    """A process or actor that runs the environments with these `numbers`. If it fails, all of them are lost."""

    @property
    def numbers(self) -> tuple[int, ...]: ...


HomeT = TypeVar("HomeT", bound=Home)


class RemoteWorkers(abc.ABC, Generic[HomeT]):
    """E environments in processes or actors (their homes). A subclass communicates with the homes and replaces them."""

    spec: Spec
    streams: int
    backend: str
    _table: Table

    def __init__(self, plan: WorkerPlan, timeout: float, restarts: int):
        self._plan, self._timeout = plan, timeout
        self.envs, self.folder = plan.envs, plan.folder
        self._faults = Faults(plan, restarts)
        self._homes: dict[int, HomeT] = {}  # by number of the environment
        self._since = np.zeros(plan.envs)  # time.monotonic() from which each timeout counts; in the future: being made
        self._look = 0.0
        self._making = START

    def receive(self, min_ready: int | None = None, max_wait: float = 0.0) -> Ready:
        """Returns all rows [R] that are ready.

        min_ready None: waits for all E environments and ignores `max_wait`
        min_ready n: waits for n environments; after `max_wait` seconds, one ready environment is enough
        """
        self._wait(self._table.wanted(min_ready), max_wait if min_ready is not None else math.inf)
        ready = self._table.take()
        self._faults.delivered(ready, self._table.agents)
        return ready

    def send(self, envs: np.ndarray, actions: np.ndarray) -> None:
        """Sends `actions` [R, A], one for the last received row of each of the streams `envs` [R]."""
        self._dispatch(self._table.answer(envs, actions))

    def incidents(self) -> list[Incident]:
        """Returns the incidents since the last call of this method."""
        return self._faults.drain()

    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """Returns the environments' own metrics, {stream: {name: value}}.

        They belong to the episodes that end in the last received rows.
        """
        return self._table.finished

    def seed(self, number: int) -> int:
        """Returns the seed of the current copy of environment `number`; each replacement has a new seed."""
        return self._faults.seed(number)

    def render(self, number: int) -> np.ndarray | str | None:
        """Returns an image uint8 [H, W, 3], None if the environment does not render, or the reason (str) for a failure.

        Environment `number` must be waiting for an action. Replaces an environment that hangs.
        """
        image = self._get_image(number)
        if isinstance(image, str) and image == SILENT:
            name, home = self._plan.named(number), self._homes[number]
            text = f"env {name!r} has ended, or has not rendered for {self._timeout:g} seconds (workers.timeout)"
            self._replace(home, Incident(home.numbers, "hung", text, ""), forgiven=True)
            return text
        return image

    def restart(self, number: int) -> None:
        """Replaces environment `number`, which must be waiting for an action, by a new one with a new seed."""
        self._faults.resets[number] += 1
        self._renew(number)

    def states(self) -> WorkersState:
        """Returns the state of every environment, and the rows that `receive` has not returned yet.

        Waits for all environments. Raises RuntimeError if one waits for an action.
        """
        self._wait(self._table.wanted(None), math.inf)
        return WorkersState(self._get_states(), self._table.peek(), self._faults.resets.copy())

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Restores the fields of a WorkersState. Returns {number: reason} for environments that could not be restored.

        They start a new episode with a new seed.
        """
        check_fresh(self._faults.received, states, ready, self.envs, self._table.agents)
        self._wait(self.envs, math.inf)
        reasons = {number: state for number, state in enumerate(states) if isinstance(state, str)}
        reasons |= self._put_states({number: state for number, state in enumerate(states) if isinstance(state, bytes)})
        lost = {number: why for number, why in sorted(reasons.items()) if why}
        self._faults.restore(resets)
        self._table.put([number for number in range(self.envs) if number not in lost], ready)
        for number in lost:
            self._faults.resets[number] += 1
            self._table.phase[number] = BUSY
            self._renew(number)
        return lost

    def shorten_timeouts(self) -> None:
        """Shortens all timeouts to a few seconds. Callable from any thread.

        An environment that does not answer or start within this time counts as hung.
        """
        self._timeout = min(self._timeout or PATIENCE, PATIENCE)
        self._making = PATIENCE
        self._since[:] = np.minimum(self._since, time.monotonic() + self._making)
        self._look = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Ends all environments."""

    @abc.abstractmethod
    def _receive_answers(self, seconds: float, count: int) -> int:
        """Waits at most `seconds` for `count` answers, and handles them. Returns the number of ready environments."""

    @abc.abstractmethod
    def _dispatch(self, numbers: Sequence[int]) -> None:
        """Sends environments their actions from the table. An environment that is being made gets its actions later."""

    @abc.abstractmethod
    def _renew(self, number: int) -> None:
        """Replaces an environment by a new one in the same home."""

    @abc.abstractmethod
    def _replace(self, home: HomeT, incident: Incident, forgiven: bool = False) -> None:
        """Starts a new home for the environments of a failed home. Counts the incident unless `forgiven`."""

    @abc.abstractmethod
    def _get_states(self) -> list[bytes | str]:
        """Returns the states of all environments. No environment may be stepping."""

    @abc.abstractmethod
    def _put_states(self, states: dict[int, bytes]) -> dict[int, str]:
        """Restores the states {number: state}. Returns {number: reason for a failure}, with "" for success.

        Stores the environments' own metrics of ended episodes in the table.
        """

    @abc.abstractmethod
    def _get_image(self, number: int) -> np.ndarray | str | None:
        """Returns the result of `render` for an environment that is not stepping, or SILENT if it does not answer."""

    def _blame(self, incident: Incident, forgiven: bool) -> None:
        (self._faults.forgive if forgiven else self._faults.count)(incident)

    def _wait(self, wanted: int, max_wait: float) -> None:
        """Waits until `wanted` environments are ready. After `max_wait` seconds, one ready environment is enough."""
        start = time.monotonic()
        look = max_wait < math.inf
        ready = self._receive_answers(0.0, self.envs) if look else np.count_nonzero(self._table.phase == READY)
        while ready < wanted:
            seconds = LOOK if not self._timeout else min(LOOK, self._timeout / 4)
            if ready:
                left = start + max_wait - time.monotonic()
                if left <= 0:
                    return
                seconds = min(seconds, left)
            ready = self._receive_answers(seconds, wanted - int(ready))

    def _look_for_hung(self) -> None:
        """Replaces the homes of environments that have not answered in time. Skips the check if the last was recent."""
        now = time.monotonic()
        if not self._timeout or now < self._look:
            return
        self._look = now + min(LOOK, self._timeout / 4)
        late = (now - self._since > self._timeout) & (self._table.phase == BUSY)
        for number in np.flatnonzero(late).tolist():
            home = self._homes[number]
            if self._since[number] <= now:  # it was not just replaced with another environment of its home
                name = self._plan.named(number)
                text = f"env {name!r} has not answered for {self._timeout:g} seconds (workers.timeout)"
                self._replace(home, Incident(home.numbers, "hung", text, ""))
