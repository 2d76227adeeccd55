"""Any legal space of observations and actions: kept bit for bit, paid exactly, trained on."""

from __future__ import annotations

import json
import zlib
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamer import agent as agents
from dreamer.runtime.actions import random_actions
from dreamer.runtime.readers import restore
from dreamer.runtime.replay import Config, Replay
from dreamer.runtime.rows import EnvRows
from dreamer.runtime.steps import Batch, Step
from dreamer.spaces import for_device
from tests import tiny
from tests.any_spaces import Anything, action_spaces, observation_spaces

ROWS = 13


def same(a: Any, b: Any) -> bool:
    """Equal structure, dtypes and bits."""
    if isinstance(a, (dict, tuple)):
        keys = a.keys() if isinstance(a, dict) else range(len(a))
        return type(a) is type(b) and len(a) == len(b) and all(same(a[key], b[key]) for key in keys)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def collected(env: gymnasium.Env, seed: int) -> tuple[EnvRows, list[Step]]:
    """Rows of random actions, each with the action that was chosen at it."""
    rows, steps = EnvRows(env), []
    actions = random_actions(rows.spec.action, np.random.default_rng(seed), ROWS)
    for number in range(ROWS):
        step = rows.step(actions[max(0, number - 1)])
        steps.append(step._replace(action=np.where(step.is_last[:, None], np.float32(0), actions[number][None])))
    return rows, steps


def replayed(rows: EnvRows, steps: list[Step]) -> Batch:
    """All of them as one sequence out of a replay."""
    replay = Replay(
        rows.spec, {}, Config(capacity_steps=ROWS, batch_length=ROWS, batch_size=1, context=0), envs=1, seed=0,
        env_steps=ROWS,
    )  # fmt: skip
    for step in steps:
        replay.add(step, {})
    return replay.sample(1)[0]


@settings(max_examples=150, deadline=None)
@given(observation_spaces(), st.integers(0, 99))
def test_every_observation_comes_back_from_replay_bit_for_bit(space, seed):
    env = Anything(space, spaces.Box(-1, 1, (1,)), seed)
    rows, steps = collected(env, seed)
    batch = replayed(rows, steps)
    assert len(env.shown) == ROWS
    for number, shown in enumerate(env.shown):
        row = {key: value[0, number] for key, value in batch.obs.items()}
        assert same(restore(rows.readers, space, row), shown)


class Paid(Anything):
    """The reward that arrives with a row is a number of the very action chosen at the row before."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, price(action), terminated, truncated, info


def price(action: Any) -> float:
    """A number below 2 ** 20, another one for each action but by chance."""
    if isinstance(action, (dict, tuple)):
        parts = [price(part) for part in (action.values() if isinstance(action, dict) else action)]
        return float(zlib.crc32(json.dumps(parts).encode()) % 2**20)
    return float(zlib.crc32(np.asarray(action).tobytes()) % 2**20)


@settings(max_examples=150, deadline=None)
@given(action_spaces(), st.integers(0, 99))
def test_every_reward_is_that_of_the_action_in_the_row_before(space, seed):
    env = Paid(spaces.Box(-1, 1, (2,)), space, seed)
    rows, steps = collected(env, seed)
    batch = replayed(rows, steps)
    told = iter(env.told)
    for number in range(1, ROWS):
        if batch.is_first[0, number]:
            continue
        action = rows._to_env(batch.action[0, number - 1])
        assert batch.reward[0, number] == price(action)
        assert same(action, next(told))


def trains(obs_space: spaces.Space, action_space: spaces.Space, seed: int) -> None:
    """Two updates on replayed rows, and an action afterwards; AssertionError when a number is not finite."""
    rows, steps = collected(Paid(obs_space, action_space, seed), seed)
    batch = replayed(rows, steps)
    batch = batch._replace(obs=for_device(rows.spec.obs, batch.obs), reward=batch.reward / np.float32(2**20))
    agent = agents.make(tiny.CONFIG, rows.spec)
    state = tiny.jit(agent.init)(jax.random.key(seed))
    update = tiny.jit(agent.update)
    for _ in range(2):
        state, _, metrics = update(state, batch)
        assert all(np.isfinite(value) for value in metrics.values()), metrics
    obs = {key: value[0, :1] for key, value in batch.obs.items()}
    act = tiny.jit(agent.act, static_argnames="mode")
    _, action = act(state.params, state.key, agent.initial_carry(1), obs, np.ones(1, bool), mode="sample")
    assert action_space.contains(rows._to_env(np.asarray(action[0])))


EXAMPLES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.slow
@settings(EXAMPLES, max_examples=60)
@given(observation_spaces(), action_spaces(), st.integers(0, 99))
def test_any_legal_space_trains(obs_space, action_space, seed):
    trains(obs_space, action_space, seed)


@settings(EXAMPLES, max_examples=3, derandomize=True)
@given(observation_spaces(), action_spaces(), st.integers(0, 99))
def test_some_legal_spaces_train(obs_space, action_space, seed):
    trains(obs_space, action_space, seed)


def test_all_kinds_of_spaces_together_train():
    obs = spaces.Dict(
        {
            "wide": spaces.Box(0, 255, (17, 40, 3), np.uint8),
            "first": spaces.Box(0, 1, (2, 9, 9), np.float64),
            "grid": spaces.Box(0, 10, (7, 7, 3), np.uint8),
            "more": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiBinary(3), spaces.MultiDiscrete([2, 4])]),
            "number": spaces.Box(-np.inf, np.inf, (), np.float64),
        }
    )
    action = spaces.Dict(
        {
            "a": spaces.MultiDiscrete([2, 3]),
            "b": spaces.Box(-2, 7, (2,)),
            "c": spaces.MultiBinary(2),
            "d": spaces.Discrete(2),
        }
    )
    trains(obs, action, 0)
