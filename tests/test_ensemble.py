"""The ensemble of one-step predictors: golden numbers, and the penalty that it puts on dreamed rewards."""

from __future__ import annotations

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dreamer.behaviors import actor_critic
from dreamer.dreaming import ensemble
from dreamer.dreaming.actor_critic import Imagined
from dreamer.interfaces import Variables
from dreamer.ops import normalize

END_TO_END = "explore/ensemble_end_to_end"


def test_the_standard_deviation_and_its_logarithm():
    def forward(params, inputs):
        found = ensemble.disagreement(inputs["preds"])
        return {"reward": found, "aux_log": jnp.log(found)}

    golden.check("explore/disagreement_std", forward)


@pytest.mark.parametrize("file, unbiased", [("var", False), ("var_unbiased", True)])
def test_the_variance(file, unbiased):
    def forward(params, inputs):
        return {"reward": ensemble.disagreement(inputs["preds"], "variance", unbiased=unbiased)}

    golden.check(f"explore/disagreement_{file}", forward)


def test_members_that_agree_and_large_offsets():
    def forward(params, inputs):
        preds = inputs["preds"]
        return {
            "std": ensemble.disagreement(preds), "var": ensemble.disagreement(preds, "variance"),
            "var_unbiased": ensemble.disagreement(preds, "variance", unbiased=True),
        }  # fmt: skip

    golden.check("explore/disagreement_degenerate", forward)


@pytest.mark.parametrize("measure", ["std", "variance", "distance"])
def test_the_gradient_is_finite_where_all_members_agree(measure):
    grad = jax.grad(lambda x: ensemble.disagreement(x, measure).sum())(jnp.ones((3, 2, 4)))
    np.testing.assert_array_equal(grad, 0)


def test_the_distance_is_that_of_a_member_to_their_mean():
    preds = jnp.array([[[0.0, 0.0]], [[6.0, 8.0]]])  # the mean is (3, 4), at distance 5 from both
    np.testing.assert_allclose(ensemble.disagreement(preds, "distance"), [5.0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "squared", "mean squared"])
def test_the_losses_of_the_sources(kind):
    def forward(params, inputs):
        first = jnp.zeros(inputs["target"].shape[:2], bool)
        predicted, target = inputs["preds"][:, :, :-1], inputs["target"][:, 1:]
        each = jnp.stack([ensemble.loss(one[None], target, kind).mean() for one in predicted])
        if kind == "gaussian":  # the form that training uses
            whole = ensemble.replayed_loss(inputs["preds"], inputs["target"], first).mean()
        else:
            whole = ensemble.loss(predicted, target, kind).mean()
        return {"loss": whole, "aux_per_member": each}

    golden.check(f"explore/ensemble_loss_{kind.replace(' ', '_')}", forward)


def test_an_ensemble_from_features_to_loss_and_disagreement():
    made = golden.load(END_TO_END)
    net = ensemble.make(ensemble.Config(members=4, layers=2, units=8), 6)
    blank = jax.eval_shape(net.init, jax.random.key(0), made.inputs["feat"], made.inputs["action"])
    forms = [jax.tree.map(lambda x: x.shape, tree) for tree in (blank, made.params["ens"])]
    assert forms[0] == forms[1]  # the source's networks, with a leading axis for the members

    def forward(params, inputs):
        preds = net.apply(params["ens"], inputs["feat"], inputs["action"])
        first = jnp.zeros(inputs["target"].shape[:2], bool)
        loss = ensemble.replayed_loss(preds, inputs["target"], first).mean()
        return {"preds": preds, "loss": loss, "reward": ensemble.disagreement(preds)}

    golden.check(END_TO_END, forward)


def test_the_normaliser_of_rewards():
    made = golden.load("explore/stream_norm")
    for rate, name in ((0.01, "normed"), (0.0, "normed_default")):
        norm, normed, mags = normalize.stream(rate), [], []
        state = norm.init()
        for reward in made.inputs["reward"]:
            state = norm.update(state, reward)
            normed.append(reward / norm.stats(state)[1])
            mags.append(state)
        golden.assert_close("explore/stream_norm", "out", name, np.stack(normed), made.out[name])
        if rate:
            golden.assert_close("explore/stream_norm", "out", "mag", np.stack(mags), made.out["mag"])


# --- in training ------------------------------------------------------------------------------------


def test_a_row_that_begins_an_episode_is_no_target():
    feat = jnp.arange(6.0).reshape(1, 3, 2)
    preds = jnp.zeros((2, 1, 3, 2))
    first = jnp.array([[False, True, False]])
    loss = ensemble.replayed_loss(preds, feat, first)
    np.testing.assert_allclose(loss, [[0.0, 2 * (0.5 * (16 + 25) + np.log(2 * np.pi))]], rtol=1e-6)


def test_steps_one_at_a_time_are_those_of_all_at_once():
    config = ensemble.Config(members=3, units=5)
    net, keys = ensemble.make(config, 4), jax.random.split(jax.random.key(0), 3)
    feat, action = jax.random.normal(keys[0], (6, 5, 4)), jax.random.normal(keys[1], (6, 5, 2))
    params = net.init(keys[2], feat[0, :1], action[0, :1])
    whole = ensemble.disagreement(net.apply(params, feat, action))
    np.testing.assert_allclose(ensemble.of_steps(config, net, params, feat, action), whole, rtol=1e-5)
    assert jnp.std(whole) > 0


def test_the_penalty_is_taken_from_the_reward_that_a_step_leads_to():
    config = actor_critic.Config(penalty=2.0, penalty_norm="stream")
    net = ensemble.make(config.ensemble, 4)
    keys = jax.random.split(jax.random.key(1), 3)
    feat, action = jax.random.normal(keys[0], (3, 6, 4)), jax.random.normal(keys[1], (3, 6, 2))
    params = net.init(keys[2], feat[0, :1], action[0, :1])
    v = Variables({"ens": params}, {"penalty": jnp.float32(0.5)}, {"penalty": jnp.float32(2.0)})
    blank = jnp.ones((3, 6))
    dreamed, extra, metrics = actor_critic.penalised(
        config, net, v, Imagined(blank, blank, blank, blank, blank, blank), feat, action
    )
    found = ensemble.disagreement(net.apply(params, feat, action))[:, :-1]
    usual = 0.99 * 0.5 + 0.01 * found.mean()
    np.testing.assert_allclose(extra["penalty"], usual, rtol=1e-5)
    np.testing.assert_allclose(dreamed.reward[:, 0], 1)  # no step leads there
    np.testing.assert_allclose(dreamed.reward[:, 1:], 1 - 2 * found / (usual + 1e-8), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["dream/disagreement"], found.mean(), rtol=1e-5)


def test_the_ensemble_changes_no_other_key_and_the_penalty_is_a_number_of_hyper():
    plain = actor_critic.make(tiny.BEHAVIOR, tiny.SPECS["vector"], feat_width=tiny.FEAT)
    penalised = dataclasses.replace(tiny.BEHAVIOR, penalty=1.0, ensemble=ensemble.Config(members=2, units=4))
    other = actor_critic.make(penalised, tiny.SPECS["vector"], feat_width=tiny.FEAT)
    one, two = (made.init(jax.random.key(0)) for made in (plain, other))
    assert set(two.params) - set(one.params) == {"ens"}
    jax.tree.map(np.testing.assert_array_equal, one.params["pol"], two.params["pol"])
    assert set(two.hyper) - set(one.hyper) == {"penalty"} and set(other.scales) - set(plain.scales) == {"ens"}
