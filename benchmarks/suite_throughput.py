"""Steps per second of every installed suite with the settings of its preset, random actions and no learner.

    python benchmarks/suite_throughput.py [--seconds 3] [--repeats 3] [--envs 8] [experiments/atari.yaml ...]

Measures one environment in this process, then `--envs` in worker processes, which need not wait for each other. A step
is one row of the replay, however many frames an action is held. Prints medians over the repeats; environments are reset
before the clock starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import platform
import statistics

import gymnasium
import numpy as np
from env_throughput import Turn, rate

from dreamer.config import Config, load
from dreamer.errors import UserError
from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.workers import Config as WorkersConfig
from dreamer.runtime.workers import make_workers

PRESETS = (
    "quickstart", "box2d", "mujoco", "dmc_proprio", "dmc_vision", "atari", "atari100k", "crafter", "minigrid", "bsuite",
    "memory_maze", "popgym", "vizdoom", "metaworld", "nethack",
    "pettingzoo",
)  # fmt: skip
FOLDER = pathlib.Path(__file__).parent.parent / "experiments"


def turn_of(stack: contextlib.ExitStack, config: Config, backend: str, envs: int) -> Turn:
    """Returns a function that advances the workers by one turn and returns the number of rows, one for each agent.

    Like the collector, a turn waits for half of the workers, or for 5 ms.
    """
    workers = WorkersConfig(backend, envs=envs)  # type: ignore[arg-type]
    crew = make_workers(workers, config.env, config.env_options, action_repeat=config.action_repeat)
    stack.enter_context(crew)
    rng, streams = np.random.default_rng(0), crew.streams
    actions = random_actions(crew.spec.action, rng, 256 * streams).reshape(256, streams, -1)
    count = 0

    def turn() -> int:
        nonlocal count
        ready = crew.receive(max(1, envs // 2), 0.005)
        count += 1
        crew.send(ready.streams, actions[count % len(actions)][: len(ready.streams)])
        return len(ready.streams)

    return turn


def measure(config: Config, backend: str, envs: int, seconds: float, repeats: int) -> float:
    """The median steps per second."""
    with contextlib.ExitStack() as stack:
        turn = turn_of(stack, config, backend, envs)
        made = 0
        while made < 4 * envs:  # the first rows are resets
            made += turn()
        return statistics.median(rate(turn, seconds) for _ in range(repeats))


def main() -> None:
    """Prints a row for each preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("presets", nargs="*", default=[str(FOLDER / f"{name}.yaml") for name in PRESETS])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--envs", type=int, default=8)
    args = parser.parse_args()
    busy = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {busy}, ", end="")
    print(f"Python {platform.python_version()}, gymnasium {gymnasium.__version__}")
    print(f"| preset | environment | action repeat | one, inline | {args.envs}, processes |\n|---|---|---|---|---|")
    for path in args.presets:
        config = load(path)
        try:
            found = [
                measure(config, backend, envs, args.seconds, args.repeats)
                for backend, envs in (("inline", 1), ("processes", args.envs))
            ]
        except UserError as error:
            print(f"| {pathlib.Path(path).stem} | {config.env} | not measured: {error} | | |", flush=True)
            continue
        name, repeat = pathlib.Path(path).stem, config.action_repeat
        print(f"| {name} | {config.env} | {repeat} | {found[0]:,.0f} | {found[1]:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
