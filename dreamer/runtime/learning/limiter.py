"""Keeps the replay ratio between a collecting and a training thread: makes each wait for the other. Imports no jax."""

from __future__ import annotations

import threading
import time
from fractions import Fraction
from typing import Any

from dreamer.runtime.learning import ratio

_GLANCE = 0.2  # seconds after which a waiting thread returns, to check for other work


class Limiter:
    """Owns the counts of collected rows and updates, and makes the thread that is ahead wait.

    The learner waits until an update is due. The collector waits while more than `slack` updates are due.
    waited {name: seconds}: how long each thread has waited since the last `drain`, under the names
    "collector_for_learner" and "learner_for_rows".
    """

    def __init__(self, rate: Fraction, envs: int, updates: int = 1):
        """rate: `ratio.updates_per_step`. envs: the number of rows that one turn of the collector may add.

        updates: the number of updates that one call of the device makes where that many are due
        """
        self.rate, self.updates = rate, updates
        # The updates that are due after one turn of all environments, plus one, so that the learner always has work.
        self.slack = max(1 + -(-(envs * rate).numerator // (envs * rate).denominator), updates)
        self._changed = threading.Condition()
        self._steps = 0
        self._credited: Fraction | None = None
        self.waited = {"collector_for_learner": 0.0, "learner_for_rows": 0.0}

    def collected(self, steps: int, ready: bool) -> None:
        """Records that the replay has received `steps` rows in total. ready: whether training may start."""
        with self._changed:
            self._steps = steps
            if ready and self._credited is None and self.rate:
                self._credited = steps - 1 / self.rate  # the first update is due as soon as training may start
            self._changed.notify_all()

    def due(self) -> int:
        """Returns the number of updates that are due now."""
        with self._changed:
            return self._due()

    def at_once(self) -> int:
        """Returns the number of updates for the next call of the device: one, or several if so many are due; or 0.

        There are only these two numbers, so that a run compiles at most two programs.
        """
        due = self.due()
        return self.updates if due >= self.updates else min(due, 1)

    def trained(self, updates: int = 1) -> None:
        """Records that updates were made."""
        with self._changed:
            assert self._credited is not None and self._due() >= updates, "an update was made that was not due"
            self._credited += updates / self.rate
            self._changed.notify_all()

    def wait_for_rows(self) -> None:
        """Blocks the learner until an update is due, for at most 0.2 seconds."""
        self._wait(lambda: self._due() > 0, "learner_for_rows")

    def wait_for_learner(self) -> bool:
        """Blocks the collector until it may collect, for at most 0.2 seconds. Returns whether it may collect."""
        return self._wait(lambda: self._due() <= self.slack, "collector_for_learner")

    def drain(self) -> dict[str, float]:
        """Returns how long the threads have waited since the last call, {name: seconds} as in `waited`."""
        with self._changed:
            waited, self.waited = self.waited, dict.fromkeys(self.waited, 0.0)
            return waited

    def state(self) -> str | None:
        """Returns the env step up to which all updates are made, as text like "801/2"; None before training starts."""
        with self._changed:
            return None if self._credited is None else str(self._credited)

    def load(self, state: str | None) -> None:
        """Restores what `state` returned."""
        with self._changed:
            self._credited = None if state is None else Fraction(state)

    def _due(self) -> int:
        return 0 if self._credited is None else ratio.due(self._credited, self._steps, self.rate)[0]

    def _wait(self, condition: Any, name: str) -> bool:
        with self._changed:
            start = time.monotonic()
            met = self._changed.wait_for(condition, _GLANCE)
            self.waited[name] += time.monotonic() - start
            return met
