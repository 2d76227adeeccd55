"""Makes, replaces and closes the environments of a run, and reports their incidents. Imports no jax."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dreamer import plugins
from dreamer.config import Config
from dreamer.plugins import EnvName
from dreamer.runtime.workers import Config as WorkersConfig
from dreamer.runtime.workers import Incident, Workers
from dreamer.runtime.workers import make_workers as make_gymnasium_workers
from dreamer.runtime.workers.interface import WorkerPlan

if TYPE_CHECKING:
    from dreamer.runtime.fused.workers import Programs


def make_workers(
    config: WorkersConfig, env: EnvName, options: Mapping[str, Any] | None = None, *, action_repeat: int = 1,
    seed: int = 0, render_mode: str | None = None, folder: str = "", first: int = 0, total: int = 0,
) -> Workers:  # fmt: skip
    """Makes workers for an environment of gymnasium, or for one written in JAX. Arguments as in `workers.make_workers`.

    In this process (backend "auto" or "inline"), the copies of an environment written in JAX run in one program. With
    any other backend, each is an environment of gymnasium. Raises UserError if an environment cannot be made.
    """
    programs = _programs(env, dict(options or {}), action_repeat) if config.backend in ("auto", "inline") else None
    if programs is None:
        return make_gymnasium_workers(
            config, env, options, action_repeat=action_repeat, seed=seed, render_mode=render_mode, folder=folder,
            first=first, total=total,
        )  # fmt: skip
    from dreamer.runtime.fused.workers import JaxWorkers

    plan = WorkerPlan(
        env, dict(options or {}), action_repeat, seed, render_mode, config.envs, folder or os.getcwd(), first, total
    )
    return JaxWorkers(programs, plan)


def _programs(env: EnvName, options: dict[str, Any], action_repeat: int) -> Programs | None:
    """Returns the functions of an environment written in JAX, or None for any other environment."""
    text = json.dumps(options, default=repr)
    if json.loads(text) == options:
        return _remembered(env, text, action_repeat)
    return _new_programs(env, options, action_repeat)


@functools.lru_cache(maxsize=8)
def _remembered(env: EnvName, options: str, action_repeat: int) -> Programs | None:
    # So that evaluations and the members of a population compile an environment once. A Maker belongs to one run.
    return _new_programs(env, json.loads(options), action_repeat)


def _new_programs(env: EnvName, options: dict[str, Any], action_repeat: int) -> Programs | None:
    written = plugins.make_jax_env(env, options)
    if written is None:
        return None
    from dreamer import jax_envs
    from dreamer.runtime.fused.workers import programs_of

    return programs_of(jax_envs.repeat(written, action_repeat))


class Environments:
    """Owns the training environments of a run, and reports their failures (see `Incident`).

    workers: the training environments | incidents: the number of failures that `report_incidents` has reported
    """

    def __init__(
        self, config: Config, env: EnvName, report: Callable[[str], None], first: int = 0, total: int = 0,
        make: Callable[[], Workers] | None = None,
    ):  # fmt: skip
        """env: the environment to use instead of config.env. report: called with a line of text for each incident.

        first, total: as in `WorkerPlan`. make: makes the workers; None: those of `config`.
        Raises UserError if an environment cannot be made.
        """
        self._make = make or functools.partial(
            make_workers, config.workers, env, config.env_options, action_repeat=config.action_repeat,
            seed=config.seed, first=first, total=total,
        )  # fmt: skip
        self._report = report
        self._evaluating: Workers | None = None
        self.incidents = 0
        self.workers = self._make()

    def replace(self) -> Workers:
        """Closes the training environments and returns new ones. Raises UserError if an environment cannot be made."""
        self.workers.close()
        self.workers = self._make()
        return self.workers

    def evaluating(self, workers: Workers) -> None:
        """Makes `shorten_timeouts` also apply to `workers`, the environments of an evaluation."""
        self._evaluating = workers

    def shorten_timeouts(self) -> None:
        """Shortens timeouts, so that hanging environments cannot delay the end of the run. Callable from any thread."""
        self.workers.shorten_timeouts()
        if self._evaluating:
            self._evaluating.shorten_timeouts()

    def report_incidents(self) -> None:
        """Reports and counts the incidents that the training environments had since the last call."""
        incidents = self.workers.incidents()
        self.incidents += len(incidents)
        self.report(incidents)

    def report(self, incidents: Iterable[Incident]) -> None:
        """Reports incidents without counting them, such as those of an evaluation."""
        for incident in incidents:
            self._report(incident.line)

    def close(self) -> None:
        """Closes the training environments, and reports their remaining incidents."""
        self.workers.close()
        self.report_incidents()
