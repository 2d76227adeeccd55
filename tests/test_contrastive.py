"""The contrastive world model (C-SWM) against the golden numbers of its source, and by hand."""

from __future__ import annotations

import dataclasses
import functools

import agent_laws
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dreamer import agent as agents
from dreamer.apps import ranking
from dreamer.behaviors import random, reach
from dreamer.errors import UserError
from dreamer.interfaces import Ask, Dream, Variables
from dreamer.nets.objects import (
    Extractor,
    ObjectEncoder,
    ObjectMLP,
    Transition,
    action_of_objects,
    map_shape,
    pairs,
)
from dreamer.ops import optimizers
from dreamer.ops.action_dist import uniform
from dreamer.spaces import Action, Space, Spec
from dreamer.world_models import contrastive

MLP = {"fc1": "linear0", "fc2": "linear1", "fc3": "linear2", "ln": "norm1"}  # layers of the encoder


def renamed(params: golden.Tree, back: bool = False) -> golden.Tree:
    """Returns the parameters of a file under the names of the modules; back: the reverse."""
    out: golden.Tree = {}
    for name, value in golden.flatten(params).items():
        part, *path = name.split("/")
        if part == "encoder" and back:
            layer = {to: of for of, to in MLP.items()}[path[1]]
            path = [layer, *path[2:]]
        elif part == "encoder":
            path = ["mlp", MLP[path[0]], *path[1:]]
        elif part == "extractor" and back:
            path[0] = path[0].replace("conv", "cnn").replace("norm", "ln")
        elif part == "extractor":
            path[0] = path[0].replace("cnn", "conv").replace("ln", "norm")
        out["/".join([part, *path])] = value
    return golden.nest(out)


def split(params: golden.Tree) -> tuple[golden.Tree, golden.Tree]:
    """Separates the running statistics of the extractor from what has gradients."""
    flat = golden.flatten(renamed(params))
    running = {name.removeprefix("extractor/"): x for name, x in flat.items() if "/running_" in name}
    return golden.nest({name: x for name, x in flat.items() if "/running_" not in name}), golden.nest(running)


def check(file: str, forward) -> None:
    """Compares forward(params, running, inputs) -> outputs, and the gradients of it, with the file cswm/`file`."""
    file = f"cswm/{file}"
    made = golden.load(file)
    params, running = split(made.params)
    cot = golden.flatten(made.cot)

    def objective(params, varied):
        out = forward(params, running, {**made.inputs, **varied})
        return sum(jnp.sum(cot[name] * golden.flatten(out)[name]) for name in cot), out

    varied = {name: made.inputs[name] for name in made.gin}
    grad = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    (_, out), (gparam, gin) = grad(params, varied)
    golden.assert_tree_close(file, "out", out, made.out)
    golden.assert_tree_close(file, "gin", gin, made.gin)
    # A bias before a batch norm has no gradient: its rounding errors are those of the kernel next to it.
    flat = golden.flatten(made.gparam)
    sizes = {name: np.abs(flat[name.replace("/bias", "/kernel")]).max() for name in flat if "cnn" in name}
    golden.assert_tree_close(file, "gparam", renamed(gparam, back=True), made.gparam, sizes)


def statistics(running) -> golden.Tree:
    return renamed({"extractor": running}, back=True)


# --- the networks of the source -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_feature_maps_of_the_source(size):
    made = golden.load(f"cswm/extractor_{size}")
    extractor = Extractor(size, 3, made.params["extractor"]["cnn1"]["kernel"].shape[-1])

    def forward(params, running, inputs):
        apply = functools.partial(extractor.apply, {"params": params["extractor"]}, inputs["obs"], running)
        maps, after = apply(True)
        still, same = apply(False)
        assert same == running
        return {"maps": maps, "maps_eval": still, "aux_after": statistics(after)}

    check(f"extractor_{size}", forward)
    assert map_shape(size, *made.inputs["obs"].shape[1:3]) == made.out["maps"].shape[2:]


def test_object_states_of_the_source():
    def forward(params, running, inputs):
        return {"state": ObjectEncoder(16, 2).apply({"params": params["encoder"]}, inputs["maps"])}

    check("object_encoder", forward)


@pytest.mark.parametrize("file, how", [("action", "split"), ("copy_action", "copy"), ("ignore_action", "ignore")])
def test_transitions_of_the_source(file, how):
    def forward(params, running, inputs):
        params, state = params["transition"], inputs["state"]
        edge = ObjectMLP(16, 16).apply({"params": params["edge"]}, pairs(state))
        delta = Transition(16).apply({"params": params}, state, actions(params, inputs["action"], how))
        return {"delta": delta, "aux_edge": edge, "aux_aggregate": edge.sum(2)}

    check(f"transition_{file}", forward)


def actions(params: golden.Tree, index, how: str, objects: int = 3):
    """Returns the action of each object for the indices of a file. The width of `params` tells how many there are."""
    hidden, inputs = (params[name]["linear0"]["kernel"].shape for name in ("edge", "node"))
    each = inputs[0] - hidden[1] - hidden[0] // 2
    return action_of_objects(jax.nn.one_hot(index, max(1, each) * (objects if how == "split" else 1)), objects, how)


def test_energies_of_the_source():
    def forward(params, running, inputs):
        params, state = params["transition"], inputs["state"]
        moved = state + Transition(16).apply({"params": params}, state, actions(params, inputs["action"], "split"))
        return {
            "energy": contrastive.energy(moved - inputs["next_state"], 0.5),
            "energy_no_trans": contrastive.energy(state - inputs["negative"], 0.5),
        }

    check("energy", forward)


LOSSES = {
    "small": contrastive.Config(extractor="small"),
    "small_ignore_action": contrastive.Config(extractor="small", action="ignore"),
    "medium_copy_action": contrastive.Config(extractor="medium", action="copy", width=4),
    "large": contrastive.Config(extractor="large"),
    "option_sigma_hinge": contrastive.Config(extractor="small", sigma=0.8, hinge=2.0),
}


@pytest.mark.parametrize("file", LOSSES)
def test_the_loss_of_the_source(file):
    nets = contrastive.make_nets(dataclasses.replace(LOSSES[file], objects=3, hidden=32))

    def forward(params, running, inputs):
        hyper = {"sigma": LOSSES[file].sigma, "hinge": LOSSES[file].hinge}
        action = actions(params["transition"], inputs["action"], LOSSES[file].action)
        v = Variables(params, {"running": running}, hyper)
        out = contrastive.transition_energies(nets, v, inputs["obs"], action, inputs["next_obs"], inputs["perm"])
        positive, negative = out.positive.mean(), out.negative.mean()
        apart = contrastive.energy(out.objects - out.objects[inputs["perm"]], hyper["sigma"])
        return {
            "loss": positive + negative, "aux_pos": positive, "aux_neg": negative, "aux_energy_pos": out.positive,
            "aux_energy_neg": apart, "aux_state": out.objects, "aux_next_state": out.next_objects,
            "aux_after": statistics(out.running),
        }  # fmt: skip

    check(f"contrastive_loss_{file}", forward)


# --- the ranking of the source --------------------------------------------------------------------------------------


def test_ties_do_not_hurt_a_rank():
    made = golden.load("cswm/ranking_ties")
    flat = {name: x.reshape(len(x), -1) for name, x in made.inputs.items()}
    found = ranking.ranks(flat["pred"], flat["next"])
    np.testing.assert_array_equal(ranking.distances(flat["pred"], flat["next"]), made.out["dist"])
    np.testing.assert_array_equal(found, made.out["rank"])
    for name, score in ranking.scores(found).items():
        assert score == pytest.approx(float(made.out[name]), abs=1e-12)


def test_rollouts_are_ranked_as_in_the_source():
    made = golden.load("cswm/rollout_ranking")
    world = contrastive.make(small(objects=3, hidden=16), SPEC)
    params = {"transition": made.params["transition"]}
    state = contrastive.Latent(jnp.asarray(made.inputs["state0"]))
    imagine = jax.jit(lambda state, action: world.imagine(Variables(params), KEY, state, action))
    for step, action in enumerate(made.inputs["actions"], start=1):
        state = imagine(state, jax.nn.one_hot(action, 12))
        if step not in ranking.STEPS:
            continue
        golden.assert_close("cswm/rollout_ranking", "out", f"pred{step}", state.objects, made.out[f"pred{step}"])
        true = made.inputs[f"next{step}"].reshape(30, -1)
        found = ranking.ranks(np.asarray(world.feat(state)), true)
        np.testing.assert_array_equal(found, made.out[f"rank{step}"])
        for name, score in ranking.scores(found).items():
            assert score == pytest.approx(float(made.out[f"{name}_step{step}"]), abs=1e-12)


# --- the contracts --------------------------------------------------------------------------------------------------

KEY = jax.random.key(0)
SPEC = Spec({"image": Space((20, 20, 3), "uint8")}, Action((12,)))
OPTIMIZER = optimizers.Config(learning_rate=1e-3, warmup=0, agc=0.0, eps=1e-3)


def small(**changes) -> contrastive.Config:
    return contrastive.Config(**{"objects": 3, "hidden": 16, **changes})


def make_agent(dtype: str = "float32", behavior=None, **changes):
    world_model, behavior = small(**changes), behavior or random.Config()
    return agents.make(agents.Config(dtype, world_model=world_model, behavior=behavior, optimizer=OPTIMIZER), SPEC)


@functools.cache
def made():
    agent = make_agent()
    return agent, tiny.jit(agent.init)(KEY), tiny.jit(agent.update)


def batch(seed: int = 0, length: int = 3, **changes):
    return tiny.make_batch(SPEC, length=length, context=0, seed=seed)._replace(**changes)


def test_only_transitions_inside_an_episode_count():
    agent, state, _ = made()
    rows = batch()
    first = np.zeros_like(rows.is_first)
    first[0, 1] = True
    v = agent.variables(state)["world_model"]
    loss = jax.jit(lambda rows: agent.world_model.loss(v, KEY, None, jnp.asarray(rows.action), rows))
    every, (some, out) = loss(rows._replace(is_first=np.zeros_like(first)))[0], loss(rows._replace(is_first=first))
    assert some["positive"][0, 0] == 0 == some["negative"][0, 0]
    count = first[:, 1:].size
    np.testing.assert_allclose(
        np.asarray(some["positive"]).ravel()[1:], np.asarray(every["positive"]).ravel()[1:] * count / (count - 1), 1e-5
    )
    np.testing.assert_array_equal(out.surprise[:, 1:], some["positive"])
    assert not np.asarray(out.surprise[:, 0]).any()


def test_a_batch_without_transitions_has_no_loss():
    weights = contrastive.transition_weights(jnp.ones((4, 3), bool))
    np.testing.assert_array_equal(weights, 0)


def test_updates_learn_the_mean_and_variance_of_the_feature_maps():
    agent, state, update = made()
    before = jax.tree.leaves(state.extra["world_model"])
    after = update(state, batch())[0].extra["world_model"]
    assert all(not np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(after), strict=True))
    acted = agent.act(agent.variables(state), KEY, agent.initial_carry(2), obs(2), np.ones(2, bool))[0]
    assert acted.state.objects.shape == (2, 3, 2)


def obs(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (count, 20, 20, 3)).astype(np.uint8)}


def test_an_update_keeps_the_form_of_the_state_and_is_a_pure_function():
    _, state, update = made()
    assert agent_laws.check_pure(update, state, batch()).latent == {}


def test_updates_scanned_and_vmapped_over_seeds_are_those_of_a_loop_over_each():
    agent, _, update = made()
    agent_laws.check_scan_and_vmap(agent, update, [batch(seed) for seed in (0, 1)], rtol=1e-4, atol=1e-5)


def for_devices():
    """The agent, its spec and a batch, for `agent_laws.check_devices`."""
    return make_agent(), SPEC, batch()


def test_eight_devices_make_the_updates_of_one():
    """Statistics of the batch norms and negatives are those of the whole batch."""
    agent_laws.check_devices("test_contrastive", rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_parameters_and_states_in_float32():
    agent = make_agent("bfloat16")
    state, out = tiny.jit(agent.update)(made()[1], batch())
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((state.params, state.extra)))
    assert float(out.metrics["train/loss"]) == pytest.approx(
        float(made()[2](made()[1], batch())[1].metrics["train/loss"]), rel=0.1
    )
    assert agent.initial_carry(2).state.objects.dtype == jnp.float32


def test_a_model_shows_the_feature_maps_of_its_objects():
    agent, state, _ = made()
    seen = jax.jit(agent.report)(state, batch(length=4))
    assert set(seen) == {"seen/objects"}
    picture = np.asarray(seen["seen/objects"])
    assert picture.shape == (6, 4, 20, 80, 3) and picture.min() >= 0 and picture.max() <= 255
    np.testing.assert_allclose(picture[..., :20, :], batch(length=4).obs["image"][:6], atol=1e-3)


@pytest.mark.parametrize(
    "spec, changes, text",
    [
        (Spec({"vector": Space((3,), "float32")}, Action((12,))), {}, "sees one image and nothing else"),
        (Spec({"image": Space((8, 8, 3), "uint8")}, Action((12,))), {}, "leaves nothing of images of 8x8 pixels"),
        (SPEC, {"objects": 5}, "of 5 objects the same number of entries of an action, but it has 12"),
    ],
)
def test_what_the_model_cannot_see_or_split_is_refused_in_a_line(spec, changes, text):
    with pytest.raises(UserError, match=text):
        contrastive.make(small(**changes), spec)


@pytest.mark.parametrize("action", ["copy", "ignore"])
def test_other_ways_to_give_actions_to_one_object_or_several(action):
    for objects in (1, 5):
        agent = make_agent(action=action, objects=objects)
        state = jax.eval_shape(agent.init, KEY)
        node = state.params["world_model"]["transition"]["node"]["linear0"]["kernel"]
        assert node.shape[0] == 2 + 16 + (12 if action == "copy" else 0)
        assert jax.eval_shape(agent.update, state, batch())[1].metrics["train/loss"].shape == ()


# --- behaviors ------------------------------------------------------------------------------------------------------


def test_random_actions_are_uniform_over_what_is_allowed():
    allowed = jnp.array([True, False, True, True, False, False])[None].repeat(4000, 0)
    action = np.asarray(uniform(KEY, (4000,), (3, 3), 2, allowed))
    np.testing.assert_allclose(action.mean(0)[:6], [0.5, 0, 0.5, 1, 0, 0], atol=0.03)
    assert (action[:, :3].sum(-1) == 1).all() and np.abs(action[:, 6:]).max() <= 1
    np.testing.assert_allclose(action[:, 6:].std(0), 3**-0.5, atol=0.02)


def test_random_behavior_respects_the_action_mask_and_needs_nothing():
    behavior = random.make(random.Config(), SPEC)
    assert behavior.needs == frozenset() and behavior.scales == {}
    allowed = jnp.arange(12)[None].repeat(64, 0) == 7
    ask = Ask(jnp.ones(64, bool), allowed)
    action, _ = behavior.act(Variables({}), KEY, None, None, (), ask, "collect")
    np.testing.assert_array_equal(action.argmax(-1), 7)


LINE = Spec({"vector": Space((2,), "float32")}, Action((4,)))  # east, west, north, south
WAYS = jnp.float32([[1, 0], [-1, 0], [0, 1], [0, -1]])


def walk(key, state, action):
    """A world in which the state is a place, with a wall at x = 1 for y below 1."""
    after = state + action @ WAYS
    wall = (after[:, :1] == 1) & (after[:, 1:] < 1)
    return jnp.where(wall, state, after)


WALKS = Dream(walk, lambda state: state, lambda feat: {}, lambda state: {})


def steps_to(goal, allowed=None, most=12, dream=WALKS, **settings):
    """Returns after how many steps the behavior is at the goal, from places 0 and (0, 1)."""
    behavior = reach.make(reach.Config(noise=0.0, **settings), LINE, feat_width=2)
    ask = Ask(jnp.zeros(2, bool), allowed, {"goal": goal})
    act = jax.jit(lambda key, state, carry: behavior.act(Variables({}), key, dream, state, carry, ask, "mode"))
    state, arrived, carry = jnp.float32([[0, 0], [0, 1]]), np.full(2, most), behavior.initial(2)
    for step in range(1, most):
        action, carry = act(jax.random.key(step), state, carry)
        state = walk(KEY, state, action)
        there = np.asarray((state == goal).all(-1))
        arrived = np.where(there & (arrived == most), step, arrived)
    return arrived.tolist()


def test_a_goal_is_reached_by_the_shortest_way():
    assert steps_to(jnp.float32([[-2, 1], [0, 3]]), length=3) == [3, 2]


def test_a_longer_search_goes_around_a_wall():
    goal = jnp.float32([[2, 0], [2, 2]])
    assert steps_to(goal, length=4, beam=64) == [4, 3]


def test_an_action_without_effect_is_not_repeated():
    """A model that knows no wall: east does nothing, so north is next, and then there is no wall."""
    free = WALKS._replace(imagine=lambda key, state, action: state + action @ WAYS)
    assert steps_to(jnp.float32([[2, 0], [2, 2]]), dream=free, length=3) == [5, 3]


def test_a_search_takes_only_actions_that_are_allowed():
    west = jnp.array([[False, True, False, False]] * 2)
    assert steps_to(jnp.float32([[-2, 0], [0, 3]]), allowed=west, length=3) == [2, 12]


def test_numbers_are_searched_at_random():
    spec = Spec(LINE.obs, Action(continuous=2))
    behavior = reach.make(reach.Config(length=1, tries=256, noise=0.0), spec, feat_width=2)
    dream = WALKS._replace(imagine=lambda key, state, action: state + action)
    goal = jnp.float32([[0.5, -0.5], [2, 0]])
    ask = Ask(jnp.zeros(2, bool), None, {"goal": goal})
    start = jnp.zeros((2, 2))
    action, _ = behavior.act(Variables({}), KEY, dream, start, behavior.initial(2), ask, "mode")
    np.testing.assert_allclose(action, [[0.5, -0.5], [1, 0]], atol=0.2)


def test_without_a_goal_the_planner_acts_at_random():
    behavior = reach.make(reach.Config(), LINE, feat_width=2)
    ask = Ask(jnp.zeros(400, bool))
    action, _ = behavior.act(Variables({}), KEY, WALKS, jnp.zeros((400, 2)), behavior.initial(400), ask, "collect")
    np.testing.assert_allclose(action.mean(0), 0.25, atol=0.1)
