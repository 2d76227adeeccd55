"""Rollouts in a world simple enough to check by hand: the latent is a number, and actions are added to it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from dreamer.dreaming.rollout import rollout
from dreamer.interfaces import Dream


def adding_dream(noise: float = 0.0) -> Dream:
    """Returns a dream with state [N, 1], whose feat is the state."""

    def imagine(key, state, action):
        return state + action + noise * jax.random.normal(key, state.shape)

    return Dream(imagine, feat=lambda state: state, predict=lambda feat: {}, decode=lambda state: {})


def one_more(carry, key, feat):
    return carry, feat + 1


def random(carry, key, feat):
    return carry, jax.random.normal(key, feat.shape)


def counting(carry, key, feat):
    """Acts with the number of previous steps."""
    return carry + 1, carry[:, None]


@functools.cache
def compiled(policy, noise, horizon):
    return tiny.jit(lambda key, start: rollout(adding_dream(noise), policy, jnp.zeros(2), key, start, horizon))


def run(policy, start, horizon: int = 3, noise: float = 0.0, seed: int = 0):
    """Returns feat and action [2, H+1] from two starts."""
    feat, action, _ = compiled(policy, noise, horizon)(jax.random.key(seed), np.float32(start)[:, None])
    assert feat.shape == action.shape == (2, horizon + 1, 1)
    return np.asarray(feat[..., 0]), np.asarray(action[..., 0])


def test_rollout_by_hand():
    feat, action = run(one_more, [0, 10])
    np.testing.assert_array_equal(feat, [[0, 1, 3, 7], [10, 21, 43, 87]])
    np.testing.assert_array_equal(action, [[1, 2, 4, 8], [11, 22, 44, 88]])


def test_each_action_leads_from_its_state_to_the_next():
    feat, action = run(random, [0, 5])
    np.testing.assert_allclose(feat[:, 1:], feat[:, :-1] + action[:, :-1], atol=1e-6)


def test_actions_differ_by_step_and_by_start():
    _, action = run(random, [0, 0])
    assert len(np.unique(action)) == action.size


def test_world_and_policy_draw_from_different_keys():
    feat, action = run(random, [0, 0], noise=1.0)
    noise = feat[:, 1:] - feat[:, :-1] - action[:, :-1]
    assert np.abs(noise[:, :, None] - action[:, None, :]).min() > 1e-3


def test_the_same_key_dreams_the_same():
    one, same, other = (run(random, [0, 0], noise=1.0, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[:, 1:], other[:, 1:])


def test_a_horizon_of_one_step_has_two_states():
    feat, action = run(one_more, [4, 0], horizon=1)
    np.testing.assert_array_equal(feat, [[4, 9], [0, 1]])
    np.testing.assert_array_equal(action, [[5, 10], [1, 2]])


def test_the_carry_of_the_policy_is_passed_from_step_to_step():
    _, action = run(counting, [0, 0])
    np.testing.assert_array_equal(action, [[0, 1, 2, 3], [0, 1, 2, 3]])
    _, _, carry = compiled(counting, 0.0, 3)(jax.random.key(0), np.zeros((2, 1), np.float32))
    np.testing.assert_array_equal(carry, [4, 4])
