"""A training loop of one's own, from the parts that `dreamer train` is made of: python docs/own_loop.py"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import dreamer
from dreamer import agent as agents
from dreamer.config import Config
from dreamer.runtime.learning.collector import Collector
from dreamer.runtime.learning.learner import Learner
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.workers import make_workers


def train(config: Config, updates: int, rows_per_update: int = 4) -> Iterator[Mapping[str, float]]:
    """Collects and learns in turns; yields the metrics of each of `updates` updates."""
    size = config.replay.batch_size
    with make_workers(config.workers, config.env, config.env_options, seed=config.seed) as workers:
        agent = agents.make(config.agent, workers.spec)
        replay = Replay(
            workers.spec, agent.storage, config.replay, streams=workers.streams, seed=config.seed,
            env_steps=config.env_steps,
        )  # fmt: skip
        learner = Learner(agent, workers.spec, seed=config.seed, batch_size=size, lockstep=True)
        collector = Collector(agent, learner.part, workers, replay, seed=config.seed)
        while learner.updates < updates:
            for _ in range(rows_per_update):  # of every environment
                collector.collect(learner.snapshot())
            if replay.ready(size):
                batch, rows = replay.sample(size)
                out = learner.fetch(learner.step(learner.place(batch), rows))
                replay.refresh(rows, out.latent)
                yield {name: float(value) for name, value in out.metrics.items()}


if __name__ == "__main__":
    for number, metrics in enumerate(train(dreamer.load_config("quickstart"), updates=1000)):
        print(number, {name: round(metrics[name], 3) for name in ("train/loss", "loss/rew", "dream/return")})
