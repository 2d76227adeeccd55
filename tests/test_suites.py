"""The suites with the packages that they wrap, if installed: gymnasium's interface, and training.

`python -m pytest tests/test_suites.py -m "slow or not slow"` in an environment with the extras runs all of it.
"""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
from playing import play, same
from tiny_runs import lines, tiny

import dreamer
from dreamer import plugins
from dreamer.config import load
from dreamer.errors import UserError
from dreamer.runtime.env import state as env_state
from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.env.parallel import ParallelRows, any_spec
from dreamer.runtime.env.rows import EnvRows, empty_step


class Suite(NamedTuple):
    """A task to test: its package, its options, its abilities, and a misspelt name with the expected hint."""

    env: str
    package: str
    options: dict[str, Any] = {}
    has_state: bool = True
    draws: bool = True
    wrong: tuple[str, str] = ("", "")


SUITES = [
    Suite("LunarLander-v3", "Box2D", has_state=False),
    Suite("car_racing:v3", "Box2D", has_state=False, wrong=("v2", "did you mean 'v3'")),
    Suite("dmc:cheetah-run", "dm_control", {"image": True}),
    Suite("dmc:finger-turn_hard", "dm_control", wrong=("walker-wlk", "did you mean 'walker-walk'")),
    Suite("atari:pong", "ale_py", wrong=("breakut", "did you mean 'breakout'")),
    Suite("atari:ms_pacman", "ale_py", {"size": [64, 64], "gray": False, "sticky": 0.0, "actions": "minimal"}),
    Suite("crafter:reward", "crafter", wrong=("rewad", "did you mean 'reward'")),
    Suite("minigrid:MultiRoom-N2-S4-v0", "minigrid", wrong=("Empty-5x", "mean 'MiniGrid-Empty-5x5")),
    Suite("minigrid:DoorKey-5x5-v0", "minigrid", {"view": "symbols"}),
    Suite("mujoco:Hopper", "mujoco", wrong=("HalfCheeta", "did you mean 'HalfCheetah'")),
    Suite("bsuite:catch/0", "bsuite", draws=False, wrong=("cach/0", "did you mean 'catch'")),
    Suite("bsuite:cartpole_noise/3", "bsuite", draws=False),
    Suite("memory_maze:9x9", "memory_maze", has_state=False, wrong=("7x7", "choices: 9x9")),
    Suite("popgym:RepeatPreviousEasy", "popgym", draws=False, wrong=("RepeatPreviousEazy", "RepeatPreviousEasy")),
    Suite("popgym:PositionOnlyPendulumEasy", "popgym", draws=False),
    Suite("vizdoom:DefendLine", "vizdoom", has_state=False, wrong=("Basik", "did you mean 'Basic'")),
    Suite("metaworld:reach-v3", "metaworld", has_state=False, wrong=("rech", "did you mean 'reach-v3'")),
    Suite("nethack:Score", "nle", has_state=False, wrong=("Scor", "did you mean 'Score'")),
    Suite("minihack:Room-5x5-v0", "minihack", has_state=False, wrong=("Room-5x", "did you mean 'MiniHack-Room-5x5")),
]


def of(suites: list[Suite]) -> Any:
    """Parametrizes a test over suites; Memory Maze is marked slow because it takes most of a minute to render."""
    slow = {"memory_maze:9x9": pytest.mark.slow}
    rows = [pytest.param(suite, marks=slow.get(suite.env, ()), id=suite.env) for suite in suites]
    return pytest.mark.parametrize("suite", rows)


every_suite = of(SUITES)
TEAMS = [
    Suite("pettingzoo:simple_spread", "mpe2", wrong=("simple_spred", "did you mean 'simple_spread'")),
    Suite("pettingzoo:butterfly/knights_archers_zombies_v11", "pettingzoo", {"max_cycles": 60}),
    Suite("pettingzoo:pursuit", "pettingzoo", {"max_cycles": 20}),
    Suite("pettingzoo:simple_tag", "mpe2", wrong=("pistonball_v1", "the installed version is 'pistonball_v6'")),
]
every_team = of(TEAMS[:3])
# Warnings of the packages themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore:The system font:UserWarning"),
    pytest.mark.filterwarnings("ignore:pkg_resources is deprecated:UserWarning"),
]
STEPS = 30
# Others have the name of the suite.
PRESET_OF = {"dmc": "dmc_proprio", "LunarLander-v3": "box2d", "car_racing": "world_models_2018"}
PRESETS = pathlib.Path(__file__).parent.parent / "experiments"


def make(suite: Suite, render_mode: str | None = None) -> gymnasium.Env:
    """Makes the environment, or skips the test if the package or a graphics library is missing."""
    if importlib.util.find_spec(suite.package) is None:
        pytest.skip(f"{suite.package} is not installed")
    try:
        return plugins.make_env(suite.env, suite.options, render_mode)
    except UserError as error:
        if "OpenGL" in str(error) or suite.package == "memory_maze" and "needs the package" in str(error):
            pytest.skip(str(error))
        raise


@every_suite
def test_observations_and_answers_are_as_the_spaces_say(suite):
    env = make(suite)
    for answer in play(env, 0):
        obs, reward, over, cut = answer if isinstance(answer, list) else (answer, 0.0, False, False)
        assert env.observation_space.contains(obs)
        assert np.isscalar(reward) and isinstance(over, bool) and isinstance(cut, bool)
    env.close()


@every_suite
def test_an_observation_stays_as_it_is_while_the_next_ones_come(suite):
    env = make(suite)
    first, _ = env.reset(seed=0)
    before = {key: np.copy(value) for key, value in first.items()} if isinstance(first, dict) else np.copy(first)
    for _ in range(5):
        env.step(env.action_space.sample())
    assert same(first, before)
    env.close()


@every_suite
def test_a_seed_decides_the_episodes_that_follow(suite):
    env, other = make(suite), make(suite)
    first = play(env, 3)
    assert same(first, play(other, 3)) and same(first, play(env, 3))
    assert not same(first, play(env, 4))
    env.close(), other.close()


@of([s for s in SUITES if s.has_state])
def test_an_environment_continues_from_its_state_as_if_uninterrupted(suite):
    env, other = make(suite), make(suite)
    play(env, 1)
    other.reset(seed=2)
    state = env_state.get_state(env)
    assert isinstance(state, bytes), state
    env_state.set_state(other, state)
    for _ in range(STEPS):
        action = env.action_space.sample()
        (*one, _), (*two, _) = env.step(action), other.step(action)
        assert same(one, two)
        if one[2] or one[3]:
            assert same(env.reset()[0], other.reset()[0])
    env.close(), other.close()


@of([s for s in SUITES if s.draws])
def test_it_is_recorded_when_asked_and_not_otherwise(suite):
    env = make(suite, "rgb_array")
    rows = EnvRows(env, seed=0)
    for _ in range(3):
        rows.step(np.zeros(rows.spec.action_width, np.float32))
    picture = rows.render()
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 5
    rows.close()
    plain = EnvRows(make(suite), seed=0)
    assert plain.render() is None
    plain.close()


@of([s for s in SUITES + TEAMS if s.wrong[0]])
def test_a_wrong_task_gets_the_nearest_one(suite):
    make(suite).close()
    with pytest.raises(UserError, match=suite.wrong[1]):
        plugins.make_env(f"{suite.env.split(':')[0]}:{suite.wrong[0]}", suite.options)


@of(SUITES + TEAMS[:1])
def test_the_environment_of_its_preset_can_be_made(suite):
    make(suite).close()
    name = suite.env.split(":")[0]
    config = load(PRESETS / f"{PRESET_OF.get(name, name)}.yaml")
    env = plugins.make_env(config.env, config.env_options)
    assert any_spec(env).action_width > 1
    env.close()


def rows_of_all(suite: Suite, seed: int, render_mode: str | None = None) -> list[Any]:
    """Returns the rows of all agents over some games with random actions, and then an image."""
    rows = ParallelRows(make(suite, render_mode), seed=seed)
    out, rng, taken = empty_step(rows.spec, rows.spec.agents), np.random.default_rng(0), []
    for _ in range(150):
        rows.turn(out, 0)
        there = ~np.isnan(out.reward)
        taken.append([part[there].copy() for part in (*out.obs.values(), out.reward, out.is_first, out.is_last)])
        out.action[:] = random_actions(rows.spec.action, rng, rows.spec.agents)
    picture = rows.render()
    rows.close()
    return [*taken, picture]


@every_team
def test_a_seed_decides_the_rows_of_all_agents(suite):
    *first, picture = rows_of_all(suite, 3)
    *again, _ = rows_of_all(suite, 3)
    assert same(first, again) and not same(first, rows_of_all(suite, 4)[:-1]) and picture is None
    assert sum(int(row[-1].sum()) for row in first) >= 2  # episodes that ended
    assert rows_of_all(suite, 3, "rgb_array")[-1].std() > 5


def test_agents_that_see_unlike_things_are_refused():
    with pytest.raises(UserError, match="agent 'agent_0' shows 'vector' as Box.*agent 'adversary_0' Box"):
        ParallelRows(make(TEAMS[3]))


@pytest.mark.slow
@of(SUITES + TEAMS[:2])  # there are too few rows for sequences of all agents of pursuit
def test_it_is_trained_on_for_a_moment(suite, tmp_path):
    make(suite).close()
    pictures = {"agent__world_model__mults": [1, 1, 1, 1], "eval__episodes": 0}
    dreamer.train(tiny(tmp_path / "run", env=suite.env, env_options=suite.options, **pictures))
    assert lines(tmp_path / "run")[-1]["updates"] >= 2

