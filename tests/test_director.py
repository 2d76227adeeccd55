"""The behavior director: what it learns, how it acts, and what it shows. Its numbers are in test_golden_director."""

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
from dreamer import load_config
from dreamer.behaviors import director
from dreamer.dreaming import hierarchy
from dreamer.errors import UserError
from dreamer.interfaces import Ask, Dream, Replayed
from dreamer.losses import make_dream
from dreamer.spaces import MASK, Action, Space, Spec

SMALL = director.Config(
    units=8, layers=1, groups=3, classes=4, steps=2, imagine_length=4, kl_target=2.0, slow_every=2, bins=15
)
SPEC = tiny.SPECS["image"]
KEY = jax.random.key(0)
MASKED = Spec({"vector": Space((3,), "float32"), MASK: Space((4,), "int8", classes=2)}, Action((4,)))
OTHERS = {
    "continuous": tiny.SPECS["vector"], "masked": MASKED,
    "several": Spec({"vector": Space((3,), "float32")}, Action((2, 3), 1)),
}  # fmt: skip


def make_agent(spec: Spec = SPEC, dtype: str = "float32", **changes):
    behavior = dataclasses.replace(SMALL, **changes)
    return agents.make(dataclasses.replace(tiny.CONFIG, compute_dtype=dtype, behavior=behavior), spec)


@functools.cache
def made():
    """Returns the agent, its first state and its compiled update."""
    agent = make_agent()
    return agent, tiny.jit(agent.init)(KEY), tiny.jit(agent.update)


@functools.cache
def trained():
    """The state after six updates, when even the critic of rewards has learned, and the last metrics."""
    _, state, update = made()
    for seed in range(6):
        state, out = update(state, batch(seed))
    return state, out.metrics


def batch(seed: int = 0, spec: Spec = SPEC):
    return tiny.make_batch(spec, batch_size=4, length=5, seed=seed)


# --- updates ----------------------------------------------------------------------------------------


def test_an_update_is_a_pure_function_that_keeps_the_form_of_its_state_and_is_traced_once():
    _, state, update = made()
    agent_laws.check_pure(update, state, batch())
    numbers = ("discount", "lam", "kl_target", "slow_rate", "exploration_scale", "worker_entropy")
    assert set(numbers) < set(state.hyper["behavior"])


def test_a_gradient_reaches_every_parameter():
    (rms,) = (part for part in trained()[0].opt_state if hasattr(part, "nu"))
    moments = jax.tree_util.tree_leaves_with_path(rms.nu)
    unreached = [jax.tree_util.keystr(path) for path, moment in moments if not np.any(moment)]
    assert len(moments) == len(jax.tree.leaves(made()[1].params)) and not unreached


def test_updates_scanned_and_vmapped_over_seeds_are_those_of_a_loop_over_each():
    agent, _, update = made()
    agent_laws.check_scan_and_vmap(agent, update, [batch(seed) for seed in (0, 1)], rtol=1e-3, atol=1e-4)


def test_bfloat16_keeps_parameters_and_goals_in_float32():
    agent = make_agent(dtype="bfloat16")
    rows = tiny.make_batch(SPEC, batch_size=4, length=5, dtype="bfloat16")
    state, out = tiny.jit(agent.update)(made()[1], rows)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((state.params, state.extra["behavior"]["slow"])))
    whole = made()[2](made()[1], batch())[1].metrics
    for name in ("loss/goal", "loss/value/worker", "goal/kl"):
        assert float(out.metrics[name]) == pytest.approx(float(whole[name]), rel=0.2, abs=0.02), name
    assert agent.initial_carry(2).behavior.goal.dtype == jnp.float32


def for_devices():
    """The agent, its spec and a batch, for `agent_laws.check_devices`."""
    return make_agent(), SPEC, tiny.make_batch(SPEC, batch_size=8, length=5)


@pytest.mark.slow
def test_eight_devices_make_the_update_of_one():
    agent_laws.check_devices("test_director", updates=1, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind", OTHERS)
def test_any_actions_and_masks_can_be_learned(kind):
    spec = OTHERS[kind]
    agent = make_agent(spec, critic="twohot")
    state, out = jax.eval_shape(agent.update, jax.eval_shape(agent.init, KEY), batch(spec=spec))
    assert out.metrics["worker/entropy"].shape == ()
    assert agent.behavior.needs == {"reward", "cont"} | ({"allowed"} if spec.masked else set())


@pytest.mark.parametrize("kind", ["continuous", "several"])
def test_the_workers_entropy_is_relative_to_the_smallest_and_the_largest(kind):
    action = OTHERS[kind].action
    actions = director.actions_of(SMALL, OTHERS[kind], {"minstd": jnp.float32(0.1), "maxstd": jnp.float32(1.0)})
    widths = {"logits": action.onehots, "mean": action.continuous, "stddev": action.continuous}
    outs = {name: jnp.zeros((1, width)) for name, width in widths.items() if width}
    for raw, expected in ((60.0, 1.0), (-60.0, 0.0)):
        sharp = {name: jnp.full_like(x, raw) for name, x in outs.items()}
        if "logits" in sharp:
            sharp["logits"] = jnp.asarray([[1.0, 0, 1, 0, 0]]) * (0.0 if expected else 1e4)
        found = float(director.director._relative_entropy(actions, jnp.float32(0.1), sharp, None)[0])
        assert found == pytest.approx(expected, abs=0.04)  # a share of 1 % is uniform


def losses_of(params):
    """The behavior's losses as a function of the parameters of both parts."""
    agent, state, _ = made()
    v, rows = agent.variables(trained()[0]), batch()
    rows = jax.tree.map(lambda x: jnp.asarray(x)[:, 1:], rows._replace(latent={}))
    model = v["world_model"]._replace(params=params["world_model"])
    start = agent.world_model.initial(20)
    feat = jax.random.normal(KEY, (4, 5, tiny.FEAT)) + 0 * sum(jnp.sum(x) for x in jax.tree.leaves(model.params))
    own = v["behavior"]._replace(params=params["behavior"])
    return agent.behavior.loss(own, KEY, make_dream(agent.world_model, model), start, Replayed(rows, feat))[0]


def test_each_loss_reaches_one_network():
    params = trained()[0].params
    expected = {
        "goal": {"enc", "dec"}, "manager": {"manager"}, "worker": {"worker"},
        "value/extrinsic": {"value_extrinsic"}, "value/exploration": {"value_exploration"},
        "value/worker": {"value_worker"},
    }  # fmt: skip
    jacobian = tiny.jit(jax.jacrev(lambda params: {name: x.mean() for name, x in losses_of(params).items()}))(params)
    for name, grads in jacobian.items():
        assert not any(np.any(x) for x in jax.tree.leaves(grads["world_model"])), name
        reached = {part for part, tree in grads["behavior"].items() if any(np.any(x) for x in jax.tree.leaves(tree))}
        assert reached == expected[name], name


def test_slow_critics_move_every_so_many_updates():
    agent, state, _ = made()
    v = agent.variables(state)["behavior"]
    v = v._replace(params=jax.tree.map(lambda x: x + 1, v.params))
    for updates, moves in ((1, False), (2, True), (3, False), (4, True)):
        slow = agent.behavior.refresh(v._replace(extra={**v.extra, "updates": jnp.int32(updates)}))["slow"]
        fast = v.params["value_worker"]
        same = jax.tree.map(np.array_equal, slow["worker"], fast)
        assert all(jax.tree.leaves(same)) == moves


# --- dreams -----------------------------------------------------------------------------------------


def counting_dream() -> Dream:
    """A dream whose state is the sum of all actions, and so says which actions were taken."""
    return Dream(
        imagine=lambda key, state, action: state + action, feat=lambda state: state, predict=lambda feat: {},
        decode=lambda state: {},
    )  # fmt: skip


def test_a_goal_is_chosen_at_the_first_state_of_each_block_and_kept_in_it():
    def choose(key, feat):
        return feat[:, None], feat * 10  # the code says at which state it was chosen

    found = hierarchy.dream_blocks(
        counting_dream(), choose, lambda key, feat, goal: 1 + goal, KEY, jnp.ones((2, 1)), blocks=3, steps=2
    )
    # From 1: two steps of 1 + 10, from 23: two of 1 + 230, from 485: two of 1 + 4850.
    np.testing.assert_array_equal(found.feat[0, :, 0], [1, 12, 23, 254, 485, 5336, 10187])
    np.testing.assert_array_equal(found.code[0, :, 0, 0], [1, 23, 485])
    np.testing.assert_array_equal(found.goal[1, :, 0], [10, 230, 4850])
    np.testing.assert_array_equal(found.action[0, :, 0], [11, 11, 231, 231, 4851, 4851])


# --- acting -----------------------------------------------------------------------------------------


def walk(first, mode="sample", command=None, seed=0):
    """Acts on rows with the flags `first` [rows][E]. Returns the goals and the actions of each row."""
    agent, state = made()[0], trained()[0]
    act = tiny.jit(agent.act, static_argnames="mode")
    carry, goals, actions = agent.initial_carry(len(first[0])), [], []
    for i, flags in enumerate(first):
        obs = {"image": np.random.default_rng(i).integers(0, 256, (len(flags), 48, 48, 3)).astype(np.uint8)}
        key = jax.random.fold_in(jax.random.key(seed), i)
        carry, action = act(agent.variables(state), key, carry, obs, np.array(flags, bool), mode, command or {})
        goals.append(np.asarray(carry.behavior.goal))
        actions.append(np.asarray(action))
    return np.stack(goals), np.stack(actions)


def test_a_goal_is_kept_for_k_rows_and_dropped_at_a_first_row():
    goals, actions = walk([[1, 1], [0, 0], [0, 0], [0, 1], [0, 0], [0, 0]])
    changed = (goals[1:] != goals[:-1]).any(-1).T.astype(int).tolist()
    assert changed == [[0, 1, 0, 1, 0], [0, 1, 1, 0, 1]]
    assert goals.shape == (6, 2, tiny.WORLD_MODEL.deter) and set(actions.sum(-1).ravel()) == {1.0}


def test_a_goal_may_be_given():
    feat = np.random.default_rng(0).normal(size=(2, tiny.FEAT)).astype(np.float32)
    goals, _ = walk([[1, 1], [0, 0], [0, 0]], command={"goal": feat})
    for goal in goals:
        np.testing.assert_array_equal(goal, feat[:, : tiny.WORLD_MODEL.deter])


def test_mode_is_deterministic_and_sample_is_not():
    agent, v = made()[0], made()[0].variables(trained()[0])
    dream, state = make_dream(agent.world_model, v["world_model"]), agent.world_model.initial(16)
    carry, ask = agent.behavior.initial(16), Ask(jnp.ones(16, bool))
    for mode, same in (("mode", True), ("sample", False)):
        act = tiny.jit(lambda key, mode=mode: agent.behavior.act(v["behavior"], key, dream, state, carry, ask, mode))
        (action, held), (other, kept) = (act(jax.random.key(seed)) for seed in (0, 1))
        assert (np.array_equal(action, other), np.array_equal(held.goal, kept.goal)) == (same, same)


def test_a_model_without_a_deterministic_part_has_goals_of_all_its_features():
    behavior = director.make(SMALL, SPEC, feat_width=5)
    assert behavior.initial(3).goal.shape == (3, 5)
    v = behavior.init(KEY)
    assert behavior.pictures(v, KEY, counting_dream(), jnp.zeros((1, 2, 5)), {}) == {}


# --- pictures and settings --------------------------------------------------------------------------


def test_goals_are_drawn():
    agent = made()[0]
    seen = tiny.jit(agent.report)(trained()[0], batch())
    picture = np.asarray(seen["mind/goals_image"])
    assert picture.shape == (4, 5, 48, 6 * 48, 3) and picture.min() >= 0 and picture.max() <= 255
    np.testing.assert_allclose(picture[..., :48, :], batch().obs["image"][:, 1:], atol=1e-3)
    sides = picture[..., 48:, :].reshape(4, 5, 48, 5, 48, 3).swapaxes(2, 3)
    assert not np.array_equal(sides[..., 1, :, :, :], sides[..., 2, :, :, :])


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"imagine_length": 15}, "imagine_length must be a multiple of steps, 8, such as 8, not 15"),
        ({"imagine_length": 4}, "imagine_length must be a multiple of steps, 8, such as 8, not 4"),
        ({"classes": 2}, r"kl_target must be less than groups \* ln\(classes\), 5.55, not 10"),
        ({"bins": 4}, "bins must be odd, not 4"), ({"minstd": 2.0}, "maxstd must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named(changes, text):
    with pytest.raises((UserError, ValueError), match=text):
        director.Config(**changes)


def test_a_wrong_setting_of_a_preset_is_named_with_its_key():
    given = {"agent.behavior.name": "director", "agent.behavior.steps": 5}
    with pytest.raises(UserError, match="agent.behavior.*imagine_length must be a multiple of steps, 5, such as 15"):
        load_config(overrides=given)
