"""dreamer.ops: calculations by hand, and properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dreamer.ops import distributions as dist
from dreamer.ops import normalize, optimizers
from dreamer.ops.balance import kl_balance
from dreamer.ops.keys import named_keys
from dreamer.ops.returns import lambda_returns
from dreamer.ops.scan import scan_time

BINS = dist.twohot_bins(255)
encode = tiny.jit(lambda x: dist.twohot_encode(x, BINS))
few = settings(max_examples=50, deadline=None)


def rows(low: float = -100.0, high: float = 100.0):
    """Draws vectors of 8 float32 values; a single shape, so that everything compiles once."""
    return hnp.arrays(np.float32, 8, elements=floats(low, high))


def floats(low: float, high: float):
    """Draws float32 values."""
    # XLA treats subnormal numbers as 0.
    return st.floats(float(np.float32(low)), float(np.float32(high)), width=32, allow_subnormal=False)


# --- lambda-returns ---------------------------------------------------------------------------------


def returns(reward, cont, value, lam):
    return np.asarray(jitted_returns(*map(jnp.float32, (reward, cont, value)), jnp.float32(lam)))


jitted_returns = tiny.jit(lambda_returns)


def test_lambda_returns_by_hand():
    # R_2 = 20;  R_1 = 2 + 0.5 (0.5 * 20 + 0.5 * 20) = 12;  R_0 = 1 + 0.5 (0.5 * 10 + 0.5 * 12) = 6.5
    np.testing.assert_allclose(returns([1, 2], [0.5, 0.5], [10, 20], 0.5), [6.5, 12])


@few
@given(rows(), rows(0, 1), rows())
def test_lambda_0_is_the_one_step_return(reward, cont, value):
    np.testing.assert_allclose(returns(reward, cont, value, 0.0), reward + cont * value, rtol=1e-5, atol=1e-4)


@few
@given(rows(), rows(0, 1), rows())
def test_lambda_1_is_the_monte_carlo_return_with_the_last_value_as_bootstrap(reward, cont, value):
    expected, future = [], np.float64(value[-1])
    for r, c in zip(reward[::-1], cont[::-1], strict=True):
        future = r + c * future
        expected.insert(0, future)
    np.testing.assert_allclose(returns(reward, cont, value, 1.0), expected, rtol=1e-4, atol=1e-3)


@few
@given(rows(), rows(0, 1), rows(), rows(), st.integers(0, 6), floats(0, 1))
def test_cont_0_cuts_off_all_that_follows(reward, cont, value, other, cut, lam):
    cont[cut] = 0
    there, beyond = np.arange(8) == cut, np.arange(8) > cut
    changed = returns(np.where(beyond, other, reward), cont, np.where(beyond | there, other, value), lam)
    np.testing.assert_array_equal(returns(reward, cont, value, lam)[: cut + 1], changed[: cut + 1])
    assert changed[cut] == reward[cut]


@few
@given(floats(0, 1), floats(0, 0.99), floats(-10, 10))
def test_the_true_value_of_a_constant_reward_is_a_fixed_point_for_every_lambda(lam, discount, reward):
    value = np.full(8, reward / (1 - discount))
    np.testing.assert_allclose(
        returns(np.full(8, reward), np.full(8, discount), value, lam), value, rtol=1e-4, atol=1e-4
    )


def test_lambda_may_differ_by_step():
    # lambda 0 at the first step uses the value there; lambda 1 at the second passes the future on.
    np.testing.assert_allclose(returns([1, 2], [1, 1], [10, 20], [0, 1]), [1 + 10, 2 + 20])


def test_lambda_returns_refuse_a_batch():
    with pytest.raises(AssertionError):
        lambda_returns(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros((2, 3)), 0.95)


# --- symlog, two-hot --------------------------------------------------------------------------------


def test_symlog_by_hand():
    np.testing.assert_allclose(dist.symlog(jnp.float32([np.e - 1, 0, 1 - np.e])), [1, 0, -1], rtol=1e-6)


@few
@given(rows(-1e6, 1e6))
def test_symexp_inverts_symlog(x):
    np.testing.assert_allclose(dist.symexp(dist.symlog(x)), x, rtol=2e-5, atol=1e-6)


@few
@given(rows(-12, 12))
def test_symlog_inverts_symexp(x):
    np.testing.assert_allclose(dist.symlog(dist.symexp(x)), x, rtol=1e-5, atol=1e-6)


def test_twohot_bins_have_the_specified_values():
    assert BINS.shape == (255,) and BINS.dtype == np.float32
    np.testing.assert_allclose(BINS[[0, 126, 127]], [-4.8516518e08, -0.17056, 0], rtol=1e-4)
    np.testing.assert_array_equal(BINS, -BINS[::-1])
    assert (np.diff(BINS) > 0).all()


@pytest.mark.parametrize("count", [1, 2, 254])
def test_twohot_needs_a_middle_bin(count):
    with pytest.raises(ValueError, match=str(count)):
        dist.twohot_bins(count)


def test_twohot_by_hand():
    bins = np.float32([-2, -1, 0, 1, 2])
    weights = tiny.jit(lambda x: dist.twohot_encode(x, bins))(jnp.float32([0.25, 1, -7, 2]))
    np.testing.assert_allclose(
        weights, [[0, 0, 0.75, 0.25, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], atol=1e-7
    )


@few
@given(rows(-4e8, 4e8) | rows(-10, 10))
def test_twohot_round_trip(x):
    weights = np.asarray(encode(x), np.float64)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    assert (weights >= 0).all() and ((weights > 0).sum(-1) <= 2).all()
    np.testing.assert_allclose(weights @ BINS.astype(np.float64), x, rtol=1e-4, atol=1e-6)


decode = tiny.jit(lambda weights: dist.twohot_mean(jnp.log(weights + 1e-30), BINS))


@few
@given(rows(-100, 100))
def test_twohot_mean_decodes_what_was_encoded(x):
    mean = decode(encode(x))
    np.testing.assert_allclose(mean, x, rtol=1e-3, atol=1e-3)


def weighted(loss: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns (logits [8, K], target [8]) -> sum of a loss with a different weight per row, and its gradient."""
    rates = jnp.arange(1.0, 9.0)
    return tiny.jit(jax.value_and_grad(lambda logits, target: (loss(logits, target) * rates).sum()))


plain_twohot_loss = weighted(lambda x, y: -(dist.twohot_encode(y, BINS) * jax.nn.log_softmax(x)).sum(-1))
twohot_loss = weighted(lambda x, y: dist.twohot_loss(x, y, BINS))


@few
@given(rows(-30, 30), rows(-4e8, 4e8) | rows(-10, 10))
def test_the_twohot_loss_and_its_gradient_are_those_of_the_dense_target(scale, target):
    logits = np.outer(scale, np.cos(np.arange(255))).astype(np.float32)
    for actual, plain in zip(twohot_loss(logits, target), plain_twohot_loss(logits, target), strict=True):
        np.testing.assert_allclose(actual, plain, rtol=1e-5, atol=2e-5)


def test_the_twohot_loss_is_least_at_the_encoded_target():
    target = jnp.float32([3.3])
    gradient = tiny.jit(jax.grad(lambda logits: dist.twohot_loss(logits, target, BINS).sum()))
    best = np.log(np.asarray(encode(target)) + 1e-30)
    assert np.abs(gradient(best)).max() < 1e-6 < np.abs(gradient(best + 0.01 * np.arange(255, dtype=np.float32))).max()


# --- categorical ------------------------------------------------------------------------------------


def test_unimix_by_hand():
    # 0.9 * (1, 0, 0, 0) + 0.1 / 4
    logp = dist.mix_uniform(jnp.float32([100, 0, 0, 0]), 0.1)
    np.testing.assert_allclose(np.exp(logp), [0.925, 0.025, 0.025, 0.025], rtol=1e-5)


def test_categorical_entropy_and_kl_by_hand():
    uniform, peaked = jnp.zeros(4), jnp.log(jnp.float32([0.5, 0.5, 1e-30, 1e-30]))
    np.testing.assert_allclose(dist.categorical_entropy(uniform), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(dist.categorical_kl(peaked, uniform), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(dist.categorical_kl(uniform, uniform), 0, atol=1e-7)


def test_samples_are_one_hot_with_the_frequencies_of_the_logits(key):
    probs = np.float32([0.5, 0.3, 0.2])
    samples = np.asarray(dist.sample_onehot(key, jnp.broadcast_to(jnp.log(probs), (20_000, 3))))
    assert set(np.unique(samples)) == {0, 1} and (samples.sum(-1) == 1).all()
    np.testing.assert_allclose(samples.mean(0), probs, atol=0.015)  # four standard deviations


def test_straight_through_has_the_sample_as_value_and_the_gradient_of_the_probabilities():
    logits, onehot, weight = jnp.float32([0.3, -1, 2]), jnp.float32([0, 1, 0]), jnp.float32([1, 2, 4])
    np.testing.assert_array_equal(dist.straight_through(onehot, jax.nn.log_softmax(logits)), onehot)
    ours = tiny.jit(jax.grad(lambda x: (weight * dist.straight_through(onehot, jax.nn.log_softmax(x))).sum()))(logits)
    probs = tiny.jit(jax.grad(lambda x: (weight * jax.nn.softmax(x)).sum()))(logits)
    np.testing.assert_allclose(ours, probs, rtol=1e-6)


def test_dyn_trains_the_prior_and_rep_the_posterior():
    post, prior = (dist.mix_uniform(jax.random.normal(jax.random.key(i), (2, 4, 3)), 0.01) for i in range(2))
    for index, reached in ((0, 1), (1, 0)):  # dyn -> prior, rep -> posterior
        grads = tiny.jit(jax.grad(lambda q, p, i=index: kl_balance(q, p, 0.0)[i].sum(), (0, 1)))(post, prior)
        assert np.abs(grads[reached]).max() > 0 and not np.any(grads[1 - reached])


def test_free_nats_are_a_floor_of_the_sum_over_groups():
    # Two groups of KL ln 2 each: 1.386 is above one free nat, but each single group is below.
    post = jnp.log(jnp.float32([[1, 1e-30], [1, 1e-30]]))
    prior = jnp.log(jnp.full((2, 2), 0.5))
    balance = tiny.jit(kl_balance)
    for free, expected in ((1.0, 2 * np.log(2)), (3.0, 3.0)):
        dyn, rep, raw = balance(post, prior, free)
        np.testing.assert_allclose([dyn, rep, raw], [expected, expected, 2 * np.log(2)], rtol=1e-6)


# --- normal and Bernoulli ---------------------------------------------------------------------------


def test_bounded_normal_starts_as_specified():
    mean, std = dist.bounded_normal(jnp.zeros(3), jnp.zeros(3), 0.1, 1.0)
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_allclose(std, 0.89272, rtol=1e-4)  # 0.9 sigmoid(2) + 0.1


@few
@given(rows(-1e4, 1e4), rows(-1e4, 1e4))
def test_bounded_normal_keeps_its_bounds(raw_mean, raw_std):
    mean, std = map(np.asarray, dist.bounded_normal(raw_mean, raw_std, 0.1, 1.0))
    assert (np.abs(mean) <= 1).all() and (std >= np.float32(0.1)).all() and (std <= 1 + 1e-6).all()


def test_normal_log_prob_and_entropy_by_hand():
    # -0.5 (z^2 + ln 2 pi) - ln std, summed: z = (0, 2), std = (1, 0.5)
    logp = dist.normal_log_prob(jnp.zeros(2), jnp.float32([1, 0.5]), jnp.float32([0, 1]))
    np.testing.assert_allclose(logp, -0.918939 + (-2 - 0.918939 + np.log(2)), rtol=1e-5)
    np.testing.assert_allclose(dist.normal_entropy(jnp.float32([1, 0.5])), 2 * 1.418939 - np.log(2), rtol=1e-5)


def test_bernoulli_loss_by_hand():
    loss = dist.bernoulli_loss(jnp.float32([0, np.log(3), 100]), jnp.float32([1, 0.5, 0]))
    np.testing.assert_allclose(loss, [np.log(2), -0.5 * np.log(0.75) - 0.5 * np.log(0.25), 100], rtol=1e-5)


# --- normalisers ------------------------------------------------------------------------------------


def test_percentiles_by_hand():
    norm, x = normalize.percentiles(rate=0.5), jnp.arange(101.0)
    state = norm.update(norm.init(), x)
    np.testing.assert_allclose(norm.stats(state), [2.5, 45], rtol=1e-6)  # half of the percentiles 5 and 95
    np.testing.assert_allclose(norm.stats(norm.update(state, x)), [3.75, 67.5], rtol=1e-6)


@few
@given(rows(-0.5, 0.5))
def test_small_returns_are_not_scaled_up(x):
    norm = normalize.percentiles(rate=1.0)
    assert norm.stats(norm.update(norm.init(), x))[1] == 1


def test_moments_are_right_from_the_first_update():
    norm, x = normalize.moments(), jnp.float32([1, 2, 3, 6])
    mean, std = norm.stats(norm.update(norm.init(), x))
    np.testing.assert_allclose([mean, std], [3, np.sqrt(3.5)], rtol=1e-4)


def test_identity_normaliser_changes_nothing():
    norm = normalize.make("none")
    assert norm.stats(norm.update(norm.init(), jnp.ones(3))) == (0, 1)


@pytest.mark.parametrize("name", ["percentiles", "moments", "none"])
def test_normalisers_pass_no_gradient(name):
    norm = normalize.make(name)

    def scaled(x):
        offset, scale = norm.stats(norm.update(norm.init(), 1000 * x))
        return offset + scale

    assert not np.any(tiny.jit(jax.grad(scaled))(jnp.arange(4.0)))


# --- optimizer --------------------------------------------------------------------------------------


def clip(grad, param):
    transform = optimizers.clip_by_agc(0.3)
    return np.asarray(transform.update({"w": jnp.float32(grad)}, transform.init({}), {"w": jnp.float32(param)})[0]["w"])


def test_agc_caps_the_gradient_of_a_zero_tensor():
    np.testing.assert_allclose(clip([3, 4], [0, 0]), [0.6 * 3e-4, 0.8 * 3e-4], rtol=1e-5)


def test_agc_caps_relative_to_the_whole_tensor():
    np.testing.assert_allclose(clip([[3, 0], [0, 4]], [[0, 6], [8, 0]]), [[1.8, 0], [0, 2.4]], rtol=1e-5)


def test_agc_leaves_small_and_zero_gradients_alone():
    np.testing.assert_array_equal(clip([1e-5, 0], [1, 1]), np.float32([1e-5, 0]))
    np.testing.assert_array_equal(clip([0, 0], [0, 0]), [0, 0])


def run_optimizer(grads, **config):
    """Returns the updates for successive scalar gradients, without the learning rate."""
    optimizer = optimizers.make(optimizers.Config(agc=0.0, **config))
    params, out = {"kernel": jnp.ones(())}, []
    state = optimizer.init(params)
    for grad in grads:
        update, state = optimizer.update({"kernel": jnp.float32(grad)}, state, params)
        out.append(float(update["kernel"]))
    return out


def test_laprop_by_hand():
    # Gradients 1 and 3, both betas 0.5.
    # Second moment: 0.5, then 0.5 * 0.5 + 0.5 * 9 = 4.75; corrected 1 and 4.75 / 0.75.
    # Momentum of the normalised gradients n: 0.5 * 1, then 0.5 * 0.5 + 0.5 * n; corrected 1 and that / 0.75.
    second = 3 / np.sqrt(4.75 / 0.75)
    expected = [1, (0.25 + 0.5 * second) / 0.75]
    np.testing.assert_allclose(run_optimizer([1, 3], beta1=0.5, beta2=0.5), expected, rtol=1e-5)


@few
@given(floats(1e-6, 1e6), st.sampled_from([-1, 1]))
def test_the_first_normalised_update_is_the_sign_of_the_gradient(size, sign):
    assert run_optimizer([sign * size])[0] == pytest.approx(sign, rel=1e-4)


def test_weight_decay_reaches_kernels_only():
    optimizer = optimizers.make(optimizers.Config(weight_decay=0.1))
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2), "scale": jnp.ones(2)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], 0.1)
    assert not np.any(updates["bias"]) and not np.any(updates["scale"])


def rates(*steps: int, **fields: Any) -> list[float]:
    config = optimizers.Config(**fields)
    return [float(optimizers.learning_rate(config, jnp.float32(4e-5), jnp.int32(step))) for step in steps]


def test_learning_rate_rises_from_exactly_0_and_then_stays():
    risen = rates(0, 500, 1000, 9999, warmup=1000)
    np.testing.assert_allclose(risen, [0, 2e-5, 4e-5, 4e-5], rtol=1e-6)
    assert risen[0] == 0 and rates(0, warmup=0) == [np.float32(4e-5)]


@pytest.mark.parametrize("schedule, half", [("linear", 2.2e-5), ("cosine", 2.2e-5)])
def test_a_falling_schedule_ends_at_a_tenth_of_the_peak_and_stays_there(schedule, half):
    fallen = rates(0, 50, 100, 600, 1100, 5000, schedule=schedule, warmup=100, anneal=1100)
    np.testing.assert_allclose(fallen, [0, 2e-5, 4e-5, half, 4e-6, 4e-6], rtol=1e-5)


def test_the_cosine_falls_late():
    np.testing.assert_allclose(rates(250, schedule="linear", warmup=0, anneal=1000), [3.1e-5], rtol=1e-5)
    np.testing.assert_allclose(rates(250, schedule="cosine", warmup=0, anneal=1000), [3.4727922e-5], rtol=1e-5)


def test_a_falling_schedule_needs_an_end():
    with pytest.raises(ValueError, match="anneal must be above warmup, 1000, when schedule is cosine"):
        optimizers.Config(schedule="cosine")


# --- keys, scan -------------------------------------------------------------------------------------


def test_a_named_key_depends_on_its_name_only(key):
    few, many = named_keys(key, "b"), named_keys(key, "a", "b", "c")
    data = {name: tuple(np.asarray(jax.random.key_data(k))) for name, k in many.items()}
    assert data["b"] == tuple(np.asarray(jax.random.key_data(few["b"]))) and len(set(data.values())) == 3


def test_scan_time_runs_over_the_second_axis():
    carry, sums = scan_time(lambda c, x: (c + x, c + x), jnp.zeros(2), jnp.float32([[1, 2, 3], [10, 20, 30]]))
    np.testing.assert_array_equal(sums, [[1, 3, 6], [10, 30, 60]])
    np.testing.assert_array_equal(carry, [6, 60])
