"""Counts the episodes of an evaluation: a fixed share in each environment. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dreamer.runtime.log.episodes import Episode, EpisodeTracker
from dreamer.runtime.workers import Workers
from dreamer.steps import Step


class Shares:
    """Counts the same number of episodes in every environment, so that short episodes are not favoured.

    quota [E * agents]: how many episodes of each stream count. With several agents per environment, each agent plays
    the share of its environment.
    """

    def __init__(self, workers: Workers, episodes: int, max_steps: int):
        """max_steps: the steps after which an episode that counts is cut off; 0: none is"""
        envs, agents = workers.envs, workers.spec.agents
        self.quota = np.array([episodes // envs + (i < episodes % envs) for i in range(envs)]).repeat(agents)
        self._workers, self._max_steps, self._cut = workers, max_steps, 0
        self._tracker, self._playing = EpisodeTracker(workers.streams), np.zeros(workers.streams, bool)
        self._done: list[list[tuple[Episode, int]]] = [[] for _ in range(workers.streams)]

    @property
    def over(self) -> bool:
        """Whether every stream has finished its share."""
        return all(len(own) >= share for own, share in zip(self._done, self.quota, strict=True))

    @property
    def finished(self) -> int:
        """Returns the number of finished episodes."""
        return sum(map(len, self._done))

    def observe(self, ready: np.ndarray, step: Step, own: Mapping[int, Mapping[str, float]]) -> list[int]:
        """Adds rows. Restarts the environments in which an episode that counts has become too long, and returns these.

        ready [R]: the streams of the rows | step: the rows, of which only rewards and flags are read
        own {stream: metrics}: the environments' own metrics of the episodes that end, as from `Workers.finished`
        """
        workers, agents = self._workers, self._workers.spec.agents
        for episode in self._tracker.observe(step, ready, own):
            self._done[episode.env].append((episode, workers.seed(episode.env // agents)))
        self._playing[ready] = ~step.is_last
        endless = self._endless(agents)
        for env in endless:
            for stream in range(env * agents, (env + 1) * agents):
                if self._playing[stream]:
                    self._done[stream].append((self._tracker.running(stream), workers.seed(env)))
                    self._cut += 1
            workers.restart(env)
        return endless

    def kept(self) -> tuple[list[Episode], list[int]]:
        """Returns the episodes that count, in the order of the environments, and the seed of each."""
        kept = [pair for own, share in zip(self._done, self.quota, strict=True) for pair in own[:share]]
        return [episode for episode, _ in kept], [seed for _, seed in kept]

    def lines(self) -> list[str]:
        """Returns lines to print about episodes that were cut off."""
        after = f"after {self._max_steps:,} steps (eval.max_steps)"
        return [f"{self._cut} episodes of the evaluation were cut off {after}"] if self._cut else []

    def _endless(self, agents: int) -> list[int]:
        """Returns the environments to restart. Returns [] if max_steps is 0, which means no limit."""
        if not self._max_steps or self._tracker.longest < self._max_steps:
            return []
        open_ = [stream for stream, own in enumerate(self._done) if len(own) < self.quota[stream]]
        long = [s for s in open_ if self._playing[s] and self._tracker.running(s).length >= self._max_steps]
        return sorted({stream // agents for stream in long})
