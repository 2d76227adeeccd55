"""The configuration of a sweep on a Ray cluster, and the checks of it. Imports no jax and no ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.spec import Sweep
from dreamer.apps.sweep.trials import Trial
from dreamer.errors import UserError
from dreamer.fields import at_least, between, get

Scheduler = Literal["none", "asha", "pbt"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the trials run on Ray, what each trial takes, and which trials continue."""

    address: str = ""
    """HOST:PORT of a cluster to join, or auto; empty: start one on this machine, which ends with the command."""
    cpus: Annotated[int, at_least(0)] = 0
    """CPUs of a program; 0 = an even share of a machine for each of its GPUs; without GPUs, an even share of all CPUs
    for each of --jobs, or 1."""
    gpus: Annotated[float, at_least(-1)] = -1.0
    """GPUs of a program, also a part of one such as 0.5; -1 = one if the cluster has any."""
    scheduler: Scheduler = "none"
    """asha: stop trials with low scores early (asynchronous successive halving); pbt: from time to time, let the worst
    trials continue from the best with other values (population-based training); none: train all trials to their end."""
    grace_period: Annotated[int, at_least(0)] = 0
    """asha: env steps before the first trial may be stopped; 0 = a tenth of env_steps."""
    reduction_factor: Annotated[float, between(1.1, 100)] = 4.0
    """asha: one of so many trials continues after each comparison; the next one is at so many times the steps."""
    perturb_every: Annotated[int, at_least(0)] = 0
    """pbt: env steps between two comparisons, a multiple of eval.every; 0 = a tenth of env_steps, rounded up to one."""
    quantile: Annotated[float, between(0, 0.5)] = 0.25
    """pbt: share of the trials that count as the worst, and as the best."""
    resample: Annotated[float, between(0, 1)] = 0.25
    """pbt: probability that a value is drawn from its axis; otherwise it is multiplied by 0.8 or 1.2, or, where the
    axis lists values, replaced by a neighbor."""


def check(config: Config, given: Sweep, trials: Sequence[Trial], programs: Sequence[Program]) -> None:
    """Raises UserError if the scheduler cannot be used for this sweep."""
    if config.scheduler == "none":
        return
    shared = next((program for program in programs if len(program.trials) > 1), None)
    if shared:
        raise UserError(
            f"--ray.scheduler {config.scheduler} stops and continues each trial by itself, but {shared.name} trains "
            f"{len(shared.trials)} trials in one program: give --pack off, with a new --run-dir if trials have begun"
        )
    if config.scheduler == "pbt":
        _check_pbt(config, given, trials)


def _check_pbt(config: Config, given: Sweep, trials: Sequence[Trial]) -> None:
    if given.search == "tpe":
        raise UserError("--ray.scheduler pbt changes the values itself: use search: grid or random with it, not tpe")
    if given.zip:
        raise UserError("--ray.scheduler pbt changes each axis by itself: leave out zip")
    axes = [key for key in given.axes if key != "seed"]
    if not axes:
        raise UserError("--ray.scheduler pbt needs at least one axis whose values it may change")
    if len({trial.config.length for trial in trials}) > 1:
        raise UserError("--ray.scheduler pbt needs trials of equal env_steps")
    for trial in trials:
        for key in axes:
            if isinstance(trial.values[key], bool) or not isinstance(trial.values[key], int | float):
                raise UserError(f"--ray.scheduler pbt changes numbers of the agent only; axes.{key} is not a number")
    first = trials[0].config
    every = perturb_every(config, first)
    if not first.eval.every or not first.eval.episodes or every % first.eval.every:
        raise UserError(
            f"--ray.perturb-every {every:,} compares the trials by their evaluations: set eval.episodes to 1 or more, "
            "and eval.every so that it divides this number"
        )


def check_numbers(scheduler: Scheduler, plans: Sequence[Any]) -> None:
    """Raises UserError if pbt would change more than numbers of one program. plans: of all settings, see `planning`."""
    if scheduler != "pbt":
        return
    reason = next((plan for plan in plans if isinstance(plan, str)), "")
    if reason:
        raise UserError(f"--ray.scheduler pbt needs trials that can be planned: {reason}")
    if len({plan.program for plan in plans}) > 1:
        raise UserError(
            "--ray.scheduler pbt changes numbers of the agent, such as learning rates; an axis of this sweep changes "
            "the program of the agent, so that one trial cannot continue from another"
        )


def perturb_every(config: Config, trial: Any) -> int:
    """Returns the env steps between two comparisons of pbt. trial: the config of a trial."""
    tenth, step = -(-trial.env_steps // 10), max(1, trial.eval.every)
    return config.perturb_every or -(-tenth // step) * step


def metric_of(given: Sweep, config: Any) -> str:
    """Returns the name of the metric that trials are compared by. config: that of a trial, or the base."""
    evaluates = get(config, "eval.every") and get(config, "eval.episodes")
    return given.metric or ("eval/return" if evaluates else "episode/return")
