"""Action distributions checked by hand: groups of several lengths, numbers beside them, masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.ops import action_dist
from dreamer.ops import distributions as dist

OUTS = {"logits": jnp.log(jnp.float32([[0.5, 0.25, 0.25, 0.9, 0.1]]))}


def test_one_categorical_by_hand():
    actions, outs = action_dist.make((3,), 0), {"logits": jnp.log(jnp.float32([[0.5, 0.25, 0.25]]))}
    np.testing.assert_array_equal(actions.mode(outs), [[1, 0, 0]])
    np.testing.assert_allclose(actions.log_prob(outs, jnp.float32([[0, 0, 1]])), [np.log(0.25)], rtol=1e-5)
    np.testing.assert_allclose(actions.entropy(outs), [1.5 * np.log(2)], rtol=1e-5)


def test_numbers_are_not_clipped(key):
    actions = action_dist.make((), 2)
    outs = {"mean": jnp.full((1000, 2), 3.0), "stddev": jnp.full((1000, 2), 3.0)}
    samples = actions.sample(key, outs)
    assert samples.max() > 1 and np.abs(actions.mode(outs)).max() <= 1


def test_groups_of_several_lengths_are_independent_categoricals():
    actions = action_dist.make((3, 2), 0)
    chosen = jnp.float32([[0, 1, 0, 0, 1]])
    np.testing.assert_array_equal(actions.mode(OUTS), [[1, 0, 0, 1, 0]])
    np.testing.assert_allclose(actions.log_prob(OUTS, chosen), [np.log(0.25) + np.log(0.1)], rtol=1e-5)
    entropy = 1.5 * np.log(2) - 0.9 * np.log(0.9) - 0.1 * np.log(0.1)
    np.testing.assert_allclose(actions.entropy(OUTS), [entropy], rtol=1e-5)


@pytest.mark.parametrize("unimix", [0.0, 0.1])
def test_samples_of_groups_have_their_probabilities(key, unimix):
    actions = action_dist.make((3, 2), 0, unimix=unimix)
    outs = {"logits": jnp.broadcast_to(OUTS["logits"], (20_000, 5))}
    samples = np.asarray(actions.sample(key, outs))
    np.testing.assert_array_equal([samples[:, :3].sum(1), samples[:, 3:].sum(1)], np.ones((2, 20_000)))
    mixed = (1 - unimix) * np.array([0.5, 0.25, 0.25, 0.9, 0.1]) + unimix / np.array([3, 3, 3, 2, 2])
    np.testing.assert_allclose(samples.mean(0), mixed, atol=0.015)


def test_hybrid_is_the_sum_of_both(key):
    actions = action_dist.make((3, 2), 2)
    outs = OUTS | {"mean": jnp.zeros((1, 2)), "stddev": jnp.zeros((1, 2))}
    numbers = action_dist.make((), 2)
    action = jnp.float32([[0, 1, 0, 0, 1, 0.3, -0.2]])
    onehots = action_dist.make((3, 2), 0)
    expected = onehots.log_prob(OUTS, action[:, :5]) + numbers.log_prob(outs, action[:, 5:])
    np.testing.assert_allclose(actions.log_prob(outs, action), expected, rtol=1e-6)
    np.testing.assert_allclose(actions.entropy(outs), onehots.entropy(OUTS) + numbers.entropy(outs), rtol=1e-6)
    assert actions.sample(key, outs).shape == actions.mode(outs).shape == (1, 7)


@pytest.mark.parametrize("unimix", [0.0, 0.1])
def test_forbidden_choices_are_never_drawn_and_the_others_keep_their_proportions(key, unimix):
    actions = action_dist.make((3, 2), 0, unimix=unimix)
    allowed = jnp.array([[False, True, True, True, False]])
    outs = {"logits": jnp.broadcast_to(OUTS["logits"], (5_000, 5))}
    samples = np.asarray(actions.sample(key, outs, allowed))
    assert samples[:, 0].max() == 0 and samples[:, 3].min() == 1
    np.testing.assert_allclose(samples[:, 1].mean(), 0.5, atol=0.03)
    np.testing.assert_array_equal(actions.mode(OUTS, allowed)[0, 3:], [1, 0])
    np.testing.assert_allclose(actions.entropy(OUTS, allowed), [np.log(2)], rtol=1e-5)
    np.testing.assert_allclose(actions.log_prob(OUTS, jnp.float32([[0, 1, 0, 1, 0]]), allowed), [-np.log(2)], rtol=1e-5)


def test_a_one_hot_with_no_allowed_entry_is_unrestricted():
    actions = action_dist.make((3, 2), 0)
    nothing = jnp.array([[False, False, False, True, True]])
    np.testing.assert_allclose(actions.entropy(OUTS, nothing), actions.entropy(OUTS), rtol=1e-6)


def test_gradients_under_masks_are_finite_and_zero_for_forbidden_choices():
    actions = action_dist.make((3, 2), 0, unimix=0.01)
    allowed = jnp.array([[False, True, True, True, False]])

    def gain(logits):
        outs = {"logits": logits}
        return (actions.log_prob(outs, jnp.float32([[0, 1, 0, 1, 0]]), allowed) + actions.entropy(outs, allowed)).sum()

    grads = np.asarray(jax.grad(gain)(OUTS["logits"]))
    assert np.isfinite(grads).all() and (grads[0, [0, 4]] == 0).all() and (grads[0, [1, 2]] != 0).any()


def test_a_single_group_is_the_categorical_of_its_logits(key):
    logits = jax.random.normal(key, (7, 4))
    actions = action_dist.make((4,), 0, unimix=0.1)
    np.testing.assert_array_equal(
        actions.entropy({"logits": logits}), dist.categorical_entropy(dist.mix_uniform(logits, 0.1))
    )
    np.testing.assert_array_equal(
        actions.sample(key, {"logits": logits}), dist.sample_onehot(key, dist.mix_uniform(logits, 0.1))
    )
