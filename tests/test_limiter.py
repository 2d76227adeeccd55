"""The limiter: updates become due at the ratio, and neither side runs ahead of the other."""

from __future__ import annotations

import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer.runtime.learning import ratio
from dreamer.runtime.learning.limiter import Limiter

RATES = st.fractions(min_value=Fraction(1, 200), max_value=4, max_denominator=256)


@given(rate=RATES, envs=st.integers(1, 16), turns=st.integers(1, 60), start=st.integers(1, 20))
def test_in_lockstep_the_number_of_updates_follows_the_ratio(rate, envs, turns, start):
    limiter, made, credited, wanted = Limiter(rate, envs), 0, None, 0
    for turn in range(1, turns + 1):
        limiter.collected(turn * envs, ready=turn >= start)
        while limiter.due():
            limiter.trained()
            made += 1
        if turn >= start:
            more = 1
            while more:
                more, credited = ratio.due(credited, turn * envs, rate)
                wanted += more
    assert made == wanted


def test_the_collector_stops_soon_if_no_updates_are_made():
    limiter = Limiter(Fraction(1, 8), envs=2)
    steps = 100
    while limiter.wait_for_learner():
        steps += 2
        limiter.collected(steps, ready=True)
    assert limiter.due() == limiter.slack + 1 and steps <= 100 + 8 * (limiter.slack + 1)


def test_no_thread_waits_if_the_ratio_is_zero():
    limiter = Limiter(Fraction(0), envs=2)
    limiter.collected(10**6, ready=True)
    assert limiter.due() == 0 and limiter.wait_for_learner()


def test_an_update_that_is_not_due_is_a_bug():
    with pytest.raises(AssertionError, match="not due"):
        Limiter(Fraction(1), envs=1).trained()


def test_two_threads_end_with_all_due_updates_made():
    limiter, steps, made = Limiter(Fraction(3, 4), envs=4), 0, 0

    def collect():
        nonlocal steps
        while steps < 400:
            if limiter.wait_for_learner():
                steps += 4
                limiter.collected(steps, ready=steps >= 40)
                assert limiter.due() <= limiter.slack + 3

    thread = threading.Thread(target=collect)
    thread.start()
    while steps < 400 or limiter.due():
        limiter.wait_for_rows()
        if limiter.due():
            limiter.trained()
            made += 1
    thread.join()
    assert made == 1 + (400 - 40) * 3 // 4


def test_the_counts_are_saved_and_restored():
    limiter, other = Limiter(Fraction(1, 8), envs=2), Limiter(Fraction(1, 8), envs=2)
    limiter.collected(50, ready=True)
    limiter.trained()
    other.load(limiter.state())
    for one in (limiter, other):
        one.collected(90, ready=True)
    assert other.due() == limiter.due() == 5


def test_waiting_times_are_reported_once():
    limiter = Limiter(Fraction(1), envs=1)
    limiter.wait_for_rows()
    waited = limiter.drain()
    assert waited["learner_for_rows"] > 0 == waited["collector_for_learner"]
    assert set(limiter.drain().values()) == {0.0}
