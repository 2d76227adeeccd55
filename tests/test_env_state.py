"""The state of an environment is saved completely or not at all."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers

from dreamer.runtime.env.state import get_state, set_state
from envs.probes import ENVS


def play(env, actions):
    """Returns the answers of the environment, including resets after episodes."""
    out = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        out += [np.asarray(obs).tobytes(), float(reward), terminated, truncated]
        if terminated or truncated:
            out.append(np.asarray(env.reset()[0]).tobytes())
    return out


def made(make, seed):
    env = make()
    env.reset(seed=seed)
    env.action_space.seed(seed)
    return env


CLASSIC = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
TOY = ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "Blackjack-v1"]
MAKERS = [*ENVS.values(), *(lambda name=name: gymnasium.make(name) for name in CLASSIC + TOY)]


@pytest.mark.parametrize("make", MAKERS, ids=[*ENVS, *CLASSIC, *TOY])
def test_a_restored_environment_continues_bit_for_bit(make):
    env, other = made(make, 3), made(make, 4)
    actions = [env.action_space.sample() for _ in range(60)]
    play(env, actions[:30])
    state = get_state(env)
    expected = play(env, actions[30:])
    set_state(other, state)
    assert play(other, actions[30:]) == expected


def test_a_state_is_not_moved_by_later_steps():
    env = made(ENVS["both"], 0)
    state = env.get_state()
    first = play(env, [0] * 20)
    env.set_state(state)
    assert play(env, [0] * 20) == first


class Plain(gymnasium.Env):
    """Could be pickled, but its pickle may not be its whole state."""

    action_space = observation_space = gymnasium.spaces.Discrete(2)


class Gives(Plain):
    def get_state(self):
        return self.value

    def set_state(self, state):
        self.value = state


class Scaled(gymnasium.Wrapper):
    """An unknown wrapper."""


class Outermost(Scaled):
    def get_state(self):
        return self.env.value

    def set_state(self, state):
        self.env.value = state


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Plain, "Plain has no get_state and set_state"),
        (lambda: Scaled(gymnasium.make("CartPole-v1")), "the wrapper Scaled"),
        (lambda: wrappers.TimeLimit(Scaled(Gives()), 5), "the wrapper Scaled"),
    ],
    ids=["no get_state", "a wrapper not known", "one below a known one"],
)
def test_an_environment_that_may_hide_state_returns_the_reason(make, why):
    assert why in get_state(make())


def test_a_state_that_cannot_be_given_or_pickled_gives_the_error():
    env = Gives()
    assert "the state of Gives cannot be read, AttributeError: " in get_state(env)  # there is no value yet
    env.value = lambda: None
    assert "the state of Gives cannot be read, " in get_state(env)


@pytest.mark.parametrize("wrap", [lambda env: env, Outermost, lambda env: wrappers.OrderEnforcing(Outermost(env))])
def test_the_outermost_layer_that_gives_a_state_is_asked(wrap):
    inner, other = Gives(), Gives()
    inner.value, other.value = [1], [2]
    state = get_state(wrap(inner))
    set_state(wrap(other), state)
    assert other.value == [1]


def test_the_time_limit_continues_counting():
    env, other = (wrappers.TimeLimit(ENVS["both"](100), 5) for _ in range(2))
    env.reset(seed=0)
    play(env, [0] * 3)
    other.reset(seed=1)
    set_state(other, get_state(env))
    assert not other.step(0)[3] and other.step(0)[3]
