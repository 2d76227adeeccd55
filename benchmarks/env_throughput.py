"""Environment steps per second with random actions, compared with gymnasium's vector environments in the same run.

    python benchmarks/env_throughput.py [--seconds 1] [--repeats 5] [--envs 1 4 16]

Measures CartPole-v1, and 64x64x3 images whose step takes 3 ms of a core. All contenders stay open and run alternately,
so that drifting machine speed affects all of them equally; the table shows medians over the repeats. Our workers run in
lockstep, and also like the collector, which continues once half of the environments are ready or after 5 ms. The last
table adds one environment whose step waits 50 times as long, and compares the rates with and without it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np

from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.workers import Config, make_workers

COST = 3e-3  # seconds of a pixel step
Turn = Callable[[], int]  # advances a set of environments, returns the number of steps


class Pixels(gymnasium.Env):
    """Image observations; a step takes `COST` seconds of a core. Environment 0 waits `slow` times as long instead."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(4)

    def __init__(self, slow: float = 0.0):
        self.slow, self.wait, self.time = slow, 0.0, 0
        self.image = np.zeros((64, 64, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode; seed 0 makes this the slow environment."""
        super().reset(seed=seed)
        if seed == 0:
            self.wait = self.slow * COST
        self.time = 0
        return self.image, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Keep a core busy, or wait as if for an external simulator."""
        if self.wait:
            time.sleep(self.wait)
        else:
            end = time.thread_time() + COST
            while time.thread_time() < end:
                self.image = (self.image + action + 1).astype(np.uint8)
        self.time += 1
        return self.image, 0.0, False, self.time >= 500, {}


def pixels(slow: float = 0.0) -> gymnasium.Env:
    """The environment factory that workers call."""
    return Pixels(slow)


def ours(stack: contextlib.ExitStack, backend: str, name: str, envs: int, lockstep: bool, **options: float) -> Turn:
    """Returns a function that advances our workers by one turn."""
    crew = stack.enter_context(make_workers(Config(backend, envs=envs), name, options))  # type: ignore[arg-type]
    if backend == "auto":
        print(f"  {crew.describe()}", flush=True)
    actions = random_actions(crew.spec.action, np.random.default_rng(0), 256 * envs).reshape(256, envs, -1)
    least, count = (None if lockstep else max(1, envs // 2)), 0

    def turn() -> int:
        nonlocal count
        ready = crew.receive(least, 0.005)
        count += 1
        crew.send(ready.streams, actions[count % len(actions)][: len(ready.streams)])
        return len(ready.streams)

    return turn


def theirs(stack: contextlib.ExitStack, kind: str, make: Callable[[], gymnasium.Env], envs: int) -> Turn:
    """Returns a function that advances one of gymnasium's vector environments by one turn."""
    vector = getattr(gymnasium.vector, kind)([make] * envs)
    stack.callback(vector.close)
    vector.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = rng.integers(vector.single_action_space.n, size=(256, envs))
    count = 0

    def turn() -> int:
        nonlocal count
        count += 1
        vector.step(actions[count % len(actions)])
        return envs

    return turn


def rate(turn: Turn, seconds: float) -> float:
    """Steps per second."""
    start, steps = time.perf_counter(), 0
    while (now := time.perf_counter()) < start + seconds:
        steps += turn()
    return steps / (now - start)


def medians(turns: dict[str, Turn], seconds: float, repeats: int) -> dict[str, float]:
    """The median rate of each contender, run alternately after a warm-up."""
    for turn in turns.values():
        rate(turn, seconds / 4)
    rounds = [{name: rate(turn, seconds) for name, turn in turns.items()} for _ in range(repeats)]
    return {name: statistics.median(one[name] for one in rounds) for name in turns}


def kinds() -> Iterator[tuple[str, str, Callable[[], gymnasium.Env]]]:
    """Yields (label, our env name, factory for gymnasium); gymnasium's checker is off on both sides."""
    yield "CartPole-v1", "CartPole-v1", functools.partial(gymnasium.make, "CartPole-v1", disable_env_checker=True)
    yield "pixels 3 ms", "env_throughput:pixels", pixels


def main() -> None:
    """Prints a table for each kind of environment, and one for the slow environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--envs", type=int, nargs="*", default=(1, 4, 16), help="if empty: only the slow environment")
    args = parser.parse_args()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {load}, ", end="")
    print(f"Python {platform.python_version()}, gymnasium {gymnasium.__version__}")
    for label, name, make in kinds():
        for envs in args.envs:
            print(f"{label} x {envs}, steps per second", flush=True)
            with contextlib.ExitStack() as stack:
                turns = {
                    "SyncVectorEnv": theirs(stack, "SyncVectorEnv", make, envs),
                    "AsyncVectorEnv": theirs(stack, "AsyncVectorEnv", make, envs),
                    "ours, auto": ours(stack, "auto", name, envs, False),
                    "ours, inline": ours(stack, "inline", name, envs, True),
                    "ours, processes in lockstep": ours(stack, "processes", name, envs, True),
                    "ours, processes as ready": ours(stack, "processes", name, envs, False),
                }
                for name, value in medians(turns, args.seconds, args.repeats).items():
                    print(f"  {name:28} {value:10,.0f}", flush=True)
    slowest(args.seconds * 2, args.repeats)


def slowest(seconds: float, repeats: int) -> None:
    """Measures how one environment that waits 50 times as long slows 15 others."""
    print("pixels 3 ms x 15, and with one more that waits 150 ms: steps per second", flush=True)
    with contextlib.ExitStack() as stack:
        name, slow = "env_throughput:pixels", functools.partial(pixels, slow=50.0)
        turns = {
            "AsyncVectorEnv 15": theirs(stack, "AsyncVectorEnv", pixels, 15),
            "AsyncVectorEnv 15 + 1": theirs(stack, "AsyncVectorEnv", slow, 16),
            "ours 15": ours(stack, "processes", name, 15, False),
            "ours 15 + 1": ours(stack, "processes", name, 16, False, slow=50.0),
        }
        found = medians(turns, seconds, repeats)
        for name in ("AsyncVectorEnv", "ours"):
            alone, both = found[f"{name} 15"], found[f"{name} 15 + 1"]
            print(f"  {name:28} {alone:10,.0f} {both:10,.0f}  {both / alone:6.1%}", flush=True)


if __name__ == "__main__":
    main()
