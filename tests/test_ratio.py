import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.learning import ratio

ratios = st.floats(1e-3, 1e5, allow_nan=False, allow_infinity=False)
strides = st.lists(st.integers(0, 300), min_size=1, max_size=60)


def run(rate, steps):
    """Returns the number of updates made at each of the given step counts."""
    credited, made = None, []
    for step in steps:
        updates, credited = ratio.due(credited, step, rate)
        made.append(updates)
    return made


@given(ratios, st.integers(1, 64), st.integers(1, 128), st.integers(0, 10**9), strides)
def test_updates_never_drift_from_the_ratio(replay_ratio, batch_size, batch_length, start, strides):
    rate = ratio.updates_per_step(replay_ratio, batch_size, batch_length)
    steps = [start]
    for stride in strides:
        steps.append(steps[-1] + stride)
    made = run(rate, steps)
    for index, step in enumerate(steps):
        assert sum(made[: index + 1]) == 1 + math.floor((step - start) * rate)


@given(ratios, strides)
def test_updates_do_not_depend_on_the_number_of_calls(replay_ratio, strides):
    rate = ratio.updates_per_step(replay_ratio, 16, 64)
    steps = [sum(strides[:index]) for index in range(len(strides) + 1)]
    assert sum(run(rate, steps)) == sum(run(rate, [0, steps[-1]]))


def test_first_call_gives_one_update_however_late_it_comes():
    rate = ratio.updates_per_step(1024, 16, 64)
    assert run(rate, [5000, 5001, 5001, 5003]) == [1, 1, 0, 2]


@pytest.mark.parametrize(("replay_ratio", "steps"), [(32, 32), (256, 4), (512, 2), (1024, 1)])
def test_ratio_counts_trained_steps_per_environment_step(replay_ratio, steps):
    assert ratio.updates_per_step(replay_ratio, 16, 64) == Fraction(1, steps)


def test_decimal_ratio_means_the_decimal_number():
    rate = ratio.updates_per_step(0.3, 1, 1)
    assert sum(run(rate, range(0, 100_001, 10))) == 1 + 30_000
    assert ratio.due(Fraction(0), 10, rate) == (3, Fraction(10))


def test_changed_ratio_counts_only_from_the_last_credited_step():
    _, credited = ratio.due(None, 1000, ratio.updates_per_step(32, 16, 64))
    assert ratio.due(credited, 1010, ratio.updates_per_step(1024, 16, 64)) == (10, Fraction(1010))


def test_ratio_zero_never_updates():
    assert run(ratio.updates_per_step(0, 16, 64), [10, 1000, 10**6]) == [0, 0, 0]


def test_steps_that_go_back_are_an_error():
    with pytest.raises(ValueError, match="went back from 10 to 9"):
        ratio.due(Fraction(10), 9, Fraction(1))


@pytest.mark.parametrize("replay_ratio", [-1, math.nan, math.inf])
def test_impossible_ratio_is_named(replay_ratio):
    with pytest.raises(UserError, match="replay_ratio must be"):
        Config(replay_ratio=replay_ratio)


@pytest.mark.parametrize(
    ("replay_ratio", "line"),
    [
        (32, "replay ratio 32 = one update of 16 x 64 steps every 32 env steps"),
        (100, "replay ratio 100 = one update of 16 x 64 steps every 10.24 env steps"),
        (0.5, "replay ratio 0.5 = one update of 16 x 64 steps every 2,048 env steps"),
        (1024, "replay ratio 1024 = one update of 16 x 64 steps every env step"),
        (1536, "replay ratio 1536 = 1.5 updates of 16 x 64 steps every env step"),
        (0, "replay ratio 0 = no updates"),
    ],
)
def test_the_line_describes_what_the_ratio_implies(replay_ratio, line):
    assert ratio.describe(replay_ratio, 16, 64) == line
