"""A run that learns from datasets only: it makes a number of updates and takes no environment steps.

Its progress, which numbers its checkpoints and its lines of metrics, counts updates instead of env_steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from dreamer.runtime.run import schedule
from dreamer.runtime.run.loop import Run

ENDLESS = 1 << 62
LOGGED = ("speed/updates_per_s", "wait/device_for_learner")  # the rates of a run that does not collect


class OfflineRun(Run):
    """A run that draws batches from the rows of its datasets and trains on them, see `Run`."""

    @property
    def steps(self) -> int:
        """Returns the progress of the run: its updates so far."""
        return self.parts.learner.updates

    def go(self) -> None:
        """Makes updates until the end of the run, and evaluates, logs and saves meanwhile."""
        self.evaluate_if_due()  # a resumed run may have been killed during an evaluation
        self._update_limiter()
        while self.parts.limiter.due() and not self.stopped:
            self.learn()
            self.tend()

    def _update_limiter(self) -> None:
        """Tells the limiter how many updates are due in all; it counts one update for each step."""
        self.parts.limiter.collected(self.parts.config.updates, True)

    def _save_due(self, steps: int) -> bool:
        """Whether a checkpoint is due, by time: no rows are added that could be lost."""
        every = self.parts.config.checkpoint.every
        return schedule.save_due(self.saved, time.monotonic(), steps, every=every, rows=ENDLESS)

    def _numbers(self, rates: Mapping[str, float], steps: int) -> dict[str, float]:
        return {name: rates[name] for name in LOGGED}
