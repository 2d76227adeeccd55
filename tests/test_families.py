"""Features of the contracts for families other than RSSM and actor-critic, each with a minimal part that uses it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dreamer import agent as agents
from dreamer import load_config
from dreamer.agent import assemble
from dreamer.errors import UserError
from dreamer.interfaces import Learned, Variables
from dreamer.losses import joined
from dreamer.ops import optimizers
from dreamer.spaces import Action, Space, Spec

SPEC = Spec({"vector": Space((3,), "float32")}, Action(continuous=2))
KEY = jax.random.key(0)
PLAIN = optimizers.Config(learning_rate=0.1, warmup=0, agc=0.0)


def batch(context: int = 1):
    made = tiny.make_batch(SPEC, batch_size=4, length=6, context=context)
    return made._replace(latent={"prev": np.zeros((4, 1, 2), np.float32)} if context else {})


def silent(behavior):
    """Returns a behavior that keeps its extra, so that several updates are possible."""
    return behavior._replace(loss=lambda v, *rest: ({"given": jnp.zeros(())}, (v.extra, {})))


def echo(**changes):
    return tiny.echo_world(SPEC)._replace(**changes)


def random(**changes):
    return silent(tiny.random_behavior(SPEC))._replace(**changes)


# --- what a behavior needs --------------------------------------------------------------------------


def test_a_behavior_that_needs_what_the_model_does_not_predict_is_refused_in_a_line():
    with pytest.raises(UserError) as caught:
        assemble(echo(), random(needs=frozenset({"reward", "success"})), PLAIN, SPEC)
    assert str(caught.value) == (
        "the behavior needs success, which the world model does not predict; it predicts cont, reward"
    )


def test_a_model_without_rewards_serves_a_behavior_that_needs_none():
    agent = assemble(echo(predict=lambda v, feat: {}), random(), PLAIN, SPEC)
    state, out = jax.jit(agent.update)(agent.init(KEY), batch())
    assert state.step == 1 and np.isfinite(out.metrics["train/loss"])


def test_actor_critics_need_rewards():
    behavior = tiny.parts("vector")[1]
    with pytest.raises(UserError, match="needs cont, reward, which the world model .* it predicts nothing"):
        assemble(echo(predict=lambda v, feat: {}), behavior, PLAIN, SPEC)


# --- losses and metrics -----------------------------------------------------------------------------


def shorter(v, key, state, prev_action, rows):
    """A loss over pairs of neighbouring rows, so one shorter than the batch."""
    losses, learned = tiny.echo_world(SPEC).loss(v, key, state, prev_action, rows)
    return {"echo": losses["echo"], "near": losses["echo"][:, 1:]}, learned


def test_a_loss_may_have_fewer_rows_than_the_batch():
    agent = assemble(echo(loss=shorter, scales={"echo": 1.0, "near": 2.0}), random(), PLAIN, SPEC)
    out = jax.jit(agent.update)(agent.init(KEY), batch())[1]
    rows = np.square(batch().reward[:, 1:])
    assert float(out.metrics["loss/near"]) == pytest.approx(rows[:, 1:].mean(), rel=1e-5)
    assert float(out.metrics["train/loss"]) == pytest.approx(rows.mean() + 2 * rows[:, 1:].mean(), rel=1e-5)


def test_a_prioritised_replay_needs_a_number_for_each_row():
    agent = assemble(echo(loss=shorter, scales={"echo": 1.0, "near": 2.0}), random(), PLAIN, SPEC, priorities=True)
    with pytest.raises(UserError, match="replay.priority needs a world model that returns the surprise of each row"):
        jax.eval_shape(agent.update, agent.init(KEY), batch())


def test_losses_that_are_all_shorter_than_the_batch_rate_no_rows():
    def loss(*args):
        losses, learned = tiny.echo_world(SPEC).loss(*args)
        return {"echo": losses["echo"][:, 1:]}, learned

    agent = assemble(echo(loss=loss), random(), PLAIN, SPEC, priorities=True)
    with pytest.raises(UserError, match="replay.priority needs a world model that returns the surprise of each row"):
        jax.eval_shape(agent.update, agent.init(KEY), batch())


def test_the_surprise_that_a_model_returns_is_used():
    def loss(v, key, state, prev_action, rows):
        losses, learned = shorter(v, key, state, prev_action, rows)
        return losses, learned._replace(surprise=rows.reward)

    scales = {"echo": 1.0, "near": 2.0}
    agent = assemble(echo(loss=loss, scales=scales), random(), PLAIN, SPEC, priorities=True)
    out = jax.jit(agent.update)(agent.init(KEY), batch())[1]
    np.testing.assert_array_equal(out.surprise, batch().reward[:, 1:])


def test_metrics_of_one_name_from_two_places_are_an_error():
    with pytest.raises(ValueError, match="metrics named .*dream/return.* come from two places"):
        joined({"dream/return": jnp.zeros(())}, {"dream/return": jnp.ones(())})


# --- state beside latent ----------------------------------------------------------------------------


def counting_world():
    """Makes a model whose state is a cache of the last two actions and their number. Its latent is the last action."""

    def push(state, action):
        seen = jnp.concatenate([state["seen"][:, 1:], action[:, None]], 1)
        return {"seen": seen, "count": state["count"] + 1}

    def observe(v, key, state, obs, prev_action, is_first):
        def step(state, inputs):
            action, first = inputs
            state = jax.tree.map(lambda x: jnp.where(first.reshape(-1, *(1,) * (x.ndim - 1)), 0, x), state)
            state = push(state, jnp.where(first[:, None], 0, action))
            return state, state["seen"][:, -1]

        state, prev = jax.lax.scan(step, state, (prev_action.swapaxes(0, 1), is_first.T))
        return state, {"prev": prev.swapaxes(0, 1)}

    def loss(v, key, state, prev_action, rows):
        _, latent = observe(v, key, state, rows.obs, prev_action, rows.is_first)
        return {"echo": jnp.square(v.params["w"] - rows.reward)}, Learned(latent, v.extra, {})

    def starts(v, latent, prev_action, is_first):
        """Rebuilds the caches of all rows from a window of two; nothing precedes a first row."""
        before = jnp.pad(latent["prev"][:, :-1], ((0, 0), (1, 0), (0, 0)))
        before = jnp.where(is_first[..., None], 0, before)
        seen = jnp.stack([before, latent["prev"]], 2).reshape(-1, 2, 2)
        return {"seen": seen, "count": jnp.full(len(seen), 2)}

    return tiny.echo_world(SPEC)._replace(
        initial=lambda count: {"seen": jnp.zeros((count, 2, 2)), "count": jnp.zeros(count, jnp.int32)},
        observe=observe, starts=starts, loss=loss, imagine=lambda v, key, state, action: push(state, action),
        latent=lambda state: {"prev": state["seen"][:, -1]}, pack=lambda latent: {}, unpack=lambda packed: None,
        storage={},
    )  # fmt: skip


def test_a_model_whose_state_is_a_cache_learns_acts_and_is_shown():
    given = {}

    def loss(v, key, dream, start, replayed):
        given["start"] = start
        return {"given": dream.feat(dream.imagine(key, start, jnp.ones((24, 2)))).sum() * 0}, (v.extra, {})

    agent = assemble(counting_world(), random(loss=loss), PLAIN, SPEC)
    state = agent.init(KEY)
    _, out = agent.update(state, batch(context=0))
    assert out.latent == {} and given["start"]["seen"].shape == (24, 2, 2)
    carry, obs = agent.initial_carry(3), {"vector": np.zeros((3, 3), np.float32)}
    for _ in range(3):
        carry, action = agent.act(agent.variables(state), KEY, carry, obs, np.zeros(3, bool))
    np.testing.assert_array_equal(carry.state["count"], 3)
    assert set(agent.report(state, batch(context=0))) == {"truth/vector", "dream/vector"}
    assert agent.encode(agent.variables(state), KEY, obs).shape == (3, 2)


def test_dreams_of_a_cache_do_not_start_beyond_the_border_of_an_episode():
    world, rows = counting_world(), batch(context=0)
    latent = {"prev": jnp.ones((4, 6, 2))}
    start = world.starts(world.init(KEY), latent, rows.action, jnp.asarray(rows.is_first))
    older = np.asarray(start["seen"][:, 0, 0]).reshape(4, 6)
    np.testing.assert_array_equal(older == 0, rows.is_first | (np.arange(6) == 0))


# --- acting -----------------------------------------------------------------------------------------


def planner():
    """Makes a behavior whose carry counts the rows of the episode. It acts by the count, or by the command "goal"."""

    def act(v, key, dream, state, carry, ask, mode):
        carry = jnp.where(ask.is_first, 0, carry) + 1
        action = jnp.stack([carry.astype(jnp.float32), jnp.full(len(carry), float(mode == "collect"))], -1)
        return ask.command.get("goal", action), carry

    return random(initial=lambda envs: jnp.zeros(envs, jnp.int32), act=act)


@functools.cache
def planned():
    agent = assemble(echo(), planner(), PLAIN, SPEC)
    return agent, agent.variables(agent.init(KEY)), {"vector": np.zeros((2, 3), np.float32)}


def test_a_behavior_remembers_from_row_to_row_and_forgets_at_a_first_row():
    agent, variables, obs = planned()
    carry, seen = agent.initial_carry(2), []
    for first in ([1, 1], [0, 0], [0, 1]):
        carry, action = agent.act(variables, KEY, carry, obs, np.array(first, bool))
        seen.append(np.asarray(action)[:, 0].tolist())
    assert seen == [[1, 1], [2, 2], [3, 1]]


@pytest.mark.parametrize("mode, explores", [("collect", 1.0), ("sample", 0.0), ("mode", 0.0)])
def test_a_behavior_knows_whether_it_collects_or_is_judged(mode, explores):
    agent, variables, obs = planned()
    _, action = agent.act(variables, KEY, agent.initial_carry(2), obs, np.ones(2, bool), mode)
    np.testing.assert_array_equal(action[:, 1], explores)


def test_a_command_reaches_the_behavior():
    agent, variables, obs = planned()
    goal = np.float32([[5, 6], [7, 8]])
    carry, action = agent.act(
        variables, KEY, agent.initial_carry(2), obs, np.ones(2, bool), "sample", {"goal": goal}
    )
    np.testing.assert_array_equal(action, goal)
    np.testing.assert_array_equal(carry.prev_action, goal)


def test_a_behavior_that_learns_by_rules_acts_from_its_extra():
    """An evolution strategy has no parameters; an update of its extra changes its actions."""

    def act(v, key, dream, state, carry, ask, mode):
        return jnp.broadcast_to(v.extra["mean"], (len(ask.is_first), 2)), carry

    def loss(v, key, dream, start, replayed):
        return {}, ({"mean": v.extra["mean"] + 1}, {})

    init = lambda key: Variables({}, {"mean": jnp.zeros((1, 2))}, {})  # noqa: E731
    agent = assemble(echo(), random(init=init, act=act, loss=loss, scales={}), PLAIN, SPEC)
    state, _ = jax.jit(agent.update)(agent.init(KEY), batch())
    obs = {"vector": np.zeros((3, 3), np.float32)}
    _, action = agent.act(agent.variables(state), KEY, agent.initial_carry(3), obs, np.ones(3, bool))
    np.testing.assert_array_equal(action, 1)


# --- hyper ------------------------------------------------------------------------------------------


@functools.cache
def real():
    """Returns the tiny agent, a state, and its compiled update."""
    return tiny.make_agent("vector"), tiny.state("vector"), tiny.update("vector")


def test_every_number_that_changes_no_shape_is_in_hyper():
    hyper = real()[1].hyper
    assert set(hyper["behavior"]) == {
        "entropy", "lam", "slow_rate", "slow_scale", "minstd", "maxstd", "discount",
    }  # fmt: skip
    assert set(hyper["world_model"]) == {"free_nats", "live_label"}
    assert set(hyper["scale"]) == {"dyn", "rep", "rew", "con", "rec/vector", "policy", "value", "repval"}
    assert {prefix: float(rate) for prefix, rate in hyper["learning_rate"].items()} == {"": pytest.approx(1e-3)}


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("scale", "rec/vector", 0.0), ("behavior", "entropy", 1.0), ("behavior", "lam", 0.0),
        ("world_model", "free_nats", 9.0), ("learning_rate", "", 0.5), ("behavior", "slow_rate", 1.0),
        ("behavior", "minstd", 0.9),
    ],
)  # fmt: skip
def test_another_number_makes_another_update_by_the_same_program(part, name, value):
    _, state, update = real()
    made = tiny.make_batch(tiny.SPECS["vector"])
    state = tiny.trained("vector")[0]
    traces = tiny.TRACES["vector", "float32"]
    before, _ = update(state, made)
    hyper = {**state.hyper, part: {**state.hyper[part], name: jnp.float32(value)}}
    after, _ = update(state._replace(hyper=hyper), made)
    assert tiny.TRACES["vector", "float32"] == traces
    same = jax.tree.map(np.array_equal, (before.params, before.extra), (after.params, after.extra))
    assert not all(jax.tree.leaves(same))


def test_a_population_learns_as_each_member_would_alone():
    agent, state, update = real()
    made = tiny.make_batch(tiny.SPECS["vector"])
    state = tiny.trained("vector")[0]
    rates = [1e-3, 1e-2]
    members = [state._replace(hyper={**state.hyper, "learning_rate": {"": jnp.float32(rate)}}) for rate in rates]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    after, out = tiny.jit(jax.vmap(agent.update, in_axes=(0, None)))(together, made)
    assert out.metrics["train/loss"].shape == (2,)
    for i, member in enumerate(members):
        alone, _ = update(member, made)
        for ours, theirs in zip(jax.tree.leaves(after.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(ours[i], theirs, rtol=1e-4, atol=1e-6)


# --- several optimizers -----------------------------------------------------------------------------


def trained_with(configs, updates=4):
    """Returns the parameters of model and behavior after each update, for two parts with a gradient of 1."""

    def loss(v, *rest):
        return {"given": v.params["w"].sum()}, (v.extra, {})

    def model_loss(v, key, state, prev_action, rows):
        losses, learned = tiny.echo_world(SPEC).loss(v, key, state, prev_action, rows)
        return {"echo": 0 * losses["echo"] + v.params["w"]}, learned

    agent = assemble(echo(loss=model_loss), random(loss=loss), configs, SPEC)
    state, update, seen = agent.init(KEY), jax.jit(agent.update), []
    for _ in range(updates):
        state, out = update(state, batch())
        seen.append([float(state.params[part]["w"][0, 0]) for part in ("world_model", "behavior")])
    return np.array(seen), out


def test_each_optimizer_moves_the_parameters_whose_names_begin_with_its_prefix():
    slow = optimizers.Config(learning_rate=0.01, warmup=0, agc=0.0)
    seen, out = trained_with({"": PLAIN, "behavior": slow})
    np.testing.assert_allclose(seen[:, 0], [-0.1, -0.2, -0.3, -0.4], rtol=1e-4)
    np.testing.assert_allclose(seen[:, 1], [-0.01, -0.02, -0.03, -0.04], rtol=1e-4)
    rates = {name: float(value) for name, value in out.metrics.items() if "learning_rate" in name}
    assert rates == {"train/learning_rate": pytest.approx(0.1), "train/learning_rate/behavior": pytest.approx(0.01)}


def test_the_longest_prefix_wins_and_ends_at_a_name():
    params = {"world_model": {"dec": {"w": 0}, "decoder": {"w": 0}, "enc": {"w": 0}}, "behavior": {"w": 0}}
    configs = dict.fromkeys(("", "world_model", "world_model/dec"), PLAIN)
    assert optimizers.prefixes_of(configs, params) == {
        "world_model": {"dec": {"w": "world_model/dec"}, "decoder": {"w": "world_model"}, "enc": {"w": "world_model"}},
        "behavior": {"w": ""},
    }


def test_a_phase_begins_and_ends_and_its_warm_up_counts_from_its_start():
    phase = optimizers.Config(learning_rate=0.1, warmup=2, agc=0.0, start=1, stop=4)
    seen, _ = trained_with({"": PLAIN, "behavior": phase}, updates=6)
    np.testing.assert_allclose(seen[:, 1], [0, 0, -0.05, -0.15, -0.15, -0.15], atol=1e-5)


def test_an_optimizer_that_rests_begins_as_a_fresh_one():
    """Its moments do not include the gradients from before its phase."""
    late, _ = trained_with(optimizers.Config(learning_rate=0.1, warmup=0, agc=0.0, start=3), updates=6)
    fresh, _ = trained_with(PLAIN, updates=3)
    np.testing.assert_allclose(late[3:], fresh, rtol=1e-5)
    np.testing.assert_array_equal(late[:3], 0)


def test_the_prefix_of_no_parameter_is_named_with_the_nearest():
    with pytest.raises(UserError) as caught:
        assemble(echo(), random(), {"": PLAIN, "behaviour": PLAIN}, SPEC)
    assert str(caught.value) == (
        "agent.optimizers.behaviour: no parameter's name begins with 'behaviour'; did you mean 'behavior'?"
    )


def test_optimizers_hold_differences_from_the_one_of_the_rest():
    overrides = {"agent.optimizer.agc": 0.1, "agent.optimizers": {"behavior": {"learning_rate": "1e-4", "start": 10}}}
    config = load_config(overrides=overrides).agent
    made = agents.optimizer_configs(config)
    assert set(made) == {"", "behavior"} and made[""] == config.optimizer
    assert made["behavior"] == optimizers.Config(learning_rate=1e-4, agc=0.1, start=10)


def test_a_flag_changes_one_difference_of_an_optimizer_and_keeps_the_others(tmp_path):
    preset = tmp_path / "two.yaml"
    preset.write_text("agent: {optimizers: {behavior: {learning_rate: 1e-4}, world_model/dec: {agc: 0.1}}}")
    config = load_config(preset, overrides={"agent.optimizers.behavior.start": 5})
    assert config.agent.optimizers == {"behavior": {"learning_rate": 1e-4, "start": 5}, "world_model/dec": {"agc": 0.1}}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"behavior": {"learning_rat": 1}}, "optimizers.behavior: unknown key 'learning_rat'; did you mean 'learn"),
        ({"behavior": {"warmup": "soon"}}, "optimizers.behavior.warmup must be a whole number .int., not 'soon'"),
        ({"behavior": {"start": 5, "stop": 5}}, "optimizers.behavior: stop must be above start, 5, or 0"),
    ],
)
def test_a_wrong_difference_is_named(given, message):
    with pytest.raises(UserError, match=message):
        load_config(overrides={"agent.optimizers": given})
