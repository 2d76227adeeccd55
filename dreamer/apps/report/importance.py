"""How much of the spread of a sweep's final scores each axis explains. Imports no jax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreamer.apps.report.ranking import Ranking
from dreamer.apps.report.sweep import Trial
from dreamer.apps.report.sweep_axes import Axis, slices

EXPLAINED = (
    "Importance is eta squared: the share of the variance of the trials' final scores that lies between the values of "
    "an axis. Numbers that were drawn from a distribution are sorted and divided into quarters. By chance: the share "
    "that is expected where an axis changes nothing, (values - 1) / (trials - 1); an axis near it may be unimportant. "
    "All settings: the share between all settings; the rest is between seeds.",
    "Each axis is looked at alone. What two axes change only together counts for neither, and axes whose values were "
    "not combined evenly share what they explain. Trials without a score do not count: where a value makes trials "
    "diverge, the list of these trials says more than this number.",
)


class Importance(NamedTuple):
    """The share of the variance of final scores that an axis explains.

    eta: eta squared; nan: there are not two values with scores, or all scores are equal
    chance: the expected eta squared of an axis without effect; nan: there is one score
    means: for each slice of the axis its label, the mean of its scores and their number
    """

    axis: Axis
    eta: float
    chance: float
    means: list[tuple[str, float, int]]


def importances(axes: Sequence[Axis], ranking: Ranking) -> list[Importance]:
    """Returns the importance of each axis, the largest first."""
    scores = ranking.scored()
    found = [_importance(axis, [trial for trial, _ in scores], [score for _, score in scores]) for axis in axes]
    return sorted(found, key=lambda one: -np.nan_to_num(one.eta, nan=-1.0))


def between_settings(ranking: Ranking) -> float:
    """Returns the share of the variance between settings; nan if no setting has two scores."""
    groups = [one.setting.scores for one in ranking.results]
    return eta_squared(groups) if any(len(group) > 1 for group in groups) else float("nan")


def eta_squared(groups: Sequence[np.ndarray]) -> float:
    """Returns the sum of squares between groups of scores [N_k], divided by the total sum of squares.

    Returns nan if there are less than two groups, or if all scores are equal.
    """
    every = np.concatenate(groups)
    total = ((every - every.mean()) ** 2).sum()
    between = sum(len(group) * (group.mean() - every.mean()) ** 2 for group in groups)
    return float(between / total) if len(groups) > 1 and np.ptp(every) > 0 else float("nan")


def _importance(axis: Axis, trials: Sequence[Trial], scores: Sequence[float]) -> Importance:
    by_path = {trial.path: score for trial, score in zip(trials, scores, strict=True)}
    parts = [(one.label, np.array([by_path[trial.path] for trial in one.trials])) for one in slices(axis, trials)]
    chance = (len(parts) - 1) / (len(scores) - 1) if len(scores) > 1 else float("nan")
    means = [(label, float(own.mean()), len(own)) for label, own in parts]
    return Importance(axis, eta_squared([own for _, own in parts]), chance, means)
