"""CMA-ES over the parameters of a policy, the trials of its candidates, and the random actions before it starts."""

from __future__ import annotations

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import plugins
from dreamer.behaviors import controller
from dreamer.dreaming import evolution, linear_policy
from dreamer.errors import UserError
from dreamer.interfaces import Dream
from dreamer.spaces import MASK, Action, Space, Spec

KEY = jax.random.key(0)


# --- trials -----------------------------------------------------------------------------------------


def countdown() -> Dream:
    """A dream that ends when its number, from which each step takes 1, reaches 0. Its reward is the action."""
    return Dream(
        imagine=lambda key, state, action: {"left": state["left"] - 1, "paid": action[:, 0]},
        feat=lambda state: jnp.stack([state["left"], state["paid"]], -1),
        predict=lambda feat: {"reward": feat[..., 1], "cont": jnp.where(feat[..., 0] > 0, 0.99, 0.1)},
        decode=lambda state: {},
    )


def test_a_dream_counts_until_its_end_and_no_longer_than_allowed():
    start = {"left": jnp.float32([1, 3, 100]), "paid": jnp.zeros(3)}
    tried = evolution.in_dreams(
        countdown(), lambda theta, feat: theta[None], jnp.float32([[2.0], [-1.0]]), start, KEY, horizon=5
    )
    np.testing.assert_array_equal(tried.length, [[1, 3, 5]] * 2)
    np.testing.assert_array_equal(tried.fitness, [[2, 6, 10], [-1, -3, -5]])


@pytest.mark.parametrize("horizon", [3, 1000])
def test_trials_of_which_most_have_ended_go_on_as_if_alone(horizon):
    left = np.random.default_rng(0).geometric(0.05, 70).astype("float32")
    start, thetas = {"left": jnp.asarray(left), "paid": jnp.zeros(70)}, jnp.float32([[1.0], [2.0], [1.0]])
    assert evolution.halves(210) == [105, 53]

    def imagine(key, state, action):
        return {"left": state["left"] - 1, "paid": action[:, 0] * jax.random.normal(key, action.shape[:1])}

    noisy = countdown()._replace(imagine=imagine)
    tried = evolution.in_dreams(noisy, lambda theta, feat: theta[None], thetas, start, KEY, horizon=horizon)
    steps = np.minimum(left, horizon)
    np.testing.assert_array_equal(tried.length, [steps] * 3)
    keys = jax.vmap(lambda time, rollout: jax.random.fold_in(jax.random.fold_in(KEY, time), rollout), (None, 0))
    noise = [jax.vmap(jax.random.normal)(keys(time, jnp.arange(70))) for time in range(int(steps.max()))]
    expected = np.stack([np.asarray(row) * (time < steps) for time, row in enumerate(noise)]).sum(0)
    np.testing.assert_allclose(tried.fitness, np.stack([expected, 2 * expected, expected]), atol=1e-4)


def watching() -> Dream:
    """A model that only remembers the newest observation."""
    return Dream(
        imagine=lambda *args: None, feat=lambda state: state, predict=lambda feat: {}, decode=lambda state: {},
        observe=lambda key, state, obs, prev_action, is_first: obs["vector"],
    )  # fmt: skip


def test_candidates_are_tried_in_episodes_of_an_environment():
    """The probe pays 1 for the action that it names, in each of its 8 steps."""
    env = plugins.make_jax_env("jax_probes:both")
    policy = linear_policy.make(1, env.spec.action, bias=False)
    obeys, defies = [-1.0, 1.0], [1.0, -1.0]
    given = (env, watching(), policy.act, jnp.float32([obeys, defies]), jnp.zeros((3, 1)), KEY)
    tried = evolution.in_environments(*given, horizon=50)
    np.testing.assert_array_equal(tried.fitness, [[8] * 3, [0] * 3])
    np.testing.assert_array_equal(tried.length, 8)
    np.testing.assert_array_equal(evolution.in_environments(*given, horizon=5).fitness, [[5] * 3, [0] * 3])


def test_dreams_start_in_first_rows_if_there_are_any():
    start, first = {"x": jnp.arange(6)}, jnp.array([0, 1, 0, 0, 1, 0], bool)
    drawn = evolution.choose_starts(KEY, start, first, 50, first=True)["x"]
    assert set(map(int, drawn)) == {1, 4}
    for is_first, wanted in ((first, False), (jnp.zeros(6, bool), True)):
        drawn = evolution.choose_starts(KEY, start, is_first, 200, first=wanted)["x"]
        assert set(map(int, drawn)) == set(range(6))


# --- the strategy -----------------------------------------------------------------------------------


def test_the_strategy_finds_a_minimum_and_starts_with_its_deviation():
    strategy = evolution.cma_es(3, 16, 0.1)
    search = strategy.init(KEY)
    assert float(search["std"]) == pytest.approx(0.1) and not np.any(search["mean"])

    def generation(search, key):
        candidates, search = strategy.ask(key, search)
        return strategy.tell(key, candidates, jnp.square(candidates - 1).sum(-1), search), candidates

    search, candidates = jax.lax.scan(generation, search, jax.random.split(KEY, 80))
    assert 0.02 < float(candidates[0].std()) < 0.3
    np.testing.assert_allclose(search["mean"], 1, atol=1e-2)


def test_without_evosax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evosax.algorithms", None)
    with pytest.raises(UserError, match=r'needs the package evosax; pip install "dreamer-jax\[evolution\]"'):
        evolution.cma_es(3, 4, 0.1)


# --- the policy -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "action", "message"),
    [
        ({"discrete": "threshold"}, Action((2,)), "discrete threshold needs actions of 3 classes, .* not of 2"),
        ({"one_sided": (3,)}, Action(continuous=3), "one_sided 3: the action has 3 numbers, counted from 0"),
    ],
)
def test_settings_that_do_not_suit_the_action_are_refused(settings, action, message):
    with pytest.raises(UserError, match=message):
        linear_policy.make(4, action, **settings)


def test_action_masks_are_refused():
    spec = Spec({"image": Space((64, 64, 1), "uint8"), MASK: Space((2,), "int8", classes=2)}, Action((2,)))
    with pytest.raises(UserError, match="'controller' cannot use action masks"):
        controller.make(controller.Config(), spec, feat_width=4)


@pytest.mark.parametrize(
    ("name", "message"),
    [("reach:line", "'reach:line' of .* is not written in JAX"), ("jax_probes:action", "is not that of the run")],
)
def test_another_environment_than_that_of_the_run_is_refused(name, message):
    spec = plugins.make_jax_env("jax_probes:pixel").spec
    with pytest.raises(UserError, match=message):
        controller.make(controller.Config(environment=name), spec, feat_width=4)


def test_a_random_action_is_held_for_some_steps_but_not_across_episodes():
    def draw(key, count):
        return controller.random_action(key, Action(continuous=1), count)

    held, rows = controller.Held(jnp.zeros((300, 1)), jnp.zeros(300, jnp.int32)), []
    for step in range(7):
        first = jnp.full(300, step == 5)
        held = controller.hold(jax.random.fold_in(KEY, step), held, first, 3, draw)
        rows.append(np.asarray(held.action[:, 0]))
    same = np.stack([a == b for a, b in zip(rows, rows[1:], strict=False)])
    assert not same[4].any()  # step 5 begins an episode
    assert 0.5 < same[0].mean() < 0.8  # held for 1, 2 or 3 steps: the second step repeats the first in 2 of 3
    assert not (same[0] & same[1] & same[2]).any()


def test_random_actions_leave_a_one_sided_number_at_its_lower_end_half_of_the_time():
    action = Action((3,), continuous=2)
    drawn = np.asarray(controller.random_action(KEY, action, 4000, one_sided=(1,)))
    np.testing.assert_array_equal(drawn[:, :3].sum(-1), 1)
    brake = drawn[:, 4]
    assert 0.47 < (brake == -1).mean() < 0.53
    assert 0.2 < (brake > 0).mean() < 0.3  # uniform where the output is above 0
    assert (drawn[:, 3] == -1).mean() == 0 and abs(drawn[:, 3].mean()) < 0.05


# --- a whole generation -----------------------------------------------------------------------------


def test_a_population_learns_in_its_dream():
    """The reward is the action times the side, -1 or 1, which the first feature shows: up to 1 in each step."""
    spec = Spec({"vector": Space((1,), "float32")}, Action(continuous=1))
    config = controller.Config(population=8, rollouts=4, dream_length=5, bias=False, std=0.5, decay=0.0)
    dream = Dream(
        imagine=lambda key, state, action: {"side": -state["side"], "paid": state["side"] * action[:, 0]},
        feat=lambda state: jnp.stack([state["side"], state["paid"]], -1),
        predict=lambda feat: {"reward": feat[..., 1], "cont": jnp.ones(feat.shape[:-1])},
        decode=lambda state: {},
    )
    mind = controller.make(config, spec, feat_width=2, contdisc=False)
    start = {"side": jnp.float32([1, -1, 1, -1, 1, -1]), "paid": jnp.zeros(6)}
    replayed = types.SimpleNamespace(rows=types.SimpleNamespace(is_first=jnp.zeros((2, 3), bool)))

    def generation(v, key):
        _, (extra, metrics) = mind.loss(v, key, dream, start, replayed)
        return v._replace(extra=extra), metrics["evolution/fitness"]

    v, fitness = jax.lax.scan(generation, mind.init(KEY), jax.random.split(KEY, 30))
    assert fitness[0] < 2 and fitness[-5:].mean() > 4
    assert int(v.extra["updates"]) == 30 and float(v.extra["search"]["mean"][0]) > 1
