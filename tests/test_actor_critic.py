"""The losses of the actor-critic checked by hand, and the behavior of an untrained one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dreamer.agent import variables
from dreamer.dreaming import actor_critic as ac
from dreamer.interfaces import Ask, Batch, Dream
from dreamer.ops import normalize

BINS = np.float32([-4, 0, 4])
SETTINGS = ac.Settings(BINS, lam=0.5, entropy=0.1, slow_scale=1.0, slow_target=False, discount=1.0)
PLAIN = ac.Norms(*(normalize.identity() for _ in range(3)))
LN3 = np.log(3)


def logits_of(values):
    """Returns logits over BINS whose mean is each value in (-4, 4)."""
    values = np.float32(values)
    weights = np.stack([np.maximum(-values, 0) / 4, 1 - np.abs(values) / 4, np.maximum(values, 0) / 4], -1)
    return np.log(np.maximum(weights, 1e-30))


def dreamed(reward, cont=(1, 1, 1), value=None, log_prob=(-1, -2, -9), entropy=(0.5, 0.25, 9), slow=(0, 0, 0)):
    """Makes one dream of two steps. Without `value`, the critic is uniform over its three bins, with mean 0."""
    row = lambda x: jnp.float32(x)[None]  # noqa: E731
    logits = np.zeros((3, 3), np.float32) if value is None else logits_of(value)
    return ac.Imagined(row(reward), row(cont), row(logits), row(slow), row(log_prob), row(entropy))


def losses_of(dream, discount=1.0, slow_target=False):
    """Returns losses {name: [1, 2]} and returns [1, 2] without normalisers."""
    settings = SETTINGS._replace(discount=discount, slow_target=slow_target)
    return ac.imagined_losses(settings, PLAIN, ac.Norms((), (), ()), dream)[:2]


plain_losses = tiny.jit(losses_of, static_argnames="slow_target")


# --- dreamed losses ---------------------------------------------------------------------------------


def test_dreamed_losses_by_hand():
    # Values 0: R_1 = 2, R_0 = 1 + 0.5 * 0 + 0.5 * 2 = 2, both advantages 2.
    # policy = -(log_prob * 2 + 0.1 * entropy)
    # value = ln 3 for the target 2, half way between two bins, and ln 3 for the slow critic's 0
    out, returns = plain_losses(dreamed(reward=(7, 1, 2)))
    np.testing.assert_allclose(returns, [[2, 2]])
    np.testing.assert_allclose(out["policy"], [[2 - 0.05, 4 - 0.025]], rtol=1e-5)
    np.testing.assert_allclose(out["value"], [[2 * LN3, 2 * LN3]], rtol=1e-5)


def test_advantage_is_the_return_less_the_value():
    # Values (1, 2, 3): R_1 = 2 + 3 = 5, R_0 = 1 + 0.5 * 2 + 0.5 * 5 = 4.5, advantages 3.5 and 3.
    out, returns = plain_losses(dreamed(reward=(7, 1, 2), value=(1, 2, 3), entropy=(0, 0, 0)))
    np.testing.assert_allclose(returns, [[4.5, 5]], rtol=1e-5)
    np.testing.assert_allclose(out["policy"], [[3.5, 6]], rtol=1e-5)


def test_slow_target_takes_the_slow_critics_values():
    dream = dreamed(reward=(7, 1, 2), value=(-1, -1, -1), slow=(1, 2, 3), entropy=(0, 0, 0))
    out, returns = plain_losses(dream, slow_target=True)
    np.testing.assert_allclose(returns, [[4.5, 5]], rtol=1e-5)
    np.testing.assert_allclose(out["policy"], [[3.5, 6]], rtol=1e-5)


def test_dream_from_a_terminal_start_weighs_nothing():
    ended = dreamed(reward=(7, 1, 2), cont=(0, 1, 1))
    out, *_ = plain_losses(ended)
    assert not np.any(out["policy"]) and not np.any(out["value"])
    total = lambda dream: sum(loss.sum() for loss in losses_of(dream)[0].values())  # noqa: E731
    grads = tiny.jit(jax.grad(total))(ended)
    assert not any(np.any(x) for x in (grads.value_logits, grads.log_prob, grads.entropy))


def test_losses_after_an_end_in_the_dream_weigh_nothing():
    live, ended = (plain_losses(dreamed(reward=(7, 1, 2), cont=(1, cont, 1)))[0] for cont in (1, 0))
    for name in live:
        assert live[name][0, 1] != 0 and ended[name][0, 1] == 0 and ended[name][0, 0] != 0


def test_weights_multiply_the_continuations_from_the_start_on():
    whole, part = (plain_losses(dreamed((0, 0, 0), cont))[0]["value"] for cont in ((1, 1, 1), (0.5, 0.5, 0.5)))
    np.testing.assert_allclose(part / whole, [[0.5, 0.25]], rtol=1e-5)


def test_explicit_discount_does_not_weigh_the_start():
    whole, part = (plain_losses(dreamed((0, 0, 0)), jnp.float32(d))[0]["value"] for d in (1.0, 0.5))
    np.testing.assert_allclose(part / whole, [[1, 0.5]], rtol=1e-5)


def test_policy_gradient_is_the_weighted_advantage_and_does_not_reach_the_critic():
    dream = dreamed(reward=(7, 1, 2), value=(1, 2, 3), cont=(0.5, 1, 1))
    grads = tiny.jit(jax.grad(lambda d: losses_of(d)[0]["policy"].sum()))(dream)
    _, returns = plain_losses(dream)
    advantage = np.asarray(returns)[0] - [1, 2]
    np.testing.assert_allclose(grads.log_prob, [[*(-0.5 * advantage), 0]], rtol=1e-5)
    np.testing.assert_allclose(grads.entropy, [[-0.05, -0.05, 0]], rtol=1e-5)
    assert not any(np.any(x) for x in (grads.value_logits, grads.reward, grads.cont, grads.slow_value))


def test_large_returns_are_scaled_down_and_small_ones_are_left():
    norms = PLAIN._replace(ret=normalize.percentiles(rate=1.0))
    states = ac.Norms(norms.ret.init(), (), ())
    run = tiny.jit(lambda dream: ac.imagined_losses(SETTINGS, norms, states, dream))
    for size, scale in ((0.01, 1.0), (1000.0, None)):
        dream = dreamed(reward=(0, size, -size), entropy=(0, 0, 0))
        out, returns, after, metrics = run(dream)
        lo, hi = np.percentile(np.asarray(returns), [5, 95])
        expected = scale or hi - lo
        assert metrics["dream/return_scale"] == pytest.approx(expected, rel=1e-4)
        np.testing.assert_allclose(out["policy"], -np.float32([[-1, -2]]) * returns / expected, rtol=1e-4)
        np.testing.assert_allclose([after.ret.lo, after.ret.hi], [lo, hi], rtol=1e-4)


# --- replayed loss ----------------------------------------------------------------------------------


def replayed(last, terminal):
    """Returns loss and returns [3] for rewards (9, 1, 2, 3), boot (0, 10, 20, 30), lambda and discount 0.5."""
    row = lambda x: jnp.asarray(x)[None]  # noqa: E731
    reward, last, terminal = (row(x) for x in (np.float32([9, 1, 2, 3]), np.array(last) > 0, np.array(terminal) > 0))
    rows = Batch({}, None, reward, None, last, terminal, {})
    boot = row(np.float32([0, 10, 20, 30]))
    loss, returns = run_replayed(rows, boot)
    return np.asarray(loss[0]), np.asarray(returns[0])


@tiny.jit
def run_replayed(rows, boot):
    return ac.replayed_loss(SETTINGS, 0.5, rows, boot, jnp.zeros((1, 4, 3)), jnp.zeros((1, 4)))


def test_replayed_returns_by_hand():
    # R_2 = 3 + 0.5 * 30;  R_1 = 2 + 0.5 (0.5 * 20 + 0.5 * 18);  R_0 = 1 + 0.5 (0.5 * 10 + 0.5 * 11.5)
    loss, returns = replayed([0, 0, 0, 0], [0, 0, 0, 0])
    np.testing.assert_allclose(returns, [6.375, 11.5, 18])
    np.testing.assert_allclose(loss, 2 * LN3, rtol=1e-5)  # a uniform critic, and 0 from its slow copy


def test_replayed_returns_bootstrap_at_a_time_limit():
    # Row 2 is last: R_1 = 2 + 0.5 * 20;  R_0 = 1 + 0.5 (0.5 * 10 + 0.5 * 12)
    loss, returns = replayed([0, 0, 1, 0], [0, 0, 0, 0])
    np.testing.assert_allclose(returns[:2], [6.5, 12])
    np.testing.assert_array_equal(loss != 0, [True, True, False])


def test_replayed_returns_end_at_a_terminal_row():
    # Row 2 is terminal: R_1 = 2;  R_0 = 1 + 0.5 (0.5 * 10 + 0.5 * 2)
    loss, returns = replayed([0, 0, 1, 0], [0, 0, 1, 0])
    np.testing.assert_allclose(returns[:2], [4, 2])
    np.testing.assert_array_equal(loss != 0, [True, True, False])


# --- an untrained behavior --------------------------------------------------------------------------


def fresh(kind: str, mode: str, count: int = 4096):
    """Returns actions [count, A] of an untrained actor on random features."""
    _, behavior = tiny.parts(kind)
    feat = jax.random.normal(jax.random.key(1), (count, tiny.FEAT))
    dream, ask = Dream(None, feat=lambda state: state, predict=None, decode=None), Ask(np.zeros(count, bool))
    run = tiny.jit(lambda v: behavior.act(v, jax.random.key(0), dream, feat, (), ask, mode)[0])
    return np.asarray(run(variables(tiny.state(kind))["behavior"]))


def test_fresh_continuous_actor_is_wide_and_centred():
    """Specification 15.8."""
    assert np.abs(fresh("vector", "mode")).max() < 0.1
    samples = fresh("vector", "sample")
    np.testing.assert_allclose(samples.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(samples.std(0), 0.893, atol=0.04)


def test_fresh_discrete_actor_is_near_uniform():
    np.testing.assert_allclose(fresh("image", "sample").mean(0), 0.25, atol=0.04)


def test_fresh_critics_value_everything_at_exactly_0():
    """Specification 15.9."""
    metrics = tiny.trained("vector", updates=1)[2]
    assert metrics["dream/value"] == metrics["dream/slow_value"] == metrics["dream/reward"] == 0


def test_slow_critic_starts_as_a_copy_and_moves_by_its_rate():
    _, behavior = tiny.parts("vector")
    state = tiny.state("vector")
    slow, fast = state.extra["behavior"]["slow"], state.params["behavior"]["val"]
    jax.tree.map(np.testing.assert_array_equal, slow, fast)
    v = variables(state)["behavior"]
    moved = v._replace(params={**v.params, "val": jax.tree.map(lambda x: x + 1, fast)})
    after = behavior.refresh(moved)["slow"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + tiny.BEHAVIOR.slow_rate, atol=1e-6), after, slow)
