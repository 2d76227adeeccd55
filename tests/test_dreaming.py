"""Rollouts inside a world that a person can follow: the latent is a number, an action is added to it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from dreamer.dreaming import rollout
from dreamer.interfaces import Dream


def adding_dream(noise: float = 0.0) -> Dream:
    """latent [N, 1]; feat is the latent, reward the latent, cont 1."""

    def imagine(key, latent, action):
        return latent + action + noise * jax.random.normal(key, latent.shape)

    return Dream(imagine, feat=lambda latent: latent, predict=lambda feat: (feat[..., 0], jnp.ones(feat.shape[:-1])))


def one_more(key, feat):
    return feat + 1


def random(key, feat):
    return jax.random.normal(key, feat.shape)


@functools.cache
def compiled(policy, noise, horizon):
    return tiny.jit(lambda key, start: rollout(adding_dream(noise), policy, key, start, horizon))


def run(policy, start, horizon: int = 3, noise: float = 0.0, seed: int = 0):
    """feat and action [2, H+1] from two starts."""
    feat, action = compiled(policy, noise, horizon)(jax.random.key(seed), np.float32(start)[:, None])
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
