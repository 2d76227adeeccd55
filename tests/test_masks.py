"""Action masks: obeyed when acting, predicted by the world model, and obeyed in dreams."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import lines
from tiny_runs import tiny as tiny_config

import dreamer
from dreamer import agent as agents
from dreamer.behaviors import actor_critic
from dreamer.dreaming.rollout import rollout
from dreamer.errors import UserError
from dreamer.interfaces import Ask, Dream
from dreamer.losses import make_losses
from dreamer.runtime.env.adapter import spec_of
from dreamer.spaces import MASK, Action, Space, Spec
from tests import masked_envs, tiny

SPEC = Spec({"vector": Space((3,), "float32"), MASK: Space((5,), "int8", 2)}, Action((3, 2), 1))


@pytest.fixture(scope="module")
def masked():
    """Returns the agent of the masked spec, its state, and a batch."""
    agent = agents.make(tiny.CONFIG, SPEC)
    return agent, tiny.jit(agent.init)(jax.random.key(0)), tiny.make_batch(SPEC)


@pytest.fixture(scope="module", params=["obs", "info"])
def run(request, tmp_path_factory):
    """A run in an environment that raises at the first forbidden action."""
    run_dir = tmp_path_factory.mktemp("masked") / "run"
    config = tiny_config(
        run_dir, env="masked_envs:make", env_options={"where": request.param}, env_steps=300, workers__restarts=0,
        agent__world_model__symlog=False,
    )  # fmt: skip
    return dreamer.train(config), request.param


def test_a_mask_that_fits_the_one_hots_makes_a_spec_masked():
    assert SPEC.masked and spec_of(masked_envs.make("obs")).masked and spec_of(masked_envs.make("info")).masked
    assert not Spec({MASK: Space((4,), "int8", 2)}, Action((3, 2))).masked


def test_a_run_never_takes_a_forbidden_action(run):
    run_dir, _ = run
    assert lines(run_dir)[-1]["env_steps"] >= 300  # otherwise the environment raises, and restarts are off


def test_the_loss_of_the_mask_is_logged(run):
    assert any("loss/mask" in line for line in lines(run[0]))


def test_a_loaded_agent_takes_the_mask_from_where_the_environment_has_it(run):
    run_dir, where = run
    agent, env = dreamer.load(run_dir), masked_envs.make(where)
    obs, info = env.reset(seed=0)
    state = None
    for _ in range(20):
        action, state = agent.act(obs, state, info=info)
        obs, _, _, over, info = env.step(action)
        if over:
            (obs, info), state = env.reset(), None


def test_a_loaded_agent_asks_for_the_info_that_holds_the_mask(run):
    run_dir, where = run
    if where == "obs":
        return
    with pytest.raises(UserError, match="info="):
        dreamer.load(run_dir).act(masked_envs.make(where).reset(seed=0)[0])


def test_a_batch_of_actions_is_as_a_vector_environment_takes_it(run):
    run_dir, where = run
    obs = {"number": np.zeros((4, 1), np.float32)}
    masks = np.tile(np.array([0, 1, 1, 0, 1], np.int8), (4, 1))
    obs, info = (obs | {MASK: masks}, None) if where == "obs" else (obs, {MASK: masks})
    action, _ = dreamer.load(run_dir).act(obs, info=info)
    assert action["a"].shape == (4,) and action["b"].shape == (4, 1) and (action["c"] == 1).all()


def test_forbidden_actions_are_never_drawn(masked):
    agent, state, batch = masked
    obs = {key: value[:, 0] for key, value in batch.obs.items()}
    act = tiny.jit(
        lambda key: agent.act(agent.variables(state), key, agent.initial_carry(8), obs, np.ones(8, bool))[1]
    )
    for seed in range(5):
        chosen = np.asarray(act(jax.random.key(seed)))
        for part in (slice(0, 3), slice(3, 5)):
            free = obs[MASK][:, part].sum(1) == 0  # if nothing is allowed, everything is
            assert ((chosen[:, part] * obs[MASK][:, part]).sum(1) == 1)[~free].all()


def test_dreams_honour_the_mask_that_the_model_predicts():
    behavior = actor_critic.make(tiny.BEHAVIOR, SPEC, feat_width=tiny.FEAT)
    v = behavior.init(jax.random.key(0))
    allowed = jnp.array([False, True, False, True, False])
    dream = Dream(
        imagine=lambda key, state, action: state, feat=lambda state: state, decode=None,
        predict=lambda feat: {"allowed": jnp.broadcast_to(allowed, (*feat.shape[:-1], 5))},
    )  # fmt: skip

    def policy(carry, key, feat):
        ask = Ask(jnp.zeros(len(feat), bool), dream.predict(feat)["allowed"])
        action, carry = behavior.act(v, key, dream, feat, carry, ask, "sample")
        return carry, action

    start = jax.random.normal(jax.random.key(2), (16, tiny.FEAT))
    _, action, _ = rollout(dream, policy, (), jax.random.key(1), start, 3)
    np.testing.assert_array_equal(action[..., :5], np.broadcast_to([0, 1, 0, 1, 0], (16, 4, 5)))


def test_losses_do_not_push_towards_what_the_dream_forbids(masked):
    """If each part has one choice left, the actor's gradient comes only from its numbers."""
    agent, state, batch = masked
    world_model, behavior = (
        tiny.rssm.make(tiny.WORLD_MODEL, SPEC), actor_critic.make(tiny.BEHAVIOR, SPEC, feat_width=tiny.FEAT)
    )  # fmt: skip
    only = jnp.array([True, False, False, False, True])
    learned = world_model.predict
    world_model = world_model._replace(
        predict=lambda v, feat: learned(v, feat) | {"allowed": jnp.broadcast_to(only, (*feat.shape[:-1], 5))}
    )
    losses = make_losses(world_model, behavior, SPEC)
    # The outputs of new critics are 0, so that no action would be better than another.
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), state.params)

    def policy_loss(params):
        return losses(params, state.extra, state.hyper, jax.random.key(0), batch)[0]["policy"].mean()

    head = tiny.jit(jax.grad(policy_loss))(params)["behavior"]["pol"]["head"]["action"]
    assert np.abs(np.asarray(head["logits"]["kernel"])).max() == 0 < np.abs(np.asarray(head["mean"]["kernel"])).max()


def test_the_predicted_mask_is_learned(masked):
    agent, state, batch = masked
    batch = batch._replace(obs=batch.obs | {MASK: (batch.obs["vector"].sum(-1, keepdims=True) > 0) * np.ones(5, int)})
    batch = batch._replace(obs=batch.obs | {MASK: batch.obs[MASK].astype(np.int32)})
    update, losses = tiny.jit(agent.update), []
    for _ in range(60):
        state, out = update(state, batch)
        losses.append(float(out.metrics["loss/mask"]))
    assert losses[-1] < 0.8 * losses[0]
