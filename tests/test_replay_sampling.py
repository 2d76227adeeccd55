"""The replay's mixture of samplers, its priorities, and several threads at once."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_replay import SPEC, STORAGE, build, collected, fill

from dreamer.config import load
from dreamer.errors import UserError
from dreamer.runtime.replay.replay import Config, Replay, size_replay
from dreamer.steps import Rows

PRIORITISED = {"uniform": 0.0, "priority": 1.0}


def rows_of(replay, env, *starts):
    """Returns the trained rows of sequences that start at `starts` of a ring."""
    number = np.array(starts)[:, None] + np.arange(replay.config.context, replay.sequence)
    return Rows(np.full(len(starts), env), number)


def powers(replay):
    return replay.sampler.state()["priority/rows"]


@pytest.mark.parametrize("shares", [{"priority": 0.5}, {"uniform": 0.5}, {"uniform": 0.5, "recency": 0.6}])
def test_shares_that_do_not_add_up_to_1_are_refused(shares):
    with pytest.raises(UserError, match=r"uniform \+ replay.priority \+ replay.recency must be 1, not [01]"):
        Config(**shares)


def test_the_refusal_of_shares_names_keys_and_origin():
    text = r"replay.uniform \+ replay.priority \+ replay.recency must be 1, not 1.5 \(from overrides\)"
    with pytest.raises(UserError, match=text):
        load(overrides={"replay.priority": 0.5})


def test_shares_that_do_add_up_are_taken():
    config = load(overrides={"replay.uniform": 0.7, "replay.priority": 0.2, "replay.recency": 0.1})
    assert config.replay.shares == {"uniform": 0.7, "priority": 0.2, "recency": 0.1}


@pytest.mark.parametrize("share", [-0.5, 1.5, float("nan")])
def test_a_share_out_of_range_is_named(share):
    with pytest.raises(UserError, match="priority must be from 0 to 1"):
        Config(priority=share)


def test_recency_draws_the_newest_most_often():
    replay = build(envs=1, rows=50, uniform=0.0, recency=1.0)
    fill(replay, 80)
    _, rows = replay.sample(2000)
    age = 79 - rows.number[:, -1]
    assert set(age) <= set(range(47))
    assert np.median(age) < 10 and (age == 0).sum() > (age == 1).sum() > (age == 3).sum()


def test_new_rows_are_drawn_first():
    replay = build(envs=2, rows=30, **PRIORITISED)
    fill(replay, 30)
    for _ in range(20):
        replay.sample(16)
    fill(replay, 1)
    _, rows = replay.sample(2)
    assert rows.number[:, -1].tolist() == [30, 30] and sorted(rows.stream) == [0, 1]


def test_sequences_with_large_losses_are_drawn_most_often():
    replay = build(envs=1, rows=30, **PRIORITISED)
    fill(replay, 30)
    drawn = []
    for _ in range(200):
        replay.prioritise(rows_of(replay, 0, *range(27)), np.full((27, 3), 0.01, np.float32))
        replay.prioritise(rows_of(replay, 0, 12), np.full((1, 3), 100, np.float32))
        drawn.append(int(replay.sample(1)[1].number[0, 0]) - 1)
    drawn = np.array(drawn[30:])  # new rows come first as long as there are any
    assert (np.abs(drawn - 12) <= 3).mean() > 0.95


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.integers(0, 25), st.integers(1, 8))
def test_priorities_land_in_their_rows_and_spare_overwritten_ones(before, between, batch_size):
    replay = build(envs=2, rows=10, length=3, uniform=0.5, priority=0.5)
    fill(replay, 4 + before)
    _, rows = replay.sample(batch_size)
    fill(replay, between)
    expected = powers(replay).copy()
    priority = np.random.default_rng(before).random((batch_size, 3)).astype(np.float32)
    replay.prioritise(rows, priority)
    for b in range(batch_size):
        for t in range(3):
            if rows.number[b, t] >= replay.counts[rows.stream[b]] - 10:
                expected[rows.stream[b], rows.number[b, t] % 10] = priority[b, t] ** 0.8
    np.testing.assert_allclose(powers(replay), expected, rtol=1e-6)


def test_rows_that_were_drawn_have_no_priority_until_they_get_one():
    replay = build(envs=1, rows=10, length=3, **PRIORITISED)
    fill(replay, 10)
    _, rows = replay.sample(1)
    first = rows.number[0, 0] - 1
    np.testing.assert_array_equal(powers(replay)[0, first : first + 4], 0)
    assert np.isinf(np.delete(powers(replay)[0], range(first, first + 4))).all()


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.float32), np.zeros((4, 3))])
def test_wrong_priorities_are_named(wrong):
    replay = build(**PRIORITISED)
    fill(replay, 10)
    _, rows = replay.sample(4)
    with pytest.raises(UserError, match=r"replay.prioritise: column 'priority' must be float32 \[4, 3\]"):
        replay.prioritise(rows, wrong)


def test_priorities_without_a_use_are_dropped():
    replay, other = build(), build()
    for each in (replay, other):
        fill(each, 10)
    _, rows = replay.sample(4)
    other.sample(4)
    replay.prioritise(rows, np.ones((4, 3), np.float32))
    np.testing.assert_array_equal(replay.sample(16)[1].number, other.sample(16)[1].number)


def test_reports_leave_priorities_and_random_numbers_alone():
    replay = build(uniform=0.4, priority=0.3, recency=0.3)
    fill(replay, 10)
    state = {name: value.copy() for name, value in replay.sampler.state().items()}
    numbers = replay.rng.bit_generator.state
    replay.sample(16, online=False)
    assert replay.rng.bit_generator.state == numbers
    for name, value in replay.sampler.state().items():
        np.testing.assert_array_equal(value, state[name])


def test_fresh_sequences_come_before_the_mixture():
    replay = build(envs=2, rows=16, length=3, online=True, uniform=0.0, recency=1.0)
    fill(replay, 9)
    _, rows = replay.sample(6)
    assert rows.number[:4, 0].tolist() == [1, 1, 5, 5]


def test_the_plan_includes_the_memory_of_sampling():
    size = {
        name: size_replay(SPEC, STORAGE, Config(**shares), streams=2, env_steps=10**6)
        for name, shares in {"plain": {}, "priority": PRIORITISED, "recency": {"uniform": 0, "recency": 1}}.items()
    }
    assert size["priority"].row_bytes - size["plain"].row_bytes == 22
    assert size["recency"].row_bytes - size["plain"].row_bytes == 8


@pytest.mark.parametrize("shares", [{"uniform": 1.0}, {"uniform": 0.3, "priority": 0.4, "recency": 0.3}])
def test_threads_that_add_and_learn_never_tear_a_sequence(shares):
    config = Config(capacity_steps=40, batch_length=7, online=True, **shares)
    replay = Replay(SPEC, STORAGE, config, streams=2, seed=0, env_steps=10**9)
    fill(replay, 20)
    done, failures = threading.Event(), []

    def learn():
        try:
            while not done.is_set():
                batch, rows = replay.sample(4)
                replay.prioritise(rows, np.ones((4, 7), np.float32))
                latent = {name: np.repeat(value, 7, 1) for name, value in batch.latent.items()}
                replay.refresh(rows, latent)
                np.testing.assert_array_equal(batch.obs["id"][:, 1:, 1], rows.number)
                np.testing.assert_array_equal(batch.obs["id"][:, 1:, 0], np.repeat(rows.stream[:, None], 7, 1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=learn) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(20, 1500):
        replay.add(*collected([0, 1], [number, number]))
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert replay.steps == 3000
