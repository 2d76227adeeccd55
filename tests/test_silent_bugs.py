"""Tests for bugs that do not show in loss curves. Each test was seen to fail with its bug inserted.

    bug                                         tests here, by their first words             more in
     1  bootstrap one step off                  bootstrap                                    golden_ops, golden_behavior
     2  wrong action beside an observation      action, previous_action                      golden_agent
     3  no reset mask                           reset, first_row                             golden_rssm
     4  actor scored where its action led       actor_is_scored, rollout, policy_gradient    golden_behavior
     5  continue weight one step late           continue_weight                              golden_behavior
     6  is_first masks the true last row        rows_of_every_episode, ending                rows
     7  only the entropy trains the actor       policy_gradient                              golden_agent
     8  a time limit taken for an end           time_limit, rows_of_every_episode, flags     rows, golden_behavior
     9  last observation overwritten            rows_of_every_episode, ending                rows
    10  losses overwritten or dropped           every_loss, forgotten_loss, two_losses       golden_agent
    11  free nats of the mean                   free_nats                                    golden_ops
    12  block-linear fan-in                     block_linear                                 init_statistics
    13  two-hot mean of uniform logits          uniform                                      golden_ops
    14  normaliser subtracts, or lags           return_normaliser                            golden_ops, golden_behavior
    15  ratio in frames or in updates           replay_ratio                                 ratio
    16  statistics per device                   two_devices                                  devices
    17  actions stored in the env's units       stored_actions                               rows
    18  acting copy stale or donated            acting_copy, collector_acts                  learner
    19  newest rows never, or across the head   newest                                       replay
    20  resume forgets a part                   restored                                     checkpoint

"More in" names tests/test_<name>.py; the resumed replay of bug 20 is in test_row_store and test_resume.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from rigs import (
    BINS,
    KIND,
    LABEL,
    NOWHERE,
    SPEC,
    changed,
    collected,
    column,
    dreamed,
    imagined,
    learned,
    learning,
    make_run,
    posterior,
    replayed,
    rows_of,
    same_latents,
    sequences,
    turn,
)

from dreamer import agent as agents
from dreamer.behaviors import actor_critic
from dreamer.dreaming.rollout import rollout
from dreamer.errors import UserError
from dreamer.interfaces import Batch, Dream, Replayed
from dreamer.losses import align, make_losses, total_loss
from dreamer.nets.adapters import from_flax
from dreamer.nets.block_gru import Core
from dreamer.nets.heads import ScalarHead
from dreamer.ops import balance, distributions
from dreamer.ops.returns import lambda_returns
from dreamer.runtime.learning import learner
from dreamer.runtime.log import logger as metrics
from dreamer.runtime.replay.config import Config as ReplayConfig
from dreamer.runtime.replay.replay import Replay
from dreamer.spaces import Action, Space, Spec
from dreamer.steps import Step


def test_bootstrap_is_not_one_step_off():
    """Bug 1: reward, continuation and value of a return are those of the state after the step."""
    reward, cont, value = np.array([3.0, 5.0, 7.0]), np.array([0.5, 0.25, 0.125]), np.array([10.0, 20.0, 40.0])
    run = jax.jit(lambda lam: lambda_returns(*map(jnp.float32, (reward, cont, value)), lam))
    np.testing.assert_allclose(run(0.0), reward + cont * value)
    expected = 40.0
    for i in (2, 1, 0):
        expected = reward[i] + cont[i] * expected
        assert run(1.0)[i] == pytest.approx(expected)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_bootstrap_of_dreamed_returns_leaves_the_start_out(lam):
    """Bug 1: a dreamed return starts with the reward after the start and ends with the value of the last state."""
    dream = dreamed(reward=(100, 3, 5, 7), cont=(1, 0.5, 0.25, 0.125), value=(1000, 10, 20, 40))
    expected = lambda_returns(*map(jnp.float32, ([3, 5, 7], [0.5, 0.25, 0.125], [10, 20, 40])), lam)
    np.testing.assert_allclose(imagined()(dream, lam)[1], rows_of(*expected), rtol=1e-4)


def test_bootstrap_of_replayed_returns_is_that_of_the_next_row():
    """Bug 1: a replayed return bootstraps from the next row's dreamed return with lambda 0, and the last's with 1."""
    reward, boot = rows_of(100, 3, 5, 7), rows_of(1000, 10, 20, 40)
    np.testing.assert_allclose(replayed()(reward, NOWHERE, NOWHERE, boot, 0.0)[1], rows_of(8, 15, 27))
    np.testing.assert_allclose(replayed()(reward, NOWHERE, NOWHERE, boot, 1.0)[1], rows_of(12.25, 18.5, 27))


def test_action_of_the_row_before_is_the_previous_action():
    """Bug 2: in all data from the environment to the model, the reward of a row identifies the previous action."""
    spec, replay = collected("Diary")
    latent, prev_action, rows = align(tiny.echo_world(spec), spec, replay.sample(64)[0])
    later = ~rows.is_first
    assert set(np.unique(rows.reward[later])) == {0, 1, 2, 3}
    np.testing.assert_array_equal(rows.reward[later], np.argmax(prev_action, -1)[later])
    np.testing.assert_array_equal(np.asarray(prev_action).sum(-1)[later], 1)


def test_previous_action_is_the_same_while_acting_and_training():
    """Bug 2: the policy, training and reports use the same previous action for each row."""
    spec, replay = collected("Diary")
    shown, action, first = (column(replay, name) for name in ("latent/prev", "action", "is_first"))
    np.testing.assert_array_equal(shown[:, 1:], np.where(first[:, 1:, None], 0, action[:, :-1]))
    agent, batch = tiny.echo_agent(spec), replay.sample(4)[0]
    _, prev_action, rows = align(tiny.echo_world(spec), spec, batch)
    report = agent.report(agent.init(jax.random.key(0)), batch)
    kept = ~(rows.is_first & (np.arange(5) < 2))  # the observed half drops it on first rows, the dreamed half cannot
    np.testing.assert_array_equal(report["dream/vector"][kept], prev_action[kept])


def test_action_changes_what_follows_and_nothing_before():
    """Bug 2: the action of row t does not change the posterior of row t, and changes that of row t + 1."""
    batch = sequences()
    other = batch._replace(action=batch.action.copy())
    other.action[0, 3] *= -1  # trained row 2
    np.testing.assert_array_equal(same_latents(batch, other)[0], [True, True, True, False, False, False])


def test_reset_keeps_an_episode_from_leaking_into_the_next():
    """Bug 3: rows before a first row do not change its posterior or later ones; without the flag they do."""
    batch = sequences(first=[(0, 3)])
    other = changed(changed(batch, 0, slice(-1, 3), latent=True), 1, slice(-1, 3), latent=True)
    same = same_latents(batch, other)
    assert same[0, 3:].all() and not same[0, :3].any()
    assert not same[1].any()


def test_first_row_is_acted_on_as_by_a_fresh_agent():
    """Bug 3: on a first row the policy starts without latent and previous action."""
    agent = tiny.make_agent(KIND)
    variables = agent.variables(tiny.state(KIND))
    act = tiny.jit(agent.act)
    fresh = agent.initial_carry(2)
    used = jax.tree.map(lambda x: x + 0.5, fresh)
    obs = {"vector": np.ones((2, 3), np.float32)}
    first = np.array([True, False])
    outs = [act(variables, jax.random.key(1), carry, obs, first)[0].state.deter for carry in (fresh, used)]
    assert (outs[0][0] == outs[1][0]).all() and (outs[0][1] != outs[1][1]).any()


def test_actor_is_scored_where_it_chose():
    """Bug 4: the advantage of step t weighs the log-probability and the entropy of state t."""
    for t in range(3):
        unit = tuple(float(i == t) for i in range(4))
        for dream in (dreamed((0, 1, 2, 4), log_prob=unit), dreamed(log_prob=(0,) * 4, entropy=unit)):
            policy = imagined()(dream, entropy=1.0)[0]["policy"]
            np.testing.assert_array_equal(np.asarray(policy[0]) != 0, np.arange(3) == t)
    late = imagined()(dreamed((0, 1, 2, 4), log_prob=(0, 0, 0, 1), entropy=(0, 0, 0, 1)), entropy=1.0)[0]
    assert not np.any(late["policy"])


def test_rollout_pairs_each_state_with_the_action_chosen_there():
    """Bug 4: action i is chosen at feat i, and leads to feat i + 1."""
    dream = Dream(lambda key, state, action: 10 * state + action, lambda state: state, predict=None, decode=None)
    start = jnp.array([[1.0], [2.0]])
    policy = lambda seen, key, feat: (seen + 1, feat % 7)  # noqa: E731
    feat, action, seen = rollout(dream, policy, 0, jax.random.key(0), start, 3)
    assert seen == 4
    np.testing.assert_array_equal(feat[:, 0], start)
    np.testing.assert_array_equal(action, feat % 7)
    np.testing.assert_array_equal(feat[:, 1:], 10 * feat[:, :-1] + action[:, :-1])


@functools.cache
def bandit_gradient() -> np.ndarray:
    """Returns the gradient of the policy loss by the actor's kernel [1 + A, A], after one step that pays for action 2.

    feat = [whether it is the start, the action taken]. The actor is linear and has no entropy bonus.
    """
    spec = Spec({"vector": Space((1,), "float32")}, Action((3,)))
    config = actor_critic.Config(units=4, actor_layers=0, critic_layers=0, imagine_length=1, entropy=0.0)
    behavior = actor_critic.make(config, spec, feat_width=4)
    dream = Dream(
        imagine=lambda key, latent, action: jnp.concatenate([jnp.zeros((len(action), 1)), action], -1),
        feat=lambda latent: latent,
        predict=lambda feat: {"reward": feat[..., 3], "cont": jnp.ones(feat.shape[:-1])},
        decode=None,
    )
    starts = jnp.tile(jnp.array([[1.0, 0, 0, 0]]), (64, 1))
    flags = jnp.zeros((4, 16), bool)
    rows = Batch({}, None, jnp.zeros((4, 16)), None, flags, flags, {})
    replayed = Replayed(rows, starts.reshape(4, 16, 4))
    variables = behavior.init(jax.random.key(0))

    @tiny.jit
    @jax.grad
    def gradient(params):
        losses, _ = behavior.loss(variables._replace(params=params), jax.random.key(1), dream, starts, replayed)
        return losses["policy"].mean()

    return np.asarray(gradient(variables.params)["pol"]["head"]["action"]["logits"]["kernel"])


def test_policy_gradient_reaches_the_actor_without_its_entropy():
    """Bug 7: a sampled discrete action has no gradient, so the actor must learn through its log-probability."""
    start = bandit_gradient()[0]
    assert start[2] < 0 < min(start[0], start[1])  # against the gradient the paying action becomes more likely
    assert -start[2] > 0.05


def test_policy_gradient_is_that_of_the_state_where_the_action_was_chosen():
    """Bug 4: one dreamed step trains the actor only at the start."""
    assert np.any(bandit_gradient()[0]) and not np.any(bandit_gradient()[1:])


def test_continue_weight_of_a_state_includes_its_own_continuation():
    """Bug 5: a state that has ended, at the start or later, has no weight; all states before it have."""
    for end in range(3):
        cont = [1.0] * 4
        cont[end] = 0.0
        losses = imagined()(dreamed(reward=(1, 1, 1, 1), cont=cont, value=(9, 9, 9, 9)))[0]
        for name in ("policy", "value"):
            np.testing.assert_array_equal(np.asarray(losses[name][0]) != 0, np.arange(3) < end, err_msg=name)
    entropy_alone = dreamed(cont=(0.5, 0.25, 0.5, 1), log_prob=(0,) * 4, entropy=(1,) * 4)
    np.testing.assert_allclose(imagined()(entropy_alone, entropy=1.0)[0]["policy"], -rows_of(0.5, 0.125, 0.0625))


def test_rows_of_every_episode_are_reset_steps_and_the_true_last_one():
    """Bugs 6, 8, 9: no row is missing, repeated, overwritten by the next episode, or has wrong flags."""
    _, replay = collected("Diary")
    episode, time = np.moveaxis(column(replay, "obs/vector"), -1, 0)
    count = np.arange(replay.counts[0])
    for env in range(2):
        np.testing.assert_array_equal(time[env], count % 4)
        np.testing.assert_array_equal(episode[env], count // 4)
    flags = {name: column(replay, name) for name in ("is_first", "is_last", "is_terminal")}
    np.testing.assert_array_equal(flags["is_first"], time == 0)
    np.testing.assert_array_equal(flags["is_last"], time == 3)
    np.testing.assert_array_equal(flags["is_terminal"], (time == 3) & (episode % 2 == 0))
    assert not column(replay, "action")[flags["is_last"]].any()
    assert not column(replay, "reward")[flags["is_first"]].any()


def test_ending_is_never_masked_in_training():
    """Bugs 6, 9: trained rows are first only at resets, wherever a sequence starts, and include true ends."""
    spec, replay = collected("Diary")
    batch, _ = replay.sample(64)
    assert batch.is_first[:, 0].all()
    _, _, rows = align(tiny.echo_world(spec), spec, batch)
    episode, time = np.moveaxis(rows.obs["vector"], -1, 0)
    np.testing.assert_array_equal(rows.is_first, time == 0)
    np.testing.assert_array_equal(rows.is_terminal, (time == 3) & (episode % 2 == 0))
    assert rows.is_terminal[:, 0].any() and rows.is_terminal[:, -1].any()


def test_ending_is_seen_by_the_model_with_the_rows_before_it():
    """Bug 6: the posterior of a terminal row depends on the rows before it, and its continuation is trained to 0."""
    batch = sequences(last=[(0, 3)], terminal=[(0, 3)])
    assert not same_latents(batch, changed(batch, 0, slice(2, 3)))[0, 3]
    live, ended = (posterior()(x)[0]["con"] for x in (sequences(last=[(0, 3)]), batch))
    assert np.argwhere(live != ended).tolist() == [[0, 3]]
    go_on = 1 - np.exp(-ended[0, 3])
    assert live[0, 3] == pytest.approx(-LABEL * np.log(go_on) - (1 - LABEL) * np.log(1 - go_on), rel=1e-4)


def test_time_limit_does_not_end_the_value_in_the_world_model():
    """Bug 8: a row that is last and not terminal is trained like any other row."""
    plain, cut = (posterior()(x)[0] for x in (sequences(), sequences(last=[(0, 3)])))
    for name in plain:
        np.testing.assert_array_equal(plain[name], cut[name], err_msg=name)


def test_time_limit_does_not_end_the_value_in_replayed_returns():
    """Bug 8: returns bootstrap from the dream at a truncated row and from 0 at a terminal row, and cross neither."""
    reward, boot, third = rows_of(0, 3, 5, 7), rows_of(1, 10, 20, 40), rows_of(0, 0, 1, 0) > 0
    loss, cut = replayed()(reward, third, NOWHERE, boot, 1.0)
    _, ended = replayed()(reward, third, third, boot, 1.0)
    np.testing.assert_allclose(cut, rows_of(3 + 0.5 * (5 + 0.5 * 20), 5 + 0.5 * 20, 7 + 0.5 * 40))
    np.testing.assert_allclose(ended, rows_of(3 + 0.5 * 5, 5, 7 + 0.5 * 40))
    np.testing.assert_array_equal(loss != 0, rows_of(1, 1, 0) > 0)  # the last row leads into another episode


def test_flags_and_starts_reach_the_behavior_as_they_were_stored():
    """Bug 8: last and terminal are not swapped, and start n is row n of the sequences."""
    spec, replay = collected("Diary")
    world_model, batch = tiny.echo_world(spec), replay.sample(8)[0]
    run = make_losses(world_model, tiny.random_behavior(spec), spec)
    state = tiny.echo_agent(spec).init(jax.random.key(0))
    given = run(state.params, state.extra, state.hyper, jax.random.key(0), batch)[1].extra["behavior"]
    for name in ("reward", "is_last", "is_terminal"):
        np.testing.assert_array_equal(getattr(given["replayed"].rows, name), getattr(batch, name)[:, 1:])
    np.testing.assert_array_equal(given["start"]["prev"].reshape(8, 5, -1), given["replayed"].feat)


def test_every_loss_has_its_metric():
    """Bug 10: the metrics of an update include all losses of the real agent."""
    world_model, behavior = tiny.parts(KIND)
    names = jax.eval_shape(tiny.make_agent(KIND).update, tiny.state(KIND), tiny.make_batch(SPEC))[1].metrics
    assert {n for n in names if n.startswith("loss/")} == {f"loss/{n}" for n in (world_model.scales | behavior.scales)}
    assert {"train/loss", "train/grad_norm", "dream/return", "latent/kl"} < set(names)


def test_every_loss_is_reported_as_it_was_minimised(tmp_path):
    """Bug 10: the logged losses sum to the minimised total, and all metrics are logged."""
    _, out = learned()
    assert all(float(out[f"loss/{name}"]) for name in ("echo", "policy", "value", "repval"))
    scales = {"echo": 1.0, "policy": 1.0, "value": 1.0, "repval": 0.3}
    total = sum(scale * float(out[f"loss/{name}"]) for name, scale in scales.items())
    assert float(out["train/loss"]) == pytest.approx(total, rel=1e-5)
    with metrics.Logger(tmp_path, metrics.Config(tensorboard=False)) as logger:
        logger.add(out)
        written = logger.write(1, 1)
    assert written == {name: pytest.approx(float(value)) for name, value in out.items()}


def test_forgotten_loss_is_an_error():
    """Bug 10: a loss without a scale, or a scale without a loss, is an error."""
    world_model, behavior = tiny.parts(KIND)
    state, batch = tiny.state(KIND), tiny.make_batch(SPEC)
    for scales in ({"policy": 1.0, "value": 1.0}, {**behavior.scales, "more": 1.0}):
        total = total_loss(world_model, behavior._replace(scales=scales), SPEC)
        with pytest.raises(ValueError, match="losses and scales differ"):
            jax.eval_shape(total, state.params, state.extra, state.hyper, state.key, batch)


def test_two_losses_of_one_name_are_refused():
    """Bug 10: a loss of the behavior cannot overwrite one of the world model."""
    world_model, behavior = tiny.parts(KIND)
    with pytest.raises(UserError, match="dyn"):
        agents.assemble(world_model, behavior._replace(scales={"dyn": 1.0}), tiny.OPTIMIZER, SPEC)


def test_free_nats_clip_each_row_after_the_sum_over_groups():
    """Bug 11: the divergence of a row sums all its groups, and each row is clipped separately."""
    batch = sequences()
    raw = posterior()(batch, 0.0)[0]
    threshold = np.median(raw["dyn"])
    clipped = posterior()(batch, threshold)[0]
    for name in ("dyn", "rep"):
        assert raw[name].min() < threshold < raw[name].max()
        np.testing.assert_allclose(clipped[name], np.maximum(raw[name], threshold), rtol=1e-6)


def test_free_nats_spare_the_rows_below_them_and_no_other():
    """Bug 11: a clipped row has no gradient, for any divergence of the others."""
    post = jnp.array([1.0, 1.3, 3.0])[:, None, None] * jnp.array([[[1.0, 0.0]] * 4])  # [3 rows, 4 groups, 2 classes]
    prior = jnp.zeros_like(post)
    one = distributions.categorical_kl(post, prior)
    free = float(one[1, 0]) * 3  # less than row 1 has in its 4 groups, more than in any single one
    dyn, rep, _ = balance.kl_balance(post, prior, free)
    for loss in (dyn, rep):
        np.testing.assert_allclose(loss, np.maximum(one.sum(-1), free), rtol=1e-6)
    gradient = jax.grad(lambda x: balance.kl_balance(x, prior, free)[1].sum())(post)
    np.testing.assert_array_equal(np.any(gradient, (1, 2)), [False, True, True])


def test_block_linear_starts_with_the_fan_in_of_all_blocks():
    """Bug 12: weights of block-diagonal layers are smaller by sqrt(blocks) than with the fan-in of one block."""
    deter, hidden, blocks = 256, 16, 8
    core = from_flax(Core(hidden, blocks))
    params = tiny.jit(core.init)(jax.random.key(0), jnp.zeros((1, deter)), jnp.zeros((1, 4, 4)), jnp.zeros((1, 2)))
    assert np.std(params["dyngru"]["kernel"]) == pytest.approx(deter**-0.5, rel=0.05)
    assert np.std(params["dynhid0"]["kernel"]) == pytest.approx((deter + blocks * 3 * hidden) ** -0.5, rel=0.05)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jitted", "eager"])
def test_uniform_logits_mean_exactly_zero(jit):
    """Bug 13: terms of up to 2e6 cancel to the last bit, compiled or not."""
    mean = jit(lambda logits: distributions.twohot_mean(logits, BINS))
    for value in (0.0, 0.7, -3.0):
        assert not np.any(mean(jnp.full((3, 255), value)))


def test_uniform_heads_predict_exactly_zero_before_they_are_trained():
    """Bug 13: a new reward head or critic predicts 0 on every feature."""
    head, feat = from_flax(ScalarHead(layers=1, units=8)), jax.random.normal(jax.random.key(0), (5, 16))
    params = head.init(jax.random.key(1), feat)
    mean = jax.jit(lambda params, feat: distributions.twohot_mean(head.apply(params, feat), BINS))(params, feat)
    assert mean.shape == (5,) and not np.any(mean)


def test_return_normaliser_scales_and_subtracts_nothing():
    """Bug 14: shifting both percentiles by the same amount changes no loss."""
    dream = dreamed(reward=(0, 1, 2, 4))
    near, far = (imagined()(dream, lo=x, hi=x + 8.0)[0]["policy"] for x in (0.0, 1000.0))
    np.testing.assert_allclose(near, far, rtol=1e-4)


def test_return_normaliser_is_updated_before_it_is_used():
    """Bug 14: the returns of a batch scale the advantages of the same batch."""
    losses, returns, state, out = imagined()(dreamed(reward=(0, 1e5, -1e5, 1e5)))
    lo, hi = np.percentile(np.asarray(returns), [5, 95])
    np.testing.assert_allclose([state.lo, state.hi], [0.01 * lo, 0.01 * hi], rtol=1e-4)
    assert out["dream/return_scale"] == pytest.approx(0.01 * (hi - lo), rel=1e-4) and hi - lo > 1e3
    np.testing.assert_allclose(losses["policy"], returns / (0.01 * (hi - lo)), rtol=1e-4)


def test_return_normaliser_of_an_update_is_kept():
    """Bug 14: the state after an update has the percentiles that scaled the advantages of the update."""
    state, out = learned()
    ret = state.extra["behavior"]["norms"].ret
    assert learning().state().extra["behavior"]["norms"].ret.hi == 0 < ret.hi
    assert out["dream/return_scale"] == pytest.approx(max(1.0, float(ret.hi - ret.lo)), rel=1e-5)


@pytest.mark.parametrize("action_repeat", [1, 4])
def test_replay_ratio_counts_trained_rows_per_stored_row(tmp_path, monkeypatch, action_repeat):
    """Bug 15: the real loop makes ratio / (B * T) updates for each row of the replay, with any action repeat."""
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch, action_repeat=action_repeat, replay_ratio=6, lockstep=True)
        first = None
        for number in range(1, 31):
            turn(run)
            assert run.parts.replay.steps == 2 * number
            if first is None and run.parts.learner.updates:
                first = run.parts.replay.steps
        assert run.parts.learner.updates == 1 + (run.parts.replay.steps - first) * 6 // (2 * 4)


DEVICES = """
import pickle, sys
import jax
import test_silent_bugs as tests
from dreamer.runtime.devices import mesh as meshes
from dreamer.runtime.learning.learner import Learner

results = []
for count in (1, 2):
    learner = Learner(
        tests.learning().agent, tests.tiny.SPECS[tests.KIND], seed=0, batch_size=4, lockstep=True,
        config=meshes.Config(count=count),
    )
    assert learner.mesh.size == count
    out = learner.step(tests.learning().batch, None)
    norm, (_, squares, _) = learner.state.extra["behavior"]["norms"].ret, learner.state.opt_state
    results.append(jax.device_get((out.out.metrics, out.out.latent, (norm.lo, norm.hi), jax.tree.leaves(squares.nu))))
sys.stdout.buffer.write(pickle.dumps(results))
"""


def test_two_devices_make_the_update_of_one():
    """Bug 16: losses, gradients and return percentiles are those of the whole batch, not of a device's share."""
    folder = pathlib.Path(__file__).parent
    flags = {"xla_force_host_platform_device_count": 2, **tiny.QUICK}
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(folder.parent), str(folder)]),
        "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items()),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, cwd=folder.parent, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    one, two = pickle.loads(done.stdout)
    values, latent, percentiles, squares = one
    assert percentiles[0] < 0 < percentiles[1]
    np.testing.assert_allclose(two[2], percentiles, rtol=1e-4)
    assert two[0] == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in values.items()}
    np.testing.assert_array_equal(two[1]["prev"], latent["prev"])
    for ours, theirs in zip(squares, two[3], strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3 * np.abs(ours).max())


def test_stored_actions_are_the_policys_own():
    """Bug 17: the replay stores the policy's actions unclipped; the environment receives them in its own units."""
    _, replay = collected("Throttle")
    action, reward = column(replay, "action")[..., 0], column(replay, "reward")
    first = column(replay, "is_first")[:, 1:]
    np.testing.assert_allclose(
        reward[:, 1:][~first], (50 + 50 * np.clip(action[:, :-1], -1, 1))[~first], rtol=1e-4
    )
    np.testing.assert_array_equal(column(replay, "latent/prev")[:, 1:, 0][~first], action[:, :-1][~first])
    assert 1 < np.abs(action).max() < 10


@pytest.mark.parametrize("lockstep", [True, False])
def test_acting_copy_follows_each_update_and_is_never_donated(lockstep):
    """Bug 18: the acting parameters are of this or the previous update, and stay readable after later updates."""
    spec, replay = collected("Diary")
    trainer = learner.Learner(tiny.echo_agent(spec), spec, seed=0, batch_size=2, lockstep=lockstep)
    donated, held = trainer.state.params, [trainer.snapshot()]
    for _ in range(3):
        trainer.step(*replay.sample(2))
        held.append(trainer.snapshot())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated)), "nothing was donated: this test cannot fail"
    versions = [{float(leaf[0, 0]) for leaf in snapshot.leaves} for snapshot in held]
    assert versions == [{snapshot.updates} for snapshot in held]
    assert all(update - (not lockstep) <= held[update].updates <= update for update in range(4))
    trainer.sync()
    trainer.step(*replay.sample(2))
    trainer.sync()
    assert {float(leaf[0, 0]) for leaf in trainer.snapshot().leaves} == {4}


def test_collector_acts_with_the_newest_copy(tmp_path, monkeypatch):
    """Bug 18: each turn of the loop takes the current acting parameters of the learner."""
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch, lockstep=True, replay_ratio=8)
        collect, used, updates = run.parts.collector.collect, [], []

        def spy(snapshot, *args):
            used.append(float(snapshot.leaves[0][0, 0]))
            updates.append(run.parts.learner.updates)
            return collect(snapshot, *args)

        run.parts.collector.collect = spy
        for _ in range(12):
            turn(run)
    assert used == updates and updates[-1] > 3


def numbered(rows: int, capacity: int, online: bool) -> Replay:
    """Returns a replay of one ring to which rows 0, 1, 2 .. were added."""
    spec = Spec({"number": Space((), "int32", 1000)}, Action(continuous=1))
    config = ReplayConfig(capacity_steps=capacity, batch_length=3, context=1, online=online)
    replay = Replay(spec, {}, config, streams=1, seed=0, env_steps=1000)
    for number in range(rows):
        zeros = np.zeros(1, np.float32)
        flags = [np.zeros(1, bool)] * 3
        replay.add(Step({"number": np.array([number], np.int32)}, np.zeros((1, 1), np.float32), zeros, *flags), {})
    return replay


@pytest.mark.parametrize("rows", [10, 13, 27])
def test_newest_rows_are_sampled_and_no_sequence_joins_the_write_head(rows):
    """Bug 19: all sequences of 4 rows among the last 10 are drawn, including the newest, and no others."""
    drawn = numbered(rows, capacity=10, online=False).sample(500)[0].obs["number"]
    np.testing.assert_array_equal(np.diff(drawn), 1)
    assert set(drawn[:, 0].tolist()) == set(range(rows - 10, rows - 3))


def test_newest_sequence_is_trained_on_at_once():
    """Bug 19: the online queue returns the newly completed sequence first."""
    replay = numbered(12, capacity=100, online=True)
    assert replay.sample(4)[0].obs["number"][:3, 0].tolist() == [0, 4, 8]


def test_restored_state_continues_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    """Bug 20: a checkpoint of the loop restores normaliser, slow critic, optimizer, step and key in another agent."""
    update, saved, other = learning().update, learned()[0], learning().state(seed=1)
    with contextlib.ExitStack() as stack:
        run = make_run(stack, tmp_path, monkeypatch)
        run.parts.learner.state = saved
        run.save()
        restored, _ = run.parts.checkpoints.restore(other)
    for part in (lambda s: s.extra["behavior"]["norms"], lambda s: s.extra["behavior"]["slow"], lambda s: s.opt_state):
        pairs = [jax.tree.leaves(part(state)) for state in (saved, restored, other)]
        assert all(np.array_equal(a, b) for a, b, _ in zip(*pairs, strict=True))
        assert any(not np.array_equal(a, c) for a, _, c in zip(*pairs, strict=True)), "the states are equal"
    (ours, before), (theirs, after) = (update(state, learning().batch) for state in (saved, restored))
    for a, b in zip(jax.tree.leaves((ours.params, before)), jax.tree.leaves((theirs.params, after)), strict=True):
        np.testing.assert_array_equal(a, b)
