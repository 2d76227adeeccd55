"""The schedulers of Ray Tune for the trials of a sweep: which trials continue, and from which.

The rules are Tune's. These classes add what Tune does not keep: it forgets rungs and scores when its launcher is
killed, also with `Tuner.restore`. Here they are read from the metrics of the runs, and decisions are files.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining, TrialScheduler

from dreamer.apps.sweep import ray_inherit, state
from dreamer.apps.sweep.ray_config import Config
from dreamer.apps.sweep.ray_scores import Score
from dreamer.apps.sweep.spec import Axis
from dreamer.config import Config as RunConfig
from dreamer.runtime.population import exploit
from dreamer.runtime.population.exploit import Descent

STEPS, SCORE = "env_steps", "score"
FACTORS = (1.2, 0.8)  # of Tune


class Asha(AsyncHyperBandScheduler):
    """Asynchronous successive halving, Li et al. 2018. A trial that is stopped learns this from a file."""

    def __init__(self, root: Path, config: Config, mode: str, longest: int, history: Mapping[str, Sequence[Score]]):
        """longest: the env steps of the longest trial | history {program: its scores so far}, which fill the rungs"""
        grace = config.grace_period or max(1, longest // 10)
        super().__init__(
            time_attr=STEPS, metric=SCORE, mode=mode, max_t=longest, grace_period=min(grace, longest),
            reduction_factor=config.reduction_factor, stop_last_trials=False,
        )  # fmt: skip
        self._root = root
        for name, scores in history.items():
            stand_in: Any = SimpleNamespace(trial_id=name)
            nobody: Any = None
            super().on_trial_add(nobody, stand_in)
            for one in scores:
                super().on_trial_result(nobody, stand_in, {STEPS: one.env_steps, SCORE: one.value})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Receives a trial of Tune. In the rungs it has the name of its program, whichever launcher runs it."""
        super().on_trial_add(tune_controller, _named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Receives a score. Returns CONTINUE in any case, because a trial that must stop ends by itself."""
        decision = super().on_trial_result(tune_controller, _named(trial), result)
        if decision == TrialScheduler.STOP:
            for name in trial.config["program"]["trials"]:
                state.set_early(self._root, name, state.Early("asha", int(result[STEPS]), float(result[SCORE])))
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """Receives the last score of a trial."""
        super().on_trial_complete(tune_controller, _named(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forgets a trial that has not begun."""
        super().on_trial_remove(tune_controller, _named(trial))


def _named(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["program"]["name"])


class Pbt(PopulationBasedTraining):
    """Population-based training, Jaderberg et al. 2017. All trials are compared at the same step, as a population is.

    A comparison is written to the disk before any trial continues, see `ray_inherit`.
    """

    def __init__(
        self, root: Path, known: state.Known, config: Config, mode: str, every: int, axes: Sequence[Axis],
        configs: Mapping[str, RunConfig], seed: int,
    ):  # fmt: skip
        """every: env steps between comparisons | axes: those of the sweep | configs: of the trials, by name

        seed: of the choices, which otherwise depend on the step only
        """
        super().__init__(
            time_attr=STEPS, metric=SCORE, mode=mode, perturbation_interval=every, quantile_fraction=config.quantile,
            hyperparam_mutations={axis.key: mutation(axis) for axis in axes}, resample_probability=config.resample,
            perturbation_factors=FACTORS, log_config=False, require_attrs=False, synch=True,
        )  # fmt: skip
        self._root, self._known, self._configs, self._seed = root, known, configs, seed
        self._keys = [axis.key for axis in axes]
        self._values = ray_inherit.newest_values(
            root, {name: known.trials[name]["values"] for name in configs}
        )
        self._next_perturbation_sync = ray_inherit.next_due(root, every)
        self._descents: list[Descent] = []

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Receives a trial of Tune, and gives it the values with which it trains now."""
        trial.config.update({key: self._values[member(trial)][key] for key in self._keys})
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Receives the score of a trial that has ended its segment. The last one starts the comparison."""
        before, self._descents = self._next_perturbation_sync, []
        with seeded(self._seed, before):
            decision = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync != before:
            ray_inherit.commit(self._root, self._known, int(result[STEPS]), self._descents)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict) -> None:
        """Receives the end of a trial. The others may have waited for it alone."""
        super().on_trial_complete(tune_controller, trial, result)
        self._without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Receives the failure of a trial. The others may have waited for it alone."""
        super().on_trial_error(tune_controller, trial)
        self._without(tune_controller, trial)

    def _without(self, controller: Any, trial: Any) -> None:
        """Compares the trials that are left, if all of them wait. In Tune, they would wait forever."""
        gone: Any = self._trial_state[trial]
        gone.last_score, gone.last_train_time = None, self._next_perturbation_sync
        waiting = [one for one in controller.get_live_trials() if one is not trial]
        states: list[Any] = [self._trial_state[one] for one in waiting]
        if states and all(one.last_train_time >= self._next_perturbation_sync for one in states):
            self.on_trial_result(controller, waiting[0], dict(states[0].last_result))

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict, dict]:
        """Returns the values of a trial that continues from another one. Values that a field refuses do not change."""
        found, operations = super()._get_new_config(trial, trial_to_clone)
        before = {key: trial_to_clone.config[key] for key in self._keys}
        own = self._configs[member(trial)]
        _, kept = exploit.with_values(own, {key: found[key] for key in self._keys}, before)
        return {**trial.config, **kept}, operations

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        """Lets a trial continue from another one, and notes it for the lineage."""
        super()._exploit(tune_controller, trial, trial_to_clone)
        own: Any = self._trial_state[trial]
        parent: Any = self._trial_state[trial_to_clone]
        values = {key: trial.config[key] for key in self._keys}
        self._descents.append(
            Descent(
                int(own.last_result[STEPS]), member(trial), member(trial_to_clone), float(own.last_result[SCORE]),
                float(parent.last_result[SCORE]), values,
            )
        )  # fmt: skip


def member(trial: Any) -> str:
    """Returns the name in the sweep of a trial of Tune with one member."""
    [name] = trial.config["program"]["trials"]
    return name


def mutation(axis: Axis) -> Any:
    """Returns how Tune changes a value of an axis: a list to move in, or a function that draws."""
    return list(axis.values) if axis.values is not None else Drawn(axis)


class Drawn:
    """Draws a value from an axis, with the random numbers of Python that Tune uses."""

    def __init__(self, axis: Axis):
        """axis: a distribution"""
        self._axis = axis

    def __call__(self) -> Any:
        """Returns a value."""
        return self._axis.draw(np.random.default_rng(random.getrandbits(64)))


@contextlib.contextmanager
def seeded(seed: int, step: float) -> Iterator[None]:
    """A context in which Python's random numbers depend on `seed` and `step` only. Restores them at its end."""
    before = random.getstate()
    random.seed(f"{seed} {step}")
    try:
        yield
    finally:
        random.setstate(before)
