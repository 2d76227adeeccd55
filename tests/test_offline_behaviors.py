"""Cloning and the penalised actor-critic keep the contracts: pure, traced once, the same under vmap and scan."""

from __future__ import annotations

import dataclasses
import functools

import agent_laws
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dreamer import agent as agents
from dreamer.behaviors import cloning
from dreamer.dreaming import ensemble
from dreamer.interfaces import Replayed, Variables
from dreamer.nets.adapters import from_flax
from dreamer.nets.heads import ActorHead
from dreamer.spaces import MASK, Action, Space, Spec

BEHAVIORS = {
    "cloning": cloning.Config(units=8, actor_layers=1),
    "penalised": dataclasses.replace(
        tiny.BEHAVIOR, penalty=0.5, penalty_norm="stream", ensemble=ensemble.Config(members=3, units=8)
    ),
}
SPEC = tiny.SPECS["vector"]
KEY = jax.random.key(0)


@functools.cache
def agent_of(name: str, dtype: str = "float32"):
    """Returns the tiny agent with another behavior."""
    return agents.make(dataclasses.replace(tiny.CONFIG, behavior=BEHAVIORS[name], compute_dtype=dtype), SPEC)


@functools.cache
def made(name: str):
    """Returns an agent, its initial state, its compiled update, and a batch."""
    agent = agent_of(name)
    return agent, tiny.jit(agent.init)(KEY), tiny.jit(agent.update), tiny.make_batch(SPEC)


@pytest.mark.parametrize("name", BEHAVIORS)
def test_an_update_gives_the_same_bits_again_leaves_its_inputs_alone_and_is_traced_once(name):
    _, state, update, batch = made(name)
    agent_laws.check_pure(update, state, batch)


@pytest.mark.parametrize("name", BEHAVIORS)
def test_updates_scanned_and_vmapped_over_seeds_are_those_of_a_loop_over_each(name):
    agent, _, update, _ = made(name)
    batches = [tiny.make_batch(SPEC, seed=seed) for seed in (3, 4)]
    agent_laws.check_scan_and_vmap(agent, update, batches, rtol=1e-3, atol=1e-5)


def for_devices(name: str):
    """The agent, its spec and a batch, for `agent_laws.check_devices`."""
    return agent_of(name), SPEC, tiny.make_batch(SPEC, batch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", BEHAVIORS)
def test_eight_devices_make_the_update_of_one(name):
    agent_laws.check_devices("test_offline_behaviors", repr(name), updates=1, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", BEHAVIORS)
def test_bfloat16_keeps_parameters_in_float32_and_losses_near(name):
    _, state, update, _ = made(name)
    batch = tiny.make_batch(SPEC, dtype="bfloat16")
    after, out = tiny.jit(agent_of(name, "bfloat16").update)(state, batch)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((after.params, after.extra)))
    mine = "clone" if name == "cloning" else "ens"
    near = update(state, tiny.make_batch(SPEC))[1].metrics[f"loss/{mine}"]
    assert float(out.metrics[f"loss/{mine}"]) == pytest.approx(float(near), rel=0.05)


def test_the_loss_of_the_ensemble_reaches_neither_world_model_nor_actor_and_the_policys_not_the_ensemble():
    agent, state, _, batch = made("penalised")
    moved = {}
    for kept in ("ens", "policy"):
        scale = {name: jnp.float32(name == kept) for name in state.hyper["scale"]}
        hyper = {**state.hyper, "scale": scale, "learning_rate": {"": jnp.float32(1.0)}}
        after, _ = made("penalised")[2](state._replace(step=jnp.int32(9), hyper=hyper), batch)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, after.params)
        moved[kept] = {name for name, tree in same["behavior"].items() if not all(jax.tree.leaves(tree))}
        assert all(jax.tree.leaves(same["world_model"]))
    assert moved == {"ens": {"ens"}, "policy": {"pol"}}


# --- cloning ------------------------------------------------------------------------------------------


def cloned(spec: Spec, rows, feat, **settings):
    """Returns the behavior, its variables, and loss and metrics on these rows."""
    behavior = cloning.make(cloning.Config(units=8, actor_layers=1, **settings), spec, feat_width=feat.shape[-1])
    v = behavior.init(KEY)
    losses, (_, metrics) = behavior.loss(v, KEY, None, None, Replayed(rows, feat))
    return behavior, v, losses["clone"], metrics


def test_the_loss_is_the_negative_log_likelihood_of_the_actions_that_were_taken():
    spec = Spec({"vector": Space((3,), "float32")}, Action((3,)))
    rows = tiny.make_batch(spec, context=0)
    rows = rows._replace(action=np.where(rows.is_last[..., None], 0, rows.action))
    feat = jax.random.normal(KEY, (*rows.reward.shape, 5))
    behavior, v, loss, metrics = cloned(spec, rows, feat)
    logits = from_flax(ActorHead(1, 8, 3, 0)).apply(v.params["pol"], feat)["logits"]
    taken = -np.sum(np.asarray(jax.nn.log_softmax(logits)) * rows.action, -1)
    np.testing.assert_allclose(loss, np.where(rows.is_last, 0, taken), rtol=1e-5, atol=1e-6)
    right = np.asarray(jnp.argmax(logits, -1) == jnp.argmax(rows.action, -1))[~rows.is_last]
    assert 0 < right.mean() < 1 and float(metrics["clone/agreement"]) == pytest.approx(right.mean(), rel=1e-5)


def test_a_last_row_has_no_action_and_no_gradient():
    spec = Spec({"vector": Space((3,), "float32")}, Action((3,), 1))
    rows = tiny.make_batch(spec, context=0)
    rows = rows._replace(is_last=np.ones_like(rows.is_last))
    feat = jax.random.normal(KEY, (*rows.reward.shape, 5))
    np.testing.assert_array_equal(cloned(spec, rows, feat)[2], 0)


def test_masks_of_the_rows_are_respected():
    spec = Spec({MASK: Space((3,), "int8", 2)}, Action((3,)))
    action, mask = np.zeros((1, 2, 3), np.float32), np.zeros((1, 2, 3), np.int8)
    action[..., 1], mask[..., 1] = 1, 1
    rows = tiny.make_batch(spec, context=0)
    rows = jax.tree.map(lambda x: x[:1, :2], rows)._replace(
        obs={MASK: mask}, action=action, is_last=np.zeros((1, 2), bool)
    )
    np.testing.assert_allclose(cloned(spec, rows, jnp.ones((1, 2, 5)))[2], 0, atol=1e-6)  # the only choice is certain


@pytest.mark.parametrize("shapes", [False, True])
def test_the_loss_shapes_the_model_only_if_it_is_told_to(shapes):
    rows = tiny.make_batch(SPEC, context=0)
    rows = rows._replace(is_last=np.zeros_like(rows.is_last))
    feat = jax.random.normal(KEY, (*rows.reward.shape, 5))
    behavior, v, *_ = cloned(SPEC, rows, feat, shape_model=shapes)
    grad = jax.grad(lambda feat: behavior.loss(v, KEY, None, None, Replayed(rows, feat))[0]["clone"].sum())(feat)
    assert bool(jnp.any(grad != 0)) == shapes


def test_cloning_needs_no_prediction_and_acts():
    agent, state, *_ = made("cloning")
    assert agent.behavior.needs == frozenset()
    obs = {"vector": np.zeros((3, 3), np.float32)}
    first = np.ones(3, bool)
    args = (agent.variables(state), KEY, agent.initial_carry(3), obs, first)
    likely = [agent.act(*args, mode)[1] for mode in ("mode", "mode", "sample")]
    np.testing.assert_array_equal(likely[0], likely[1])
    assert likely[0].shape == (3, 2) and not np.array_equal(likely[0], likely[2])
    assert isinstance(agent.variables(state)["behavior"], Variables)
