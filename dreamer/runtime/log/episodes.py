"""Tracks the episodes of a run's environments, and averages the metrics of finished ones. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from dreamer.steps import Step


class Episode(NamedTuple):
    """A finished episode.

    env: the index of its environment | episode_return: the sum of its rewards
    length: its number of env steps (the reset row does not count)
    metrics: the environment's own metrics by name, such as "is_success", see `own_numbers`
    """

    env: int
    episode_return: float
    length: int
    metrics: Mapping[str, float] = MappingProxyType({})


class EpisodeTracker:
    """Sums the rewards and counts the steps of the current episode of each environment."""

    def __init__(self, envs: int):
        self._returns = np.zeros(envs, np.float64)
        self._lengths = np.zeros(envs, np.int64)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state of the current episodes: {"returns": [E] float64, "lengths": [E] int64}."""
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what `state` returned: {"returns": [E], "lengths": [E]}."""
        self._returns, self._lengths = state["returns"].copy(), state["lengths"].copy()

    @property
    def longest(self) -> int:
        """Returns the number of steps of the longest current episode."""
        return int(self._lengths.max())

    def running(self, env: int) -> Episode:
        """Returns the current, unfinished episode of an environment."""
        return Episode(int(env), float(self._returns[env]), int(self._lengths[env]))

    def observe(
        self, step: Step, envs: np.ndarray | None = None, finished: Mapping[int, Mapping[str, float]] | None = None
    ) -> list[Episode]:
        """Adds the next row of each environment in `envs`. Returns the episodes that end in these rows.

        step: a Step of R rows | envs [R]: the index of the environment of each row; None: one row for each, in order
        finished {env: metrics}: the environment's own metrics of the episodes that end, from `Workers.finished`
        """
        envs = np.arange(len(self._returns)) if envs is None else envs
        first, last = np.asarray(step.is_first, bool), np.asarray(step.is_last, bool)
        self._returns[envs] = np.where(first, 0.0, self._returns[envs] + np.asarray(step.reward))
        self._lengths[envs] = np.where(first, 0, self._lengths[envs] + 1)
        ended = [self.running(env) for env in envs[last]]
        return [e._replace(metrics=finished[e.env]) if e.env in finished else e for e in ended] if finished else ended


def episode_metrics(episodes: list[Episode]) -> dict[str, float]:
    """Returns the means over finished episodes, {metric name: mean}, or {} if there are no episodes.

    The metrics are "episode/return", "episode/length" and the environment's own metrics as "episode/<name>".
    """
    if not episodes:
        return {}
    return {
        "episode/return": float(np.mean([episode.episode_return for episode in episodes])),
        "episode/length": float(np.mean([episode.length for episode in episodes])),
        **{f"episode/{name}": value for name, value in mean_of([episode.metrics for episode in episodes]).items()},
    }


def mean_of(episodes: list[Mapping[str, float]]) -> dict[str, float]:
    """Returns {name: mean over the episodes that have a metric of this name}. episodes: the metrics of each episode."""
    names = dict.fromkeys(name for own in episodes for name in own)
    return {name: float(np.mean([own[name] for own in episodes if name in own])) for name in names}
