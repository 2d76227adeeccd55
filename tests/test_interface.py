"""If an environment or a user violates gymnasium's interface, one line names the problem and the remedy."""

from __future__ import annotations

import types

import gymnasium
import numpy as np
import pytest
from faulty_check_envs import Ball
from gymnasium import spaces
from teams import Team

from dreamer.apps.check.examine import examine
from dreamer.apps.check.verdicts import Settings
from dreamer.apps.check.watch import Watch
from dreamer.apps.team import LoadedTeam
from dreamer.errors import UserError
from dreamer.plugins import Maker
from dreamer.runtime.env.actions import action_reader
from dreamer.runtime.env.observations import agent_obs, readers
from dreamer.runtime.env.parallel import ParallelRows
from dreamer.runtime.env.rows import EnvRows


class OldDiscrete:
    """Like gym.spaces.Discrete of the old package; not a gymnasium.Space."""

    __module__ = "gym.spaces.discrete"

    def __repr__(self):
        return "Discrete(2)"


class OldAction(Ball):
    action_space = OldDiscrete()


class OldObservation(Ball):
    observation_space = OldDiscrete()


class NoSeed(Ball):
    def reset(self):
        return super().reset()


class NoOptions(Ball):
    def reset(self, *, seed=None):
        return super().reset(seed=seed)


class TypeErrorOfItsOwn(Ball):
    def reset(self, *, seed=None, options=None):
        raise TypeError("seed must be a str")


class NoSeedTeam(Team):
    def reset(self):
        return super().reset()


def one_line(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- spaces of other packages


@pytest.mark.parametrize("env", [OldAction, OldObservation])
def test_a_space_of_the_old_gym_is_named_with_what_to_do(env):
    text = one_line(lambda: EnvRows(env(), name="my-env"))
    assert "'my-env'" in text and "Discrete(2), a space of the old gym package; use gymnasium.spaces" in text
    assert "GymV26Environment-v0" in text and "supported are" not in text


@pytest.mark.parametrize("env", [OldAction, OldObservation])
def test_check_raises_the_same_line(env):
    (verdict,) = [v for v in examine(Maker("my-env", env), Settings(steps=20), Watch()) if v.key == "space"]
    assert verdict.level == "wrong" and verdict.text == one_line(lambda: EnvRows(env(), name="my-env"))


def test_a_space_of_any_other_package_is_named_with_its_class():
    env = Ball()
    env.observation_space = types.SimpleNamespace()
    assert "a types.SimpleNamespace and no gymnasium.Space" in one_line(lambda: readers(env, "my-env"))


# ---- reset


@pytest.mark.parametrize("make", [NoSeed, NoOptions], ids=["seed", "options under a wrapper"])
def test_a_reset_without_seed_or_options_is_one_line_with_the_signature(make):
    env = gymnasium.wrappers.TimeLimit(make(), 5) if make is NoOptions else make()
    text = one_line(lambda: EnvRows(env, name="my-env", seed=1))
    assert "'my-env'" in text and "reset(self, *, seed=None, options=None)" in text


def test_a_reset_without_seed_is_one_line_where_actions_are_numbers_only():
    env = NoSeed()
    env.action_space = spaces.Box(-1, 1, (1,))
    rows = EnvRows(env, name="my-env", seed=1)
    text = one_line(lambda: rows.step(np.zeros(1, np.float32)))
    assert "reset(self, *, seed=None, options=None)" in text


def test_a_team_that_is_reset_without_seed_is_one_line():
    assert "reset(self, *, seed=None" in one_line(lambda: ParallelRows(NoSeedTeam(), name="my-team", seed=1))


@pytest.mark.parametrize("make", [NoSeed, NoOptions, NoSeedTeam])
def test_check_names_a_reset_without_seed_or_options(make):
    def env():
        return gymnasium.wrappers.TimeLimit(make(), 5) if make is NoOptions else make()

    found = [v for v in examine(Maker("my-env", env), Settings(steps=20), Watch()) if v.level == "wrong"]
    assert [v.key for v in found] == ["reset-seed"] and "reset(self, *, seed=None, options=None)" in found[0].text


def test_another_type_error_of_the_environment_is_not_reported_as_a_missing_seed():
    with pytest.raises(TypeError, match="seed must be a str"):
        EnvRows(TypeErrorOfItsOwn(), seed=1)


def test_a_reset_that_returns_only_the_observation_is_reported_as_the_old_interface():
    class Alone(Ball):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0]

    assert "the old gym interface returns only the observation" in one_line(lambda: EnvRows(Alone()))


# ---- act


BOX = spaces.Box(-1, 1, (2,), np.float32)
OBS = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    "space, obs", [(BOX, OBS), (spaces.Dict({"a": BOX}), {"a": OBS}), (spaces.Tuple([BOX, BOX]), (OBS, OBS))],
    ids=["Box", "Dict", "Tuple"],
)  # fmt: skip
@pytest.mark.parametrize("rest", [({},), (0.0, False, False, {}), (0.0, False, {})], ids=["reset", "step", "old step"])
def test_a_whole_result_passed_as_an_observation_is_named(space, obs, rest):
    env = Ball()
    env.observation_space = space
    keys = readers(env)
    text = one_line(lambda: agent_obs(keys, (obs, *rest), "my-env"))
    what = "reset() gives, (obs, info)" if len(rest) == 1 else "step() gives"
    assert f"this tuple is everything that {what}; pass only its first value: act(obs, state, info=info)" in text


def test_an_observation_that_is_a_pair_of_an_array_and_a_dict_is_taken():
    env = Ball()
    env.observation_space = spaces.Tuple([BOX, spaces.Dict({"a": spaces.Discrete(2)})])
    rows, single = agent_obs(readers(env), (OBS, {"a": 1}))
    assert single and rows["1/a"].tolist() == [1]


def test_a_team_also_names_a_whole_result():
    loaded = types.SimpleNamespace(config=types.SimpleNamespace(env="my-team"), env_steps=0)
    team = LoadedTeam(loaded, [])
    text = one_line(lambda: team.act(({"a": OBS}, {"a": {}})))
    assert "reset() gives, (obs, info)" in text and "'my-team'" in text


# ---- bounds that hold nothing


def bent(low, high) -> spaces.Box:
    box = spaces.Box(-1, 1, (1,), np.float32)
    box.low, box.high = np.float32([low]), np.float32([high])
    return box


@pytest.mark.parametrize("box", [bent(1, 0), bent(np.nan, 1), bent(0, np.nan)], ids=str)
def test_bounds_without_values_between_are_refused(box):
    env = Ball()
    env.observation_space = box
    assert "'vector' has a bound that is NaN or a low bound above its high" in one_line(lambda: readers(env, "my-env"))
    env.action_space = box
    assert "the action space has a bound that is NaN" in one_line(lambda: action_reader(env, "my-env"))
