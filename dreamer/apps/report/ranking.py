"""Ranks the settings of a sweep by their final scores. Imports no jax.

Trials of equal values are the seeds of one setting. Each trial has one final score, as in `scores`: its last evaluation
at the steps that all scored trials have, or without evaluations the mean of its last tenth of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.apps import statistics
from dreamer.apps.report.curves import EVALUATION, TRAINING, last_evaluations, last_tenth, panel
from dreamer.apps.report.groups import TASK, Group, Task, show, task_names
from dreamer.apps.report.scores import RESAMPLES
from dreamer.apps.report.sweep import Sweep, Trial, counts
from dreamer.errors import UserError


class Setting(NamedTuple):
    """Trials that differ in their seed only.

    scored: the trials that have a final score | scores [S]: their scores
    """

    values: Mapping[str, Any]
    trials: tuple[Trial, ...]
    scored: tuple[Trial, ...]
    scores: np.ndarray

    @property
    def lost(self) -> bool:
        """Whether a trial has diverged, failed or was stopped early."""
        return any(trial.status in ("diverged", "failed", "stopped early") for trial in self.trials)


class Result(NamedTuple):
    """A setting with statistics of its final scores over seeds.

    interval: the 95 % bootstrap interval of the IQM; None: there is only one seed
    improvement: the probability that a seed of the best setting scores higher than one of this setting; None: this is
    the best setting, or both have only one seed
    improvement_interval: its 95 % bootstrap interval; None: one of the two has only one seed
    """

    setting: Setting
    mean: float
    iqm: float
    interval: tuple[float, float] | None
    improvement: float | None
    improvement_interval: tuple[float, float] | None


class Ranking(NamedTuple):
    """The settings of a sweep in one task.

    task: the environment | metric: the metric of the scores | at: the scores cover the span (from, to) of the x axis
    results: the settings with a score, the best one first | unscored: the settings of which no trial has a score
    """

    task: str
    metric: str
    at: tuple[float, float]
    results: list[Result]
    unscored: list[Setting]

    def scored(self) -> list[tuple[Trial, float]]:
        """Returns each trial that has a score, with this score."""
        return [
            (trial, float(score))
            for one in self.results for trial, score in zip(one.setting.scored, one.setting.scores, strict=True)
        ]  # fmt: skip


def by_task(sweep: Sweep) -> list[tuple[str, Sweep]]:
    """Divides a sweep into the tasks that its axes give, since returns of different tasks cannot be compared.

    Returns (name of the task, the sweep with the trials of this task).
    """
    found: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        own = {key: value for key, value in trial.values.items() if key.partition(".")[0] in TASK}
        found.setdefault(json.dumps(own, sort_keys=True), []).append(trial)
    parts = []
    for key, trials in found.items():
        names = task_names([trial.run for trial in trials if trial.run])
        given = ", ".join(f"{name}={show(value)}" for name, value in json.loads(key).items())
        parts.append((given or ", ".join(names.values()) or "the sweep", sweep._replace(trials=tuple(trials))))
    return parts


def rank(task: str, sweep: Sweep, frames: bool = False) -> Ranking:
    """Ranks the settings of a sweep, all of whose trials have the same task.

    Only finished trials have scores. While none has finished, those that train or are dead have scores up to the steps
    that all of them have reached. Settings of which a trial diverged, failed or was stopped early come after others.
    frames: whether x counts environment frames; False: env steps
    Raises UserError when no trial has an episode return.
    """
    metric, scored = _scored(task, sweep)
    settings: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        settings.setdefault(json.dumps(dict(trial.values), sort_keys=True), []).append(trial)
    paths = {trial.path for trial in scored}
    groups = [[trial for trial in trials if trial.path in paths] for trials in settings.values()]
    runs = [Group(str(number), [one.run for one in own if one.run]) for number, own in enumerate(groups) if own]
    first = scored[0].run
    assert first is not None
    drawn = panel(Task(task, first.config.env, first.config.env_options, runs), metric, frames=frames)
    assert drawn is not None
    finals = {int(one.line.name): one for one in (last_evaluations if metric == EVALUATION else last_tenth)(drawn)}
    made = []
    for number, (trials, own) in enumerate(zip(settings.values(), groups, strict=True)):
        scores = finals[number].scores if number in finals else np.empty(0)
        known = ~np.isnan(scores)
        with_score = tuple(one for one, has in zip(own, known, strict=False) if has)
        made.append(Setting(trials[0].values, tuple(trials), with_score, scores[known]))
    ordered = sorted(filter(lambda one: len(one.scores), made), key=lambda one: (one.lost, -one.scores.mean()))
    spans = [one.at for one in finals.values()]
    at = min(start for start, _ in spans), max(end for _, end in spans)
    results = [_result(one, ordered[0]) for one in ordered]
    return Ranking(task, metric, at, results, [one for one in made if not len(one.scores)])


def _scored(task: str, sweep: Sweep) -> tuple[str, list[Trial]]:
    """Returns the metric of the scores, and the trials that have it. Raises UserError when there are none."""
    for statuses in (("finished",), ("running", "dead", "stopped early")):
        for metric in (EVALUATION, TRAINING):
            found = [one for one in sweep.trials if one.status in statuses and one.run and metric in one.run.metrics]
            if found:
                return metric, found
    stand = counts(sweep.trials) or "it has no trials"
    raise UserError(f"{sweep.root}: no trial of {task} has an evaluation yet: {stand}")


def _result(setting: Setting, best: Setting) -> Result:
    scores = setting.scores
    own = statistics.bootstrap([scores], resamples=RESAMPLES)
    compared = setting is not best and len(scores) + len(best.scores) > 2
    against = statistics.improvement_interval(best.scores, scores) if compared else None
    return Result(
        setting, float(scores.mean()), float(statistics.iqm(scores)), _pair(own),
        float(statistics.improvement(best.scores, scores)) if compared else None, _pair(against),
    )  # fmt: skip


def _pair(ends: statistics.Interval | None) -> tuple[float, float] | None:
    return (float(ends.low), float(ends.high)) if ends else None


def unfinished(trials: Sequence[Trial]) -> int:
    """Returns the number of trials that can still get a score: those that train, are dead, or have not started."""
    return sum(trial.status in ("running", "dead", "not started") for trial in trials)
