"""Measures how long the environment's calls take, and derives the steps per second. Imports no jax."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np

from dreamer.apps.check.answers import Answer
from dreamer.apps.check.verdicts import Verdict, counted, note, ok, warning
from dreamer.apps.check.walk import Walk, chooser
from dreamer.apps.check.watch import EnvFailed, Watch
from dreamer.runtime.workers.auto import ROUND_TRIP, choose
from dreamer.runtime.workers.interface import WorkerPlan

FRAMES = 10  # frames that are rendered
RUN = 1_000_000  # agent steps of the run whose duration is reported
SLOW = 20.0  # agent steps per second, all workers together


def check(walk: Walk, plan: WorkerPlan, watch: Watch) -> list[Verdict]:
    """Reports the times of step and reset, and the resulting speed of plan.envs environments. Raises EnvFailed."""
    steps, resets = (np.array(walk.seconds[name][1:] or walk.seconds[name]) for name in ("step", "reset"))
    if not walk.whole or not steps.size:
        return []
    verdicts = [ok("step-time", _spread(steps), **_facts(steps)), ok("reset-time", _spread(resets), **_facts(resets))]
    rows = walk.steps / plan.action_repeat + len(walk.seconds["reset"])
    row = (sum(walk.seconds["step"]) + sum(walk.seconds["reset"])) / rows
    return verdicts + _throughput(row, plan, watch)


def _throughput(row: float, plan: WorkerPlan, watch: Watch) -> list[Verdict]:
    """Reports the speed of plan.envs environments. row: the mean seconds per row, resets included."""
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
    side_by_side = min(plan.envs, cores)
    inline, apart = 1 / row, side_by_side / (row + ROUND_TRIP)
    watch.place = "the measurement of workers.backend auto"
    backend, why = watch.call("step", choose, plan)
    rate = inline if backend == "inline" else apart
    workers = f"{counted(plan.envs, 'environment')}: {inline:,.0f} rows/s inline, {apart:,.0f} in processes"
    text = (
        f"{workers} ({counted(cores, 'core')}); workers.backend auto takes {backend}{why}. {RUN:,} rows: "
        f"{_duration(RUN / rate)}, the learner's time not counted"
    )
    facts = {"inline": inline, "processes": apart, "backend": backend, "cores": cores, "workers": plan.envs}
    if rate >= SLOW:
        return [ok("throughput", text, **facts)]
    return [note("throughput", f"{text}; that is slow: a high replay ratio makes more of each row", **facts)]


def render(env: gymnasium.Env, watch: Watch, seed: int) -> list[Verdict]:
    """Checks whether the environment renders frames for a video, and how fast.

    Raises EnvFailed if reset or step fails. If rendering fails, returns a warning.
    """
    if getattr(env, "render_mode", None) != "rgb_array":
        return [note("render", "it draws no pictures (no render_mode 'rgb_array'): no videos of its episodes")]
    watch.place = "drawing"
    obs, info = env.reset(seed=seed)
    answer, choose = Answer(obs, info=info), chooser(env, seed)
    seconds: list[float] = []
    frame: Any = None
    for _ in range(FRAMES):
        try:
            start = time.perf_counter()
            frame = env.render()
            seconds.append(time.perf_counter() - start)
        except EnvFailed as failure:
            return [warning("render", f"{failure}: no videos of its episodes")]
        obs, _, terminated, truncated, info = env.step(choose(answer))
        if terminated or truncated:
            obs, info = env.reset()
        answer = Answer(obs, info=info)
    shape = getattr(frame, "shape", None)
    if getattr(frame, "dtype", None) != np.uint8 or shape is None or len(shape) != 3 or shape[2] != 3:
        got = type(frame).__name__ if shape is None else f"{frame.dtype} {list(shape)}"
        return [warning("render", f"render() returns {got}, a video needs uint8 [height, width, 3]")]
    text = f"{shape[0]}x{shape[1]} pixels, {_spread(np.array(seconds[1:]))}"
    return [ok("render", text, **_facts(np.array(seconds[1:])))]


def _spread(seconds: np.ndarray) -> str:
    return f"{_short(np.median(seconds))} (median), {_short(np.quantile(seconds, 0.99))} (99 %)"


def _facts(seconds: np.ndarray) -> dict[str, float]:
    return {"median_s": float(np.median(seconds)), "p99_s": float(np.quantile(seconds, 0.99))}


def _short(seconds: float) -> str:
    """Returns a time as text with a unit that fits: 12.3 us, 4.56 ms, 7.89 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
