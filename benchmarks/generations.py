"""Generations per minute of World Models' controller: in the dream, and in the environment.

    python -m benchmarks.generations --preset world_models_2018 --generations 3

In the dream: one update of phase 3 is one generation, with all its dreams. V and M are those of two updates, because
their weights do not change the time. But M is made to predict no ends, so that every dream has its full length. In the
environment: the same number of steps, computed from the rate at which one process per core steps the game (extra box2d
for CarRacing), plus the time of `act` for as many environments at once.
Data are synthetic.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.peers.protocol import time_steps
from dreamer.config import Config, load
from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.workers import Config as WorkersConfig
from dreamer.runtime.workers import make_workers
from dreamer.spaces import Spec

BATCH = (4, 128)  # V and M do not learn in phase 3, so the size of the batch matters little


def seconds_of_a_step(config: Config, spec: Spec, envs: int, seconds: float) -> float:
    """Seconds that one step of one environment takes while `envs` processes step side by side with random actions."""
    workers = WorkersConfig("processes", envs=envs)
    with make_workers(workers, config.env, config.env_options) as crew:
        rng = np.random.default_rng(0)

        def turn() -> int:
            ready = crew.receive(1, 1.0)
            crew.send(ready.streams, random_actions(spec.action, rng, len(ready.streams)))
            return len(ready.streams)

        made = 0
        while made < 20 * envs:  # the first rows are resets
            made += turn()
        made, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            made += turn()
        return (time.perf_counter() - began) / made


def without_ends(params: Any) -> Any:
    """Returns parameters with which the done logit of M, its first output, is always far below 0."""

    def change(path: Any, leaf: jax.Array) -> jax.Array:
        is_bias = jax.tree_util.keystr(path).endswith("['rnn']['out']['out']['bias']")
        return leaf.at[0].add(-100.0) if is_bias else leaf

    return jax.tree_util.tree_map_with_path(change, params)


def main() -> None:
    """Measures both ways and prints generations per minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="world_models_2018")
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="for which the environments are stepped")
    args = parser.parse_args()
    path = measure.ROOT / "experiments" / f"{args.preset}.yaml"
    phases = {"agent.world_model.vae_updates": 1, "agent.world_model.rnn_updates": 1}
    config = load(path, overrides={"agent.compute_dtype": "float32", **phases})
    cores = len(os.sched_getaffinity(0))
    with make_workers(WorkersConfig("inline", envs=1), config.env, config.env_options) as crew:
        spec = crew.spec
    behavior = config.agent.behavior
    steps = behavior.population * behavior.rollouts * behavior.dream_length

    subject = measure.build(config.agent, spec, BATCH)
    time_steps(subject.step, 2)  # V and M
    subject.state = subject.state._replace(params=without_ends(subject.state.params))
    time_steps(subject.step, 1)
    times = [ms / 1e3 for ms in time_steps(subject.step, args.generations)]
    dream = statistics.median(times)
    trials = f"population {behavior.population} x {behavior.rollouts} rollouts x {behavior.dream_length} steps"
    print(f"{args.preset}: {trials} on {cores} cores")
    spread = f"{min(times):.2f} to {max(times):.2f}"
    print(f"dream: {dream:.2f} s a generation ({spread}), {60 / dream:.2f} a minute", flush=True)

    acts = measure.policy_times(subject, cores)[f"policy{cores}_ms_median"] / 1e3 / cores
    step = seconds_of_a_step(config, spec, cores, args.seconds)
    whole = steps * (step + acts)
    print(f"environment: {1e3 * step:.2f} ms a step and {1e3 * acts:.2f} ms to act, computed for {steps:,} steps:")
    print(f"  {whole / 60:.1f} min a generation, {60 / whole:.4f} a minute")
    print(f"dream / environment: {whole / dream:.0f}")


if __name__ == "__main__":
    main()
