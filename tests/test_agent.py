"""The agent is pure, traced once, and the same under jit, vmap and scan, for all observations, actions and dtypes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dreamer import agent as agents
from dreamer.errors import UserError
from dreamer.interfaces import Ask, Carry, Learned
from dreamer.losses import align, make_dream, make_losses, total_loss

UPDATES = 3
DTYPES = ("float32", "bfloat16")


def to_numpy(leaf) -> np.ndarray:
    """Converts an array or a random key to numpy."""
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def bits(tree) -> list[bytes]:
    """Returns the bits of every leaf."""
    return [to_numpy(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_near(actual, expected, atol: float = 1e-5, rtol: float = 1e-3) -> None:
    """Fails unless all leaves are close; atol is relative to the leaf's largest magnitude if that is above 1."""
    actual, expected = (jax.tree_util.tree_leaves_with_path(tree) for tree in (actual, expected))
    assert len(actual) == len(expected) > 0
    for (path, ours), (_, theirs) in zip(actual, expected, strict=True):
        theirs = to_numpy(theirs).astype(np.float64)
        scale = max(1.0, np.abs(theirs).max(initial=0))
        np.testing.assert_allclose(
            to_numpy(ours).astype(np.float64), theirs, rtol=rtol, atol=atol * scale, err_msg=jax.tree_util.keystr(path)
        )


def shapes_of_update(batch, kind: str = "vector"):
    """Traces the update without computing it."""
    return jax.eval_shape(tiny.make_agent(kind).update, tiny.state(kind), batch)


# --- pure -------------------------------------------------------------------------------------------


def test_update_of_the_same_inputs_gives_the_same_bits_and_leaves_its_inputs_alone():
    state, batch = tiny.trained("vector")[0], tiny.make_batch(tiny.SPECS["vector"], seed=5)
    before = bits((state, batch))
    first = bits(tiny.update("vector")(state, batch))
    assert bits((state, batch)) == before
    assert bits(tiny.update("vector")(state, batch)) == first


def test_a_batch_of_another_seed_gives_another_update():
    state, spec = tiny.state("vector"), tiny.SPECS["vector"]
    one, two = (tiny.update("vector")(state, tiny.make_batch(spec, seed=s))[1].metrics["train/loss"] for s in (0, 1))
    assert float(one) != float(two)


def test_update_is_not_traced_again_for_the_states_that_it_gives():
    first, (later, _, _) = tiny.state("vector"), tiny.trained("vector")
    traces = tiny.TRACES["vector", "float32"]
    for seed, state in enumerate((first, later, later)):
        tiny.update("vector")(state, tiny.make_batch(tiny.SPECS["vector"], seed=seed))
    assert tiny.TRACES["vector", "float32"] == traces


@pytest.mark.parametrize("kind", ["vector", "mixed"])
def test_state_keeps_its_form(kind):
    """Structure, shapes, dtypes and weak types."""
    form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), tree)  # noqa: E731
    assert form(tiny.trained(kind)[0]) == form(tiny.state(kind))


def test_compiled_update_makes_no_transfer_of_its_own():
    state, batch = tiny.trained("vector")[0], tiny.make_batch(tiny.SPECS["vector"])
    on_device = jax.device_put(batch)
    tiny.update("vector")(state, on_device)
    with jax.transfer_guard("disallow"):
        tiny.update("vector")(state, on_device)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            tiny.update("vector")(state, batch)


# --- vmap, scan -------------------------------------------------------------------------------------


def stacked(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.cache
def two_seeds():
    """Returns inputs [2, ..] of two seeds, and the results of `UPDATES` updates in one scan under one vmap."""
    update, spec, seeds = tiny.make_agent("vector").update, tiny.SPECS["vector"], (0, 1)
    batches, states = [tiny.make_batch(spec, seed=i) for i in seeds], [tiny.state("vector", seed=i) for i in seeds]

    def run(state, batch):
        def step(state, _):
            return update(state, batch)

        return jax.lax.scan(step, state, length=UPDATES)

    return states, batches, tiny.jit(jax.vmap(run))(stacked(*states), stacked(*batches))


@pytest.mark.parametrize("seed", [0, 1])
def test_updates_scanned_and_vmapped_over_seeds_are_those_of_a_loop_over_each(seed):
    states, batches, together = two_seeds()
    state, outs = states[seed], []
    for _ in range(UPDATES):
        state, out = tiny.update("vector")(state, batches[seed])
        outs.append(out)
    assert_near(jax.tree.map(lambda x: x[seed], together), (state, stacked(*outs)))


# --- learning ---------------------------------------------------------------------------------------


def test_first_update_moves_nothing():
    """The learning rate starts at 0."""
    before = tiny.state("vector")
    after, _, metrics = tiny.trained("vector", updates=1)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert metrics["train/learning_rate"] == 0
    assert after.step == before.step + 1 and metrics["train/grad_norm"] > 0


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_update_with_every_kind_of_observation_and_action(kind):
    state, latent, metrics = tiny.trained(kind)
    (rms,) = (part for part in state.opt_state if hasattr(part, "nu"))
    moments = jax.tree_util.tree_leaves_with_path(rms.nu)
    unreached = [jax.tree_util.keystr(path) for path, moment in moments if not np.any(moment)]
    assert len(moments) == len(jax.tree.leaves(state.params)) and not unreached
    assert all(np.isfinite(metric) for metric in metrics.values())
    expected = {"dyn", "rep", "rew", "con", "policy", "value", "repval", *(f"rec/{k}" for k in tiny.SPECS[kind].obs)}
    assert {name.removeprefix("loss/") for name in metrics if name.startswith("loss/")} == expected
    storage = tiny.make_agent(kind).storage
    assert {k: (x.shape[2:], x.dtype.name) for k, x in latent.items()} == {
        k: (space.shape, space.dtype) for k, space in storage.items()
    }
    assert all(x.shape[:2] == (tiny.BATCH, tiny.LENGTH) for x in latent.values())


def test_metrics_hold_the_weighted_sum_of_the_losses():
    world_model, behavior = tiny.parts("vector")
    metrics = tiny.trained("vector")[2]
    scales = {**world_model.scales, **behavior.scales}
    total = sum(scale * float(metrics[f"loss/{name}"]) for name, scale in scales.items())
    assert float(metrics["train/loss"]) == pytest.approx(total, rel=1e-5)


def test_slow_critic_follows_after_the_update():
    (before, *_), (after, *_) = tiny.trained("vector", updates=2), tiny.trained("vector", updates=3)
    fast, old, new = after.params["behavior"]["val"], before.extra["behavior"]["slow"], after.extra["behavior"]["slow"]
    rate = tiny.BEHAVIOR.slow_rate
    assert_near(new, jax.tree.map(lambda f, s: rate * f + (1 - rate) * s, fast, old), atol=1e-6)


# --- bfloat16 ---------------------------------------------------------------------------------------


def test_bfloat16_starts_with_the_state_of_float32():
    states = (jax.eval_shape(tiny.make_agent("vector", dtype).init, jax.random.key(0)) for dtype in DTYPES)
    assert len({str(state) for state in states}) == 1


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_in_float32():
    agent = tiny.make_agent("vector", "bfloat16")
    state, latent, metrics = tiny.trained("vector", "bfloat16")
    floats = [x for x in jax.tree.leaves((state.params, state.extra, state.opt_state, metrics)) if x.dtype != np.int32]
    assert {x.dtype.name for x in floats} == {"float32"}
    carry = agent.initial_carry(2)
    assert carry.state.deter.dtype == latent["deter"].dtype == jnp.bfloat16
    assert agent.storage["deter"].dtype == "bfloat16"
    assert carry.state.stoch.dtype == carry.prev_action.dtype == np.float32


def test_bfloat16_losses_are_near_those_of_float32():
    for updates in (2, 3):
        single, half = (tiny.trained("vector", dtype, updates)[2] for dtype in DTYPES)
        # Values are exactly 0 at first, and then the outermost bins, e^20, times the rounding error of equal logits.
        ill_conditioned = {"loss/policy"} if updates > 2 else set()
        for name in set(single) - ill_conditioned:
            if name.startswith(("loss/", "latent/")):
                assert float(half[name]) == pytest.approx(float(single[name]), rel=0.03, abs=1e-3), name


def test_bfloat16_types_with_images():
    agent, batch = tiny.make_agent("mixed", "bfloat16"), tiny.make_batch(tiny.SPECS["mixed"], dtype="bfloat16")
    after, out = jax.eval_shape(agent.update, tiny.state("mixed"), batch)
    assert {x.dtype.name for x in jax.tree.leaves(after.params)} == {"float32"}
    assert out.latent["deter"].dtype == jnp.bfloat16


def test_auto_is_float32_on_cpu_only():
    expected = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    assert agents.compute_dtype("auto") == jnp.dtype(expected)


# --- batches ----------------------------------------------------------------------------------------


def test_batch_without_context_trains_all_its_rows():
    batch = tiny.make_batch(tiny.SPECS["mixed"], context=0)
    latent = shapes_of_update(batch, "mixed")[1].latent
    assert batch.latent == {} and latent["deter"].shape[:2] == batch.reward.shape == (tiny.BATCH, tiny.LENGTH)


def test_sequences_without_context_start_from_nothing():
    batch, spec = tiny.make_batch(tiny.SPECS["vector"], context=0), tiny.SPECS["vector"]
    latent, prev_action, rows = align(tiny.parts("vector")[0], spec, batch)
    assert not np.any(latent.deter) and not np.any(latent.stoch) and rows is batch
    np.testing.assert_array_equal(prev_action[:, 0], 0)
    np.testing.assert_array_equal(prev_action[:, 1:], batch.action[:, :-1])


def test_context_row_lends_its_latent_and_its_action():
    batch, spec = tiny.make_batch(tiny.SPECS["vector"]), tiny.SPECS["vector"]
    latent, prev_action, rows = align(tiny.parts("vector")[0], spec, batch)
    np.testing.assert_array_equal(latent.deter, batch.latent["deter"][:, 0])
    np.testing.assert_array_equal(np.argmax(latent.stoch, -1), batch.latent["stoch"][:, 0])
    np.testing.assert_array_equal(prev_action, batch.action[:, :-1])
    np.testing.assert_array_equal(rows.reward, batch.reward[:, 1:])
    np.testing.assert_array_equal(rows.obs["vector"], batch.obs["vector"][:, 1:])


@pytest.mark.parametrize("key", ["camera", "velocity", "mode"])
def test_observation_of_a_wrong_shape_is_named(key):
    batch = tiny.make_batch(tiny.SPECS["mixed"])
    wrong = {**batch.obs, key: batch.obs[key][..., None]}
    with pytest.raises(AssertionError, match=key):
        shapes_of_update(batch._replace(obs=wrong), "mixed")


@pytest.mark.parametrize("change", [{"velocity2": np.zeros((8, 7, 2, 2))}, {"velocity": None}])
def test_observation_too_many_or_missing_is_named(change):
    batch = tiny.make_batch(tiny.SPECS["mixed"])
    obs = {k: x for k, x in {**batch.obs, **change}.items() if x is not None}
    with pytest.raises(AssertionError, match="velocity"):
        shapes_of_update(batch._replace(obs=obs), "mixed")


def test_action_of_a_wrong_width_is_refused():
    batch = tiny.make_batch(tiny.SPECS["vector"])
    with pytest.raises(AssertionError):
        shapes_of_update(batch._replace(action=batch.action[..., :1]))


# --- losses -----------------------------------------------------------------------------------------


def shapes_with(world_model, behavior) -> None:
    """Traces the total loss of an agent of these parts."""
    state, batch = tiny.state("vector"), tiny.make_batch(tiny.SPECS["vector"])
    total = total_loss(world_model, behavior, tiny.SPECS["vector"])
    jax.eval_shape(total, state.params, state.extra, state.hyper, state.key, batch)


def test_loss_without_a_scale_is_refused():
    world_model, behavior = tiny.parts("vector")
    scales = {name: scale for name, scale in world_model.scales.items() if name != "rep"}
    with pytest.raises(ValueError, match="rep"):
        shapes_with(world_model._replace(scales=scales), behavior)


def test_scale_without_a_loss_is_refused():
    world_model, behavior = tiny.parts("vector")
    with pytest.raises(ValueError, match="bonus"):
        shapes_with(world_model, behavior._replace(scales={**behavior.scales, "bonus": 1.0}))


def test_loss_of_both_parts_is_refused():
    world_model, behavior = tiny.parts("vector")
    clashing = behavior._replace(scales={**behavior.scales, "dyn": 1.0})
    with pytest.raises(UserError, match="dyn"):
        agents.assemble(world_model, clashing, tiny.OPTIMIZER, tiny.SPECS["vector"])


def test_world_model_losses_are_one_number_per_row():
    world_model, behavior = tiny.parts("vector")

    def loss(*inputs) -> tuple[dict[str, jax.Array], Learned]:
        losses, out = world_model.loss(*inputs)
        return {**losses, "dyn": losses["dyn"].mean()}, out

    with pytest.raises(AssertionError):
        shapes_with(world_model._replace(loss=loss), behavior)


@functools.cache
def gradients_of_the_behavior():
    """Returns the gradients of the dreamed losses and of repval with respect to all parameters."""
    losses, state = make_losses(*tiny.parts("vector"), tiny.SPECS["vector"]), tiny.trained("vector")[0]

    def split(params, batch):
        losses_, _ = losses(params, state.extra, state.hyper, state.key, batch)
        return losses_["policy"].mean() + losses_["value"].mean(), losses_["repval"].mean()

    return tiny.jit(jax.jacrev(split))(state.params, tiny.make_batch(tiny.SPECS["vector"]))


def largest(tree) -> dict[str, float]:
    return {name: max(float(np.abs(x).max()) for x in jax.tree.leaves(part)) for name, part in tree.items()}


def test_dreamed_losses_do_not_reach_the_world_model():
    dreamed, _ = gradients_of_the_behavior()
    assert set(largest(dreamed["world_model"]).values()) == {0.0}
    assert min(largest(dreamed["behavior"]).values()) > 0


def test_no_behavior_can_change_the_world_model_through_its_dream():
    """This includes a behavior that uses the gradient of its dreams; only `Replayed.feat` carries a gradient."""
    world_model, behavior = tiny.parts("vector")
    state, batch = tiny.trained("vector")[0], tiny.make_batch(tiny.SPECS["vector"])

    def loss(v, key, dream, start, replayed):
        state = dream.imagine(key, start, jnp.ones((start.deter.shape[0], 2)))
        dreamed = sum(x.sum() for x in (*dream.predict(dream.feat(state)).values(), dream.feat(start)))
        shown = sum(x.sum() for x in dream.decode(state).values())
        return {"dreamed": dreamed + shown, "replayed": replayed.feat.sum()}, (v.extra, {})

    losses = make_losses(world_model, behavior._replace(loss=loss), tiny.SPECS["vector"])

    def both(params):
        found, _ = losses(params, state.extra, state.hyper, state.key, batch)
        return found["dreamed"], found["replayed"]

    gradients = tiny.jit(jax.jacrev(both))
    dreamed, replayed = gradients(state.params)
    assert set(largest(dreamed["world_model"]).values()) == {0.0}
    assert largest(replayed["world_model"])["dyn"] > 0


def test_replayed_loss_reaches_the_world_model_through_the_features_and_not_the_actor():
    _, replayed = gradients_of_the_behavior()
    reached = {name for name, size in largest(replayed["world_model"]).items() if size > 0}
    assert reached == {"enc", "dyn"}
    assert largest(replayed["behavior"])["pol"] == 0 < largest(replayed["behavior"])["val"]


# --- acting -----------------------------------------------------------------------------------------


@functools.cache
def argmax_agent():
    return agents.assemble(*tiny.parts("vector"), tiny.OPTIMIZER, tiny.SPECS["vector"])


def test_acting_sees_the_latents_of_training():
    """Acts step by step with its own actions, over resets, and then observes the same rows as one sequence."""
    agent, world_model = argmax_agent(), tiny.parts("vector")[0]
    variables, spec = tiny.variables("vector"), tiny.SPECS["vector"]
    batch = tiny.make_batch(spec, batch_size=3, length=8, context=0, seed=2)
    assert 0 < batch.is_first[:, 1:].sum() < batch.is_first[:, 1:].size
    act = tiny.jit(agent.act, static_argnames="mode")
    carry, actions, latents = agent.initial_carry(3), [], []
    for t in range(8):
        rows = jax.tree.map(lambda x, t=t: x[:, t], (batch.obs, batch.is_first))
        carry, action = act(variables, jax.random.key(t), carry, *rows, mode="sample")
        actions.append(action)
        latents.append(carry.state)
    stored = batch._replace(action=np.stack(actions, 1))
    latent, prev_action, rows = align(world_model, spec, stored)
    last, observed = tiny.jit(world_model.observe)(
        variables["world_model"], jax.random.key(0), latent, rows.obs, prev_action, rows.is_first
    )
    assert_near(jax.tree.map(lambda *x: jnp.stack(x, 1), *latents), observed)
    assert_near(last, latents[-1])


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_behavior_is_deterministic_in_mode_and_random_in_sample(kind, key):
    (world_model, behavior), variables = tiny.parts(kind), tiny.variables(kind)
    state, ask = world_model.initial(64), Ask(np.zeros(64, bool))
    dream = make_dream(world_model, variables["world_model"])
    act = tiny.jit(
        lambda key, mode: behavior.act(variables["behavior"], key, dream, state, (), ask, mode)[0], static_argnums=1
    )
    keys = jax.random.split(key)
    modes, samples = ([np.asarray(act(k, mode)) for k in keys] for mode in ("mode", "sample"))
    np.testing.assert_array_equal(*modes)
    assert not np.array_equal(*samples)
    assert modes[0].shape == (64, tiny.SPECS[kind].action_width)
    if tiny.SPECS[kind].action.discrete:
        assert set(np.unique([*modes, *samples])) == {0, 1} and (np.stack([*modes, *samples]).sum(-1) == 1).all()
    else:
        assert np.abs(modes[0]).max() <= 1


def test_environments_are_acted_in_apart_from_each_other():
    """The observation of one environment does not change the latent of another."""
    agent, variables = argmax_agent(), tiny.variables("vector")
    act = tiny.jit(agent.act, static_argnames="mode")
    obs = tiny.make_batch(tiny.SPECS["vector"], batch_size=3, length=1, context=0).obs["vector"][:, 0]
    first, changed = np.zeros(3, bool), obs + np.float32([[0], [5], [0]])
    one, two = (
        act(variables, jax.random.key(0), agent.initial_carry(3), {"vector": x}, first, mode="mode")
        for x in (obs, changed)
    )
    same = [np.array_equal(one[1][i], two[1][i]) for i in range(3)]
    assert same == [True, False, True] and isinstance(one[0], Carry)


# --- report -----------------------------------------------------------------------------------------


@functools.cache
def report():
    return tiny.jit(tiny.make_agent("mixed").report)


def test_report_gives_truth_and_dream_of_every_key_in_its_units():
    spec, batch = tiny.SPECS["mixed"], tiny.make_batch(tiny.SPECS["mixed"])
    out = report()(tiny.trained("mixed")[0], batch)
    assert set(out) == {f"{what}/{key}" for what in ("truth", "dream") for key in spec.obs}
    for key, space in spec.obs.items():
        np.testing.assert_array_equal(out[f"truth/{key}"], batch.obs[key][:6, 1:])
        dream = np.asarray(out[f"dream/{key}"])
        assert dream.shape == (6, tiny.LENGTH, *space.shape) and dream.dtype == space.dtype, key
        if space.discrete:
            assert dream.min() >= 0 and dream.max() < space.classes


def test_report_observes_the_first_half_and_only_dreams_the_rest():
    state, batch, half = tiny.trained("mixed")[0], tiny.make_batch(tiny.SPECS["mixed"]), 1 + tiny.LENGTH // 2
    dreams = []
    for rows in (slice(0, 0), slice(half, None), slice(half - 1, half)):
        obs = {key: x.copy() for key, x in batch.obs.items()}
        for x in obs.values():
            x[:, rows] = 0
        dreams.append(np.asarray(report()(state, batch._replace(obs=obs))["dream/position"]))
    plain, future, present = dreams
    np.testing.assert_array_equal(plain, future)
    changed = (plain != present).any((0, 2))
    assert not changed[: half - 2].any() and changed[half - 2 :].any()


@pytest.mark.parametrize("row, changes", [(4, [4, 5]), (tiny.LENGTH, [])])
def test_report_dreams_under_the_true_actions(row, changes):
    """The action of stored row r (row 0 is the context row) leads to trained row r; the last action is unused."""
    state, batch = tiny.trained("mixed")[0], tiny.make_batch(tiny.SPECS["mixed"])
    action = batch.action.copy()
    action[:, row] *= -1
    plain, other = (report()(state, b)["dream/position"] for b in (batch, batch._replace(action=action)))
    assert np.unique(np.argwhere(np.asarray(plain) != np.asarray(other))[:, 1]).tolist() == changes


def test_agent_of_an_unknown_part_is_a_user_error():
    config = dataclasses.replace(tiny.CONFIG, world_model=dataclasses.replace(tiny.WORLD_MODEL, name="rsm"))
    with pytest.raises(UserError, match="rssm"):
        agents.make(config, tiny.SPECS["vector"])
