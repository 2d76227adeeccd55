"""Any valid space of observations and actions: stored bit for bit, rewarded exactly, and trained on."""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from any_spaces import Anything, action_spaces, observation_spaces, small_spaces
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from tiny import QUICK
from tiny_runs import lines
from tiny_runs import tiny as tiny_config

import dreamer
from dreamer import plugins
from dreamer.apps.check.examine import examine
from dreamer.apps.check.verdicts import Settings
from dreamer.apps.check.watch import Watch
from dreamer.errors import UserError
from dreamer.runtime.devices import programs
from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.env.observations import restore
from dreamer.runtime.env.rows import EnvRows
from dreamer.runtime.replay.replay import Config, Replay
from dreamer.steps import Batch, Step

ROWS = 13


def same(a: Any, b: Any) -> bool:
    """Whether structure, dtypes and bits are equal."""
    if isinstance(a, (dict, tuple)):
        keys = a.keys() if isinstance(a, dict) else range(len(a))
        return type(a) is type(b) and len(a) == len(b) and all(same(a[key], b[key]) for key in keys)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def collected(env: gymnasium.Env, seed: int) -> tuple[EnvRows, list[Step]]:
    """Collects rows with random actions; each row has the action chosen at it."""
    rows, steps = EnvRows(env), []
    actions = random_actions(rows.spec.action, np.random.default_rng(seed), ROWS)
    for number in range(ROWS):
        step = rows.step(actions[max(0, number - 1)])
        steps.append(step._replace(action=np.where(step.is_last[:, None], np.float32(0), actions[number][None])))
    return rows, steps


def replayed(rows: EnvRows, steps: list[Step]) -> Batch:
    """Returns all rows as one sequence from a replay."""
    replay = Replay(
        rows.spec, {}, Config(capacity_steps=ROWS, batch_length=ROWS, batch_size=1, context=0), streams=1, seed=0,
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
    """Returns with each row a reward that identifies the action chosen at the previous row."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, price(action), terminated, truncated, info


def price(action: Any) -> float:
    """Hashes an action to a number below 2 ** 20."""
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
    taken = iter(env.taken)
    for number in range(1, ROWS):
        if batch.is_first[0, number]:
            continue
        action = rows._to_env(batch.action[0, number - 1])
        assert batch.reward[0, number] == price(action)
        assert same(action, next(taken))


class Strict(Anything):
    """Fails on an action outside its space."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        return super().step(action)


class QuickJax:
    """The module jax, with programs compiled as fast as possible."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)

    def jit(self, function: Any, compiler_options: Any = None, **options: Any) -> Any:
        return jax.jit(function, compiler_options=QUICK, **options)


def check_then_train(obs_space: spaces.Space, action_space: spaces.Space, seed: int) -> set[str]:
    """Returns the faults that `dreamer check` finds. Makes two updates if there are none."""

    def make() -> gymnasium.Env:
        return Strict(obs_space, action_space, seed)

    verdicts = examine(plugins.maker(make), CHECKED, Watch())
    wrong = {verdict.key for verdict in verdicts if verdict.level == "wrong"}
    if wrong - {"space"}:
        return wrong
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "jax", QuickJax())
        config = tiny_config(
            Path(folder) / "run", env_steps=32, workers__envs=1, eval__episodes=0, eval__video="off", seed=seed
        )
        if wrong:
            with pytest.raises(UserError):
                dreamer.train(config, make_env=make)
            return wrong
        last = lines(dreamer.train(config, make_env=make))[-1]
    assert last["updates"] >= 2
    assert all(np.isfinite(value) for key, value in last.items() if key.startswith("loss/")), last
    return wrong


CHECKED = Settings(steps=60)
EXAMPLES = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.slow
@settings(EXAMPLES, max_examples=20)
@given(observation_spaces(), action_spaces(), st.integers(0, 99))
def test_any_space_that_check_calls_sound_trains(obs_space, action_space, seed):
    assume(not check_then_train(obs_space, action_space, seed))


@pytest.mark.slow
@settings(EXAMPLES, max_examples=2, derandomize=True, phases=[Phase.generate])
@given(small_spaces(), small_spaces(), st.integers(0, 99))
def test_some_spaces_that_check_calls_sound_train(obs_space, action_space, seed):
    assume(not check_then_train(obs_space, action_space, seed))


def test_all_kinds_of_spaces_together_train():
    obs = spaces.Dict(
        {
            "wide": spaces.Box(0, 255, (9, 17, 3), np.uint8),
            "first": spaces.Box(0, 1, (2, 9, 17), np.float64),
            "grid": spaces.Box(0, 10, (7, 7, 3), np.uint8),
            "more": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiBinary(3), spaces.MultiDiscrete([2, 4])]),
            "none": spaces.Box(-1, 1, (0,)),
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
    assert not check_then_train(obs, action, 0)
