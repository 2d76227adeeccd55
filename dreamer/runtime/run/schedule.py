"""Decides when a run logs, saves and evaluates, with pure functions of times and step counters. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

NEVER = -1  # stands for the step of the newest checkpoint if there is none


class Mark(NamedTuple):
    """The time and the counters of a run when it wrote a line of metrics.

    time: time.monotonic() seconds | env_steps, updates: the counters of the run
    idle: the total seconds without an update in flight
    """

    time: float
    env_steps: int
    updates: int
    idle: float


class Saved(NamedTuple):
    """The newest checkpoint.

    time: when it was saved, in time.monotonic() seconds | step: its number; NEVER (-1): there is no checkpoint yet
    env_steps, updates: the counters of the run when it was saved; NEVER if they are not known
    """

    time: float
    step: int
    env_steps: int = NEVER
    updates: int = NEVER


def log_due(logged: Mark, now: float, *, every: float) -> bool:
    """Whether a line of metrics is due.

    logged: the last line. now: the current time.monotonic(). every: the seconds between two lines.
    """
    return now - logged.time >= every


def save_due(saved: Saved, now: float, env_steps: int, *, every: float, rows: int) -> bool:
    """Whether a checkpoint is due, by time or by rows.

    saved: the last checkpoint. now: the current time.monotonic(). env_steps: the current step.
    every: the seconds between two checkpoints. rows: the maximum number of environment steps between two checkpoints.
    """
    return env_steps - max(saved.step, 0) >= rows or now - saved.time >= every


def next_checkpoint(saved: Saved, env_steps: int, updates: int) -> int | None:
    """Returns the number of the checkpoint to save now, or None if the newest one has these counters already.

    The number is env_steps, or one more than the newest number if that is not below env_steps: a high replay ratio
    makes hundreds of updates between two environment steps.
    """
    if (env_steps, updates) == (saved.env_steps, saved.updates):
        return None
    return max(env_steps, saved.step + 1)


def first_evaluation(every: int, last: int) -> int:
    """Returns the step of the first evaluation.

    every: the steps between two evaluations; 0: evaluate only at the end. last: the last step of the run.
    """
    return every or last


def evaluation_due(due: int, env_steps: int, *, last: int) -> bool:
    """Whether the evaluation planned for step `due` must be made at `env_steps`. False from step `last` on.

    last: the last step of the run, at which `Run.finish` evaluates.
    """
    return due <= env_steps < last


def rates(before: Mark, now: Mark, waited: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics speed/<name> (counts per second) and wait/<name> (fractions of the time spent waiting).

    before, now: the Marks of two lines of metrics. The results cover the time between them.
    waited {name: seconds}: how long threads waited in this time.
    """
    seconds = max(now.time - before.time, 1e-9)
    waited = {**waited, "device_for_learner": now.idle - before.idle}
    return {
        "speed/env_steps_per_s": (now.env_steps - before.env_steps) / seconds,
        "speed/updates_per_s": (now.updates - before.updates) / seconds,
        **{f"wait/{name}": share / seconds for name, share in waited.items()},
    }
