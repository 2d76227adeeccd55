"""Rollouts inside a world that a person can follow: the latent is a number, an action is added to it."""

from __future__ import annotations

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


def run(policy, start, horizon: int = 3, noise: float = 0.0, seed: int = 0):
    """feat and action [N, H+1]."""
    start = jnp.float32(start).reshape(-1, 1)
    feat, action = tiny.jit(lambda key: rollout(adding_dream(noise), policy, key, start, horizon))(jax.random.key(seed))
    assert feat.shape == action.shape == (len(start), horizon + 1, 1)
    return np.asarray(feat[..., 0]), np.asarray(action[..., 0])


def test_rollout_by_hand():
    feat, action = run(lambda key, feat: feat + 1, [0, 10])
    np.testing.assert_array_equal(feat, [[0, 1, 3, 7], [10, 21, 43, 87]])
    np.testing.assert_array_equal(action, [[1, 2, 4, 8], [11, 22, 44, 88]])


def test_each_action_leads_from_its_state_to_the_next():
    feat, action = run(lambda key, feat: jax.random.normal(key, feat.shape), [0, 0, 5])
    np.testing.assert_allclose(feat[:, 1:], feat[:, :-1] + action[:, :-1], atol=1e-6)


def test_actions_differ_by_step_and_by_start():
    _, action = run(lambda key, feat: jax.random.normal(key, feat.shape), [0, 0, 5])
    assert len(np.unique(action)) == action.size


def test_world_and_policy_draw_from_different_keys():
    feat, action = run(lambda key, feat: jax.random.normal(key, feat.shape), [0, 0], noise=1.0)
    noise = feat[:, 1:] - feat[:, :-1] - action[:, :-1]
    assert np.abs(noise[:, :, None] - action[:, None, :]).min() > 1e-3


def test_the_same_key_dreams_the_same():
    policy = lambda key, feat: jax.random.normal(key, feat.shape)  # noqa: E731
    one, same, other = (run(policy, [0, 1], noise=1.0, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[:, 1:], other[:, 1:])


def test_a_horizon_of_one_step_has_two_states():
    feat, action = run(lambda key, feat: feat + 1, [4], horizon=1)
    np.testing.assert_array_equal(feat, [[4, 9]])
    np.testing.assert_array_equal(action, [[5, 10]])
