"""Statistics of many runs: interquartile mean, standard error, stratified bootstrap intervals. Imports no jax.

The definitions are those of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (arXiv 2108.13264): the interquartile mean (IQM) drops the lowest and the highest quarter of all scores, and
the interval is the percentile interval of a bootstrap that draws runs with replacement within each task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0  # fixed, so that the same scores give the same interval
CHUNK = 4_000_000  # drawn values that are held at a time

Statistic = Callable[[np.ndarray], np.ndarray]  # [.., N, ..] -> [.., ..], reduced over the scores


class Interval(NamedTuple):
    """The ends of an interval, each with the shape of the statistic."""

    low: np.ndarray
    high: np.ndarray


class Summary(NamedTuple):
    """Statistics of n scores.

    std: the sample standard deviation, with divisor n - 1 | stderr: std / sqrt(n); both are nan for one score
    iqm: the interquartile mean | interval: the bootstrap interval of the IQM; None for one score
    """

    n: int
    mean: float
    stderr: float
    std: float
    min: float
    max: float
    iqm: float
    interval: tuple[float, float] | None


def mean(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Returns the mean of scores [.., N, ..] along the axis N."""
    return np.mean(scores, axis)


def iqm(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Returns the interquartile mean of scores [.., N, ..] along the axis N. Drops floor(N / 4) scores at each end.

    With fewer than four scores, no score is dropped: the result is the mean.
    """
    return stats.trim_mean(np.asarray(scores, np.float64), 0.25, axis)


def standard_error(scores: Sequence[float] | np.ndarray) -> float:
    """Returns the sample standard deviation divided by the square root of the sample size; nan for one score."""
    values = np.asarray(scores, np.float64)
    return float(stats.sem(values)) if len(values) > 1 else float("nan")


def bootstrap(
    strata: Sequence[np.ndarray], statistic: Callable[..., np.ndarray] = iqm, *, resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE, seed: int = SEED,
) -> Interval | None:  # fmt: skip
    """Returns the percentile bootstrap interval of `statistic` over the scores of all strata.

    Each resample draws runs with replacement within each stratum.
    strata: for each task the scores [N_k, ..], one row for each run. A row with further axes, such as a curve, is drawn
    as a whole. statistic: called as statistic(scores, axis).
    Returns None when a stratum has only one run, because one run does not show a spread.
    """
    strata = [np.asarray(stratum, np.float64) for stratum in strata]
    if not strata or min(len(stratum) for stratum in strata) < 2:
        return None
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // sum(stratum.size for stratum in strata))
    drawn = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        picks = [stratum[rng.integers(len(stratum), size=(count, len(stratum)))] for stratum in strata]
        drawn.append(statistic(np.concatenate(picks, axis=1), 1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    return Interval(low, high)


def improvement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the probability that a score of `one` is higher than one of `other`; equal scores count as one half.

    It is the mean over all pairs of scores, the Mann-Whitney U statistic divided by N * M.
    one [.., N], other [.., M]: the leading axes are equal | returns [..]
    """
    higher, equal = one[..., :, None] > other[..., None, :], one[..., :, None] == other[..., None, :]
    return (higher + 0.5 * equal).mean((-2, -1))


def improvement_interval(one: np.ndarray, other: np.ndarray) -> Interval | None:
    """Returns the bootstrap interval of `improvement`(one [N], other [M]); None if one of them has a single score."""
    return bootstrap([one, other], lambda both, axis: improvement(both[:, : len(one)], both[:, len(one) :]))


def summary(scores: Sequence[float] | np.ndarray, resamples: int = RESAMPLES) -> Summary:
    """Returns the Summary of scores [N], where N >= 1. resamples: the number of bootstrap resamples."""
    values = np.asarray(scores, np.float64)
    ends = bootstrap([values], resamples=resamples)
    return Summary(
        n=len(values), mean=float(np.mean(values)), stderr=standard_error(values),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        min=float(np.min(values)), max=float(np.max(values)), iqm=float(iqm(values)),
        interval=(float(ends.low), float(ends.high)) if ends else None,
    )  # fmt: skip
