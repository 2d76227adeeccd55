"""The schedule of a run: lines of metrics, checkpoints, evaluations, and the rates between two lines."""

from __future__ import annotations

import pytest

from dreamer.runtime.run import schedule
from dreamer.runtime.run.schedule import NEVER, Mark, Saved

MARK = Mark(time=100.0, env_steps=1000, updates=50, idle=2.0)


@pytest.mark.parametrize(("now", "due"), [(109.9, False), (110.0, True)])
def test_a_line_of_metrics_is_due_by_time(now, due):
    assert schedule.log_due(MARK, now, every=10.0) is due


def test_a_time_before_the_last_line_makes_none_due():
    """The loop reads the clock once per turn, and an evaluation in the same turn may have logged later."""
    assert not schedule.log_due(MARK, 99.0, every=0.0)


@pytest.mark.parametrize(("now", "env_steps", "due"), [(129.0, 139, False), (130.0, 101, True), (101.0, 140, True)])
def test_a_checkpoint_is_due_by_time_or_by_rows(now, env_steps, due):
    assert schedule.save_due(Saved(100.0, 100), now, env_steps, every=30.0, rows=40) is due


@pytest.mark.parametrize(("env_steps", "due"), [(39, False), (40, True)])
def test_rows_count_from_the_first_where_no_checkpoint_was_saved(env_steps, due):
    assert schedule.save_due(Saved(0.0, NEVER), 0.0, env_steps, every=1.0, rows=40) is due


@pytest.mark.parametrize(
    "saved, env_steps, updates, number",
    [
        (Saved(0.0, NEVER), 0, 0, 0),
        (Saved(0.0, 96, 96, 12), 96, 12, None),
        (Saved(0.0, 96, 96, 12), 98, 12, 98),
        (Saved(0.0, 96, 96, 12), 96, 13, 97),
        (Saved(0.0, 97, 96, 13), 97, 14, 98),
        (Saved(0.0, 60), 96, 0, 96),
    ],
    ids=["none yet", "nothing new", "steps", "updates only", "a number ahead of the steps", "unknown counters"],
)
def test_a_checkpoint_is_numbered_by_its_steps_or_one_above_the_last(saved, env_steps, updates, number):
    assert schedule.next_checkpoint(saved, env_steps, updates) == number


def test_evaluation_is_at_the_end_alone_where_none_is_asked_for_before():
    assert schedule.first_evaluation(0, last=96) == 96
    assert not any(schedule.evaluation_due(96, step, last=96) for step in range(97))


@pytest.mark.parametrize(("env_steps", "due"), [(39, False), (40, True), (95, True), (96, False)])
def test_an_evaluation_is_due_from_its_step_until_the_last_which_is_the_ends_own(env_steps, due):
    first = schedule.first_evaluation(40, last=96)
    assert schedule.evaluation_due(first, env_steps, last=96) is due


def test_rates_are_those_between_two_lines():
    now = Mark(time=104.0, env_steps=1200, updates=60, idle=3.0)
    assert schedule.rates(MARK, now, {"learner_for_rows": 2.0}) == {
        "speed/env_steps_per_s": 50.0,
        "speed/updates_per_s": 2.5,
        "wait/learner_for_rows": 0.5,
        "wait/device_for_learner": 0.25,
    }
