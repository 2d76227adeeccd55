"""An environment given as a function is trained on in this and other processes, loaded, evaluated and resumed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from tiny_runs import tiny

import dreamer
from dreamer import plugins
from dreamer.config import load as load_config
from dreamer.errors import UserError


class Line(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, width):
        self.observation_space = gymnasium.spaces.Box(0, 1, (width,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self._show(), {}

    def step(self, action):
        self.time += 1
        return self._show(), float(action), False, self.time == 4, {}

    def _show(self):
        return np.full(self.observation_space.shape, self.time / 4, np.float32)


def in_a_module(width: int = 3):
    return Line(width)


def closure():
    width = 3
    return lambda: Line(width)


@pytest.fixture(scope="module", params=["inline", pytest.param("processes", marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    return dreamer.train(tiny(run_dir, workers__backend=request.param), make_env=closure())


def test_a_function_that_no_module_holds_is_trained_on(run):
    assert load_config(run / "config.yaml").env .endswith("test_make_env:closure.<locals>.<lambda>")


def test_it_is_loaded_and_scored_when_it_is_given_again(run):
    agent = dreamer.load(run, make_env=closure())
    action, _ = agent.act(np.zeros(3, np.float32))
    assert action in (0, 1)
    assert len(dreamer.evaluate(run, episodes=2, make_env=closure()).returns) == 2


def test_without_the_function_the_error_says_what_to_do(run):
    with pytest.raises(UserError, match="pass it again as make_env="):
        dreamer.load(run)


def test_a_function_of_a_module_is_known_by_its_name(tmp_path):
    assert plugins.maker(in_a_module) == f"{__name__}:in_a_module"
    run = dreamer.train(tiny(tmp_path / "run", env_options={"width": 3}), make_env=in_a_module)
    assert dreamer.load(run).observation_space.shape == (3,)


def test_a_value_that_is_not_a_function_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="make_env is a int"):
        dreamer.train(tiny(tmp_path / "run"), make_env=3)


def test_its_options_are_checked(tmp_path):
    with pytest.raises(UserError, match="takes no option 'depth'"):
        dreamer.train(tiny(tmp_path / "run", env_options={"depth": 2}), make_env=in_a_module)


@pytest.mark.parametrize(
    ("config", "more", "part"),
    [
        ("x.yaml", {}, r"dreamer.train\(dreamer.load_config\('x.yaml'\)\)"),
        ({"seed": 3}, {}, "takes a Config, not a mapping"),
        (dreamer.load_config(), {"resume": True}, "resume must be one of no, yes, auto, not True"),
        (dreamer.load_config(), {"make_env": "CartPole-v1"}, "make_env is a str.*env='CartPole-v1'"),
    ],
)
def test_a_call_of_train_with_something_else_says_how_to_call_it(tmp_path, monkeypatch, config, more, part):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=part):
        dreamer.train(config, **more)
    assert not list(tmp_path.iterdir())
