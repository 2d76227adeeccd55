"""dreamer/apps/statistics.py: numbers checked by hand, and properties for any scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.apps.statistics import bootstrap, iqm, mean, standard_error, summary

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)
SEVERAL = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)
CLOSE = {"rtol": 1e-9, "atol": 1e-6}


def few(strata, statistic=iqm, **options):
    return bootstrap(strata, statistic, resamples=200, **options)


@pytest.mark.parametrize(
    "scores, expected",
    [
        ([7], 7),
        ([1, 2, 9], 4),  # three: none is dropped, (1 + 2 + 9) / 3
        ([100, 1, 3, -50], 2),  # four: -50 and 100 are dropped, (1 + 3) / 2
        ([1, 2, 3, 4, 100], 3),  # five: one at either end, (2 + 3 + 4) / 3
        ([0, 0, 1, 2, 3, 4, 90, 90], 2.5),  # eight: two at either end, (1 + 2 + 3 + 4) / 4
    ],
)
def test_the_iqm_drops_a_quarter_at_either_end(scores, expected):
    assert iqm(np.array(scores)) == expected


def test_the_iqm_is_that_of_scipy_as_the_paper_has_it():
    stats = pytest.importorskip("scipy.stats")
    scores = np.random.default_rng(0).normal(size=(13, 7)) ** 3
    for axis in (0, 1):
        np.testing.assert_allclose(iqm(scores, axis), stats.trim_mean(scores, 0.25, axis))


def test_the_standard_error_is_that_of_a_sample():
    assert standard_error([1, 3]) == 1  # deviations of 1, squared and summed 2, over n - 1 = 1; root 2 over root 2
    assert standard_error([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx(math.sqrt(32 / 7 / 8))
    assert math.isnan(standard_error([5]))


@given(SCORES)
def test_the_iqm_lies_between_the_ends_and_knows_no_order(scores):
    value = iqm(np.array(scores))
    assert min(scores) - 1e-6 <= value <= max(scores) + 1e-6
    np.testing.assert_allclose(iqm(np.array(scores[::-1])), value, **CLOSE)
    np.testing.assert_allclose(iqm(np.array(sorted(scores))), value, **CLOSE)


@given(SCORES, st.integers(-100, 100), st.integers(1, 50))
def test_the_iqm_moves_and_stretches_with_the_scores(scores, shift, factor):
    scores = np.round(np.array(scores))
    np.testing.assert_allclose(iqm(scores * factor + shift), iqm(scores) * factor + shift, **CLOSE)


@given(st.lists(st.floats(0, 1), min_size=8, max_size=20), st.floats(10, 1e6))
def test_one_wild_score_does_not_move_the_iqm_beyond_the_others(scores, wild):
    assert iqm(np.array([*scores, wild])) <= max(scores) + 1e-9


@given(SEVERAL)
@settings(deadline=None)
def test_the_interval_of_the_mean_holds_the_mean_and_lies_between_the_ends(scores):
    low, high = few([np.array(scores)], mean)
    margin = 1e-9 + 1e-9 * np.abs(scores).max()
    assert min(scores) - margin <= low <= high <= max(scores) + margin
    assert low <= np.mean(scores) + margin and np.mean(scores) - margin <= high


@given(SEVERAL)
@settings(deadline=None)
def test_the_interval_of_the_iqm_lies_between_the_ends(scores):
    low, high = few([np.array(scores)])
    assert min(scores) - 1e-6 <= low <= high <= max(scores) + 1e-6


@given(st.floats(-1e6, 1e6), st.integers(2, 10))
@settings(deadline=None)
def test_equal_scores_leave_an_interval_of_no_width(score, count):
    low, high = few([np.full(count, score)])
    assert low == pytest.approx(score) and high == pytest.approx(score)


def test_the_interval_of_two_scores_can_be_counted():
    # Draws of two from {0, 1}: means 0, 1/2, 1 with chance 1/4, 1/2, 1/4. A quarter lies at 0, a quarter at 1.
    low, high = bootstrap([np.array([0.0, 1.0])], mean, confidence=0.95)
    assert (low, high) == (0, 1)
    low, high = bootstrap([np.array([0.0, 1.0])], mean, confidence=0.4)  # 30 % below: the middle half begins at 25 %
    assert (low, high) == (0.5, 0.5)


def test_the_interval_has_the_width_of_the_normal_one():
    scores = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap([scores], mean, resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * standard_error(scores), rel=0.06)


def test_one_run_has_no_interval():
    assert bootstrap([np.array([3.0])]) is None
    assert bootstrap([np.array([3.0, 4.0]), np.array([3.0])]) is None
    assert bootstrap([]) is None
    assert summary([3.0]).interval is None


def test_runs_are_drawn_within_their_task():
    # Every run of a task has the same score, so that draws within tasks cannot change the mean.
    low, high = few([np.full(3, 1.0), np.full(5, 9.0)], mean)
    assert low == high == 6  # (3 x 1 + 5 x 9) / 8
    low, high = few([np.array([1.0, 1, 1, 9, 9, 9, 9, 9])], mean)
    assert low < 6 < high


def test_curves_are_drawn_as_a_whole():
    curves = np.random.default_rng(2).normal(size=(4, 6))
    together = bootstrap([curves])
    alone = [bootstrap([curves[:, point]]) for point in range(6)]
    np.testing.assert_allclose(together.low, [ends.low for ends in alone])
    np.testing.assert_allclose(together.high, [ends.high for ends in alone])


def test_the_seed_determines_the_interval_for_any_chunk_size(monkeypatch):
    scores = [np.random.default_rng(3).normal(size=50)]
    assert few(scores) == few(scores) != few(scores, seed=1)
    whole = few(scores)
    monkeypatch.setattr("dreamer.apps.statistics.CHUNK", 1000)
    assert few(scores).low == pytest.approx(whole.low) and few(scores).high == pytest.approx(whole.high)


def test_a_summary_of_four_scores():
    found = summary([1.0, 2.0, 4.0, 9.0])
    assert (found.n, found.mean, found.min, found.max, found.iqm) == (4, 4, 1, 9, 3)
    assert found.std == pytest.approx(math.sqrt((9 + 4 + 0 + 25) / 3)) == found.stderr * 2
    assert found.interval[0] < 3 < found.interval[1]
