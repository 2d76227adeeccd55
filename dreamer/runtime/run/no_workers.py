"""Workers without environments, for a run that learns from data only, and the spaces of the environment to evaluate."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreamer.config import NO_ENV, Config
from dreamer.plugins import EnvName
from dreamer.runtime.env.rows import empty_step
from dreamer.runtime.run import evaluation
from dreamer.runtime.workers import Incident, Ready, WorkersState
from dreamer.spaces import Spec


def spec_of(config: Config, env: EnvName) -> Spec | None:
    """Returns the spec of the environment of evaluations, which is made and closed; None: there is none."""
    if env == NO_ENV:
        return None
    workers = evaluation.make_eval_workers(
        env, config.env_options, episodes=1, action_repeat=config.action_repeat, seed=config.seed, record=False
    )
    with contextlib.closing(workers):
        return workers.spec


class NoWorkers:
    """Workers without an environment, for a run that does not collect; see `Workers`."""

    def __init__(self, spec: Spec, backend: str):
        """spec: that of the datasets | backend: where the environments of evaluations run"""
        self.spec, self.backend = spec, backend
        self.envs = self.streams = 0
        self.folder = os.getcwd()

    def receive(self, min_ready: int | None = None, max_wait: float = 0.0) -> Ready:
        """Raises RuntimeError: there is nothing to receive."""
        raise RuntimeError("a run that learns from data only has no environments to act in")

    def send(self, streams: np.ndarray, actions: np.ndarray) -> None:
        """Raises RuntimeError: there is nothing to act in."""
        raise RuntimeError("a run that learns from data only has no environments to act in")

    def incidents(self) -> list[Incident]:
        """Returns no incidents."""
        return []

    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """Returns no metrics."""
        return {}

    def seed(self, number: int) -> int:
        """Raises IndexError: there is no environment."""
        raise IndexError(number)

    def render(self, number: int) -> None:
        """Returns no image."""

    def restart(self, number: int) -> None:
        """Raises IndexError: there is no environment."""
        raise IndexError(number)

    def describe(self) -> str:
        """Returns a line of text."""
        return "workers: none, since nothing is collected"

    def states(self) -> WorkersState:
        """Returns the state of no environment."""
        return WorkersState([], Ready(np.zeros(0, np.int64), empty_step(self.spec, 0)), np.zeros(0, np.int64))

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Restores nothing, and loses nothing."""
        return {}

    def shorten_timeouts(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""

    def __enter__(self) -> NoWorkers:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
