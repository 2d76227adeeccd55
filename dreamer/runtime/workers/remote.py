"""Shared code of sets of environments outside this process: turns, timeouts and replacements. No jax."""

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
PATIENCE = 5.0  # seconds in which workers may end by themselves
START = 300.0  # seconds for making an environment, imports included, on top of workers.timeout
LOOK = 1.0  # seconds between two checks for environments that hang


class Home(Protocol):
    """A process or actor in which the environments `numbers` live; they are lost together."""

    @property
    def numbers(self) -> tuple[int, ...]: ...


HomeT = TypeVar("HomeT", bound=Home)


class RemoteWorkers(abc.ABC, Generic[HomeT]):
    """E environments in homes outside this process. A subclass talks to the homes and replaces them."""

    spec: Spec
    streams: int
    backend: str
    _table: Table

    def __init__(self, plan: WorkerPlan, timeout: float, restarts: int):
        self._plan, self._timeout = plan, timeout
        self.envs, self.folder = plan.envs, plan.folder
        self._faults = Faults(plan, restarts)
        self._homes: dict[int, HomeT] = {}  # by number of the environment
        self._since = np.zeros(plan.envs)  # since when each owes an answer; in the future while it may still be made
        self._look = 0.0
        self._making = START

    def receive(self, min_ready: int | None = None, max_wait: float = 0.0) -> Ready:
        """Rows [R] of all E, or of those ready once `min_ready` are ready or `max_wait` seconds are over."""
        self._wait(self._table.wanted(min_ready), max_wait if min_ready is not None else math.inf)
        ready = self._table.take()
        self._faults.delivered(ready, self._table.agents)
        return ready

    def send(self, envs: np.ndarray, actions: np.ndarray) -> None:
        """Answer the rows of streams `envs` [R] with `actions` [R, A]."""
        self._go(self._table.answer(envs, actions))

    def incidents(self) -> list[Incident]:
        """The incidents since the last call."""
        return self._faults.drain()

    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """The environments' own numbers of the episodes that the rows received last have ended, by stream."""
        return self._table.finished

    def seed(self, number: int) -> int:
        """The seed of an environment's current incarnation; each replacement has another."""
        return self._faults.seed(number)

    def render(self, number: int) -> np.ndarray | str | None:
        """An image uint8 [H, W, 3] of a waiting environment; None if it does not draw itself; a reason if it fails."""
        image = self._get_image(number)
        if isinstance(image, str) and image == SILENT:
            name, home = self._plan.named(number), self._homes[number]
            text = f"env {name!r} has ended, or not drawn itself for {self._timeout:g} seconds (workers.timeout)"
            self._replace(home, Incident(home.numbers, "hung", text, ""), forgiven=True)
            return text
        return image

    def restart(self, number: int) -> None:
        """Replaces a waiting environment by a new one with a fresh seed."""
        self._faults.resets[number] += 1
        self._renew(number)

    def states(self) -> WorkersState:
        """The state of every environment, and their rows not received yet."""
        self._wait(self._table.wanted(None), math.inf)
        return WorkersState(self._get_states(), self._table.peek(), self._faults.resets.copy())

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Restores a WorkersState; returns {number: reason} of environments that begin a new episode instead."""
        check_fresh(self._faults.received, states, ready, self.envs, self._table.agents)
        self._wait(self.envs, math.inf)
        told = {number: state for number, state in enumerate(states) if isinstance(state, str)}
        told |= self._put_states({number: state for number, state in enumerate(states) if isinstance(state, bytes)})
        lost = {number: why for number, why in sorted(told.items()) if why}
        self._faults.restore(resets)
        self._table.put([number for number in range(self.envs) if number not in lost], ready)
        for number in lost:
            self._faults.resets[number] += 1
            self._table.phase[number] = BUSY
            self._renew(number)
        return lost

    def shorten_timeouts(self) -> None:
        """Shortens all timeouts to a few seconds. Callable from any thread.

        An environment that has not answered or started by then counts as hung.
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
        """End everything."""

    @abc.abstractmethod
    def _hear(self, seconds: float, count: int) -> int:
        """Takes answers of environments, waiting at most `seconds` for `count`; returns how many rows are ready."""

    @abc.abstractmethod
    def _go(self, numbers: Sequence[int]) -> None:
        """Sends environments their actions in the table, once they are made."""

    @abc.abstractmethod
    def _renew(self, number: int) -> None:
        """Replaces an environment within its home."""

    @abc.abstractmethod
    def _replace(self, home: HomeT, incident: Incident, forgiven: bool = False) -> None:
        """Counts the incident, unless it is forgiven; starts a new home for all environments of one that has failed."""

    @abc.abstractmethod
    def _get_states(self) -> list[bytes | str]:
        """The states of all environments; none of them may be at work."""

    @abc.abstractmethod
    def _put_states(self, states: dict[int, bytes]) -> dict[int, str]:
        """The reason each environment refused its state, "" if it accepted. Keeps their numbers of ended episodes."""

    @abc.abstractmethod
    def _get_image(self, number: int) -> np.ndarray | str | None:
        """An image of an environment that is not at work; SILENT if it does not answer."""

    def _blame(self, incident: Incident, forgiven: bool) -> None:
        (self._faults.forgive if forgiven else self._faults.count)(incident)

    def _wait(self, wanted: int, max_wait: float) -> None:
        """Waits until `wanted` environments are ready; after `max_wait` seconds any ready one is enough."""
        start = time.monotonic()
        ready = self._hear(0.0, self.envs) if max_wait < math.inf else np.count_nonzero(self._table.phase == READY)
        while ready < wanted:
            seconds = LOOK if not self._timeout else min(LOOK, self._timeout / 4)
            if ready:
                left = start + max_wait - time.monotonic()
                if left <= 0:
                    return
                seconds = min(seconds, left)
            ready = self._hear(seconds, wanted - int(ready))

    def _look_for_hung(self) -> None:
        """Replaces the homes of environments that have not answered in time; most calls return without a check."""
        now = time.monotonic()
        if not self._timeout or now < self._look:
            return
        self._look = now + min(LOOK, self._timeout / 4)
        late = (now - self._since > self._timeout) & (self._table.phase == BUSY)
        for number in np.flatnonzero(late).tolist():
            home = self._homes[number]
            if self._since[number] <= now:  # not just replaced together with another environment of its home
                name = self._plan.named(number)
                text = f"env {name!r} has not answered for {self._timeout:g} seconds (workers.timeout)"
                self._replace(home, Incident(home.numbers, "hung", text, ""))
