"""The environments of a run, in the loop and in its evaluations: made, replaced, reported on and closed. No jax."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from dreamer.config import Config
from dreamer.plugins import EnvName
from dreamer.runtime.workers import Incident, Workers, make_workers


class Environments:
    """Owns the environments that a run trains in, and shortens the timeouts of those of its evaluation too.

    workers: the set to train in | incidents: reported so far by `report_incidents`
    """

    def __init__(self, config: Config, env: EnvName, report: Callable[[str], None]):
        """env: in place of config.env. report: takes the line of each incident.

        Raises UserError when an environment cannot be made.
        """
        self._make = functools.partial(
            make_workers, config.workers, env, config.env_options, action_repeat=config.action_repeat, seed=config.seed
        )
        self._report = report
        self._evaluating: Workers | None = None
        self.incidents = 0
        self.workers = self._make()

    def replace(self) -> Workers:
        """Closes the set and returns a new one in its place. Raises UserError when one cannot be made."""
        self.workers.close()
        self.workers = self._make()
        return self.workers

    def evaluating(self, workers: Workers) -> None:
        """From now on `shorten_timeouts` reaches these workers of an evaluation too."""
        self._evaluating = workers

    def shorten_timeouts(self) -> None:
        """Keeps environments that hang from holding up the end of the run. From any thread."""
        self.workers.hurry()
        if self._evaluating:
            self._evaluating.hurry()

    def report_incidents(self) -> None:
        """Reports and counts what has happened to the environments since the last call."""
        incidents = self.workers.incidents()
        self.incidents += len(incidents)
        self.report(incidents)

    def report(self, incidents: Iterable[Incident]) -> None:
        """Reports incidents of other environments, which do not count."""
        for incident in incidents:
            self._report(incident.line)

    def close(self) -> None:
        """Closes the set, and reports what happened to it meanwhile."""
        self.workers.close()
        self.report_incidents()
