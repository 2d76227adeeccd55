"""The recurrent state-space model, and the specification's list of conformance tests."""

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
from dreamer.nets.block_gru import Core
from dreamer.ops import latent_dist
from dreamer.spaces import Action, Space, Spec
from dreamer.world_models import rssm

ACTION = Action(continuous=2)


def world_model():
    return tiny.parts("vector")[0]


@functools.cache
def variables():
    return tiny.variables("vector")["world_model"]


@functools.cache
def observe():
    return tiny.jit(lambda *args: world_model().observe(*args)[1])


def sequence(length: int = 6, seed: int = 0):
    """Returns obs, prev_action and is_first (all False) of 3 sequences."""
    batch = tiny.make_batch(tiny.SPECS["vector"], batch_size=3, length=length, context=0, seed=seed)
    return dict(batch.obs), batch.action, np.zeros(batch.is_first.shape, bool)


def random_latent(dtype, seed: int = 0, count: int = 5) -> rssm.Latent:
    """Returns latents like those of the model, including the all-zero stoch of the start."""
    config, rng = tiny.WORLD_MODEL, np.random.default_rng(seed)
    stoch = np.eye(config.classes, dtype=np.float32)[rng.integers(0, config.classes, (count, config.stoch))]
    stoch[0] = 0
    deter = rng.normal(size=(count, config.deter)).astype(np.float32)
    deter[0], deter[1, :4] = 0, [-0.0, 1e-30, -1, 1]
    return rssm.Latent(jnp.asarray(deter, dtype), jnp.asarray(stoch))


def assert_same_bits(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


# --- packing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packing_is_lossless_to_the_bit(dtype):
    model = tiny.parts("vector", dtype)[0]
    latent = random_latent(dtype)
    packed = model.pack(latent)
    assert {k: (x.shape[1:], x.dtype.name) for k, x in packed.items()} == {
        k: (space.shape, space.dtype) for k, space in model.storage.items()
    }
    assert_same_bits(model.unpack(packed), latent)
    assert_same_bits(model.unpack(model.pack(model.initial(2))), model.initial(2))


def test_packing_survives_the_replays_host_memory():
    model = tiny.parts("vector", "bfloat16")[0]
    latent = random_latent("bfloat16")
    stored = {k: np.zeros(x.shape, jnp.dtype(model.storage[k].dtype)) for k, x in model.pack(latent).items()}
    for name, x in model.pack(latent).items():
        stored[name][:] = np.asarray(x)
    assert_same_bits(model.unpack(stored), latent)


def test_posteriors_are_exactly_one_hot_and_pack_without_loss():
    model, (obs, action, first) = world_model(), sequence()
    latent = observe()(variables(), jax.random.key(0), model.initial(3), obs, action, first)
    assert set(np.unique(latent.stoch)) == {0, 1} and (np.asarray(latent.stoch).sum(-1) == 1).all()
    assert_same_bits(model.unpack(model.pack(latent)), latent)


def test_as_many_classes_as_a_byte_can_name_leave_a_value_for_the_empty_state():
    for classes, dtype in ((255, "uint8"), (256, "uint16")):
        drawn = latent_dist.categorical(1, classes)
        stoch = jnp.stack([jnp.zeros((1, classes)), jax.nn.one_hot(jnp.array([classes - 1]), classes)])
        assert drawn.packed == ((1,), dtype) and drawn.pack(stoch).dtype == dtype
        assert_same_bits(drawn.unpack(drawn.pack(stoch)), stoch)


# --- filtering --------------------------------------------------------------------------------------


def test_nothing_before_a_first_row_matters_after_it():
    (obs, action, first), (other_obs, other_action, _) = sequence(seed=1), sequence(seed=2)
    first[:, 3] = True
    # The previous action of the first row belongs to the previous episode.
    mixed_obs = {"vector": np.concatenate([other_obs["vector"][:, :3], obs["vector"][:, 3:]], 1)}
    mixed_action = np.concatenate([other_action[:, :4], action[:, 4:]], 1)
    start = world_model().unpack(tiny.make_batch(tiny.SPECS["vector"], batch_size=3).latent)
    start = jax.tree.map(lambda x: x[:, 0], start)
    one = observe()(variables(), jax.random.key(0), world_model().initial(3), obs, action, first)
    two = observe()(variables(), jax.random.key(0), start, mixed_obs, mixed_action, first)
    assert_same_bits(*(jax.tree.map(lambda x: x[:, 3:], latent) for latent in (one, two)))
    assert not np.array_equal(one.deter[:, :3], two.deter[:, :3])


def test_a_first_row_is_that_of_a_fresh_episode():
    obs, action, first = sequence()
    first[:, 3] = True
    again = observe()(variables(), jax.random.key(0), world_model().initial(3), obs, action, first)
    rest = jax.tree.map(lambda x: np.roll(x, -3, 1), (obs, action, first))
    fresh = observe()(variables(), jax.random.key(0), world_model().initial(3), *rest)
    np.testing.assert_allclose(again.deter[:, 3], fresh.deter[:, 0], atol=1e-6)


def test_sequences_do_not_see_each_other():
    obs, action, first = sequence()
    other = {"vector": obs["vector"] + np.float32([[[0]], [[9]], [[0]]])}
    start = world_model().initial(3)
    one, two = (observe()(variables(), jax.random.key(0), start, x, action, first).deter for x in (obs, other))
    changed = (np.asarray(one) != np.asarray(two)).any((1, 2))
    assert changed.tolist() == [False, True, False]


def test_rows_do_not_see_later_rows():
    obs, action, first = sequence()
    other_obs, other_action = {"vector": obs["vector"].copy()}, action.copy()
    other_obs["vector"][:, 4] += 9
    other_action[:, 5] += 0.5
    one = observe()(variables(), jax.random.key(0), world_model().initial(3), obs, action, first)
    two = observe()(variables(), jax.random.key(0), world_model().initial(3), other_obs, other_action, first)
    assert_same_bits(*(jax.tree.map(lambda x: x[:, :4], latent) for latent in (one, two)))
    assert (np.asarray(one.deter[:, 5]) != np.asarray(two.deter[:, 5])).any()


def test_sampled_latents_depend_on_the_key(key):
    spec = tiny.SPECS["vector"]
    model, (obs, action, first) = rssm.make(tiny.WORLD_MODEL, spec, horizon=tiny.HORIZON), sequence()
    run = tiny.jit(lambda k: model.observe(variables(), k, model.initial(3), obs, action, first)[1].stoch)
    one, same, two = (np.asarray(run(k)) for k in (key, key, jax.random.fold_in(key, 1)))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, two)


# --- conformance ------------------------------------------------------------------------------------


def test_core_with_zero_weights_keeps_most_of_its_state(key):
    """Specification 15.3: d' = (1 - sigmoid(-1)) d."""
    core, deter = Core(hidden=4, blocks=2), jax.random.normal(key, (3, 8))
    inputs = (deter, jnp.ones((3, 2, 2)), jnp.ones((3, 2)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(core.init, key, *inputs))
    np.testing.assert_allclose(tiny.jit(core.apply)(zeros, *inputs), 0.7310586 * deter, rtol=1e-5)


def test_core_divides_large_actions_by_their_size_only():
    nets = rssm.make_nets(tiny.WORLD_MODEL, tiny.SPECS["vector"], jnp.float32, tiny.argmax_onehot)
    latent = random_latent("float32", count=2)
    run = tiny.jit(lambda action: nets.core.apply(variables().params["dyn"], *latent, action))
    at = lambda *action: np.asarray(run(jnp.float32([action, action])))  # noqa: E731
    np.testing.assert_allclose(at(5, 0.5), at(1, 0.5), rtol=1e-6)
    assert not np.allclose(at(0.9, 0.5), at(1, 0.5))


def test_prediction_is_a_reward_of_exactly_0_before_training():
    """Specification 15.9."""
    feat = jax.random.normal(jax.random.key(1), (7, tiny.FEAT))
    fresh = agents.variables(tiny.state("vector"))["world_model"]
    predicted = tiny.jit(world_model().predict)(fresh, feat)
    reward, cont = predicted["reward"], predicted["cont"]
    assert set(predicted) == {"reward", "cont"}
    assert not np.any(reward) and reward.shape == cont.shape == (7,)
    assert reward.dtype == cont.dtype == np.float32 and ((cont > 0) & (cont < 1)).all()


@pytest.mark.parametrize("contdisc, label", [(True, 0.996997), (False, 1.0)])
def test_continue_label_of_a_live_row(contdisc, label, key):
    """Specification 15.10."""
    model = rssm.make(tiny.WORLD_MODEL, tiny.SPECS["vector"], horizon=333.0, contdisc=contdisc)
    assert jax.jit(lambda k: model.init(k).hyper)(key)["live_label"] == pytest.approx(label, rel=1e-6)


@functools.cache
def losses():
    """Returns per-row losses and predictions of a batch without context."""
    model = world_model()

    @tiny.jit
    def run(batch):
        prev_action = jnp.concatenate([jnp.zeros_like(batch.action[:, :1]), batch.action[:, :-1]], 1)
        start = model.initial(batch.reward.shape[0])
        out, aux = model.loss(variables(), jax.random.key(0), start, prev_action, batch)
        return out, model.predict(variables(), model.feat(aux.latent)), model.decode(variables(), aux.latent)

    return run


def test_continue_loss_is_the_cross_entropy_of_predict_with_the_label():
    batch = tiny.make_batch(tiny.SPECS["vector"], context=0)
    out, predicted, _ = losses()(batch)
    cont = predicted["cont"]
    label = np.where(batch.is_terminal, 0, 0.996997)
    expected = -label * np.log(cont) - (1 - label) * np.log1p(-np.asarray(cont))
    np.testing.assert_allclose(out["con"], expected, rtol=1e-4, atol=1e-6)


def test_reconstruction_loss_is_the_squared_symlog_error_of_decode():
    batch = tiny.make_batch(tiny.SPECS["vector"], context=0)
    out, _, decoded = losses()(batch)
    symlog = lambda x: np.sign(x) * np.log1p(np.abs(x))  # noqa: E731
    error = symlog(np.asarray(decoded["vector"])) - symlog(batch.obs["vector"])
    np.testing.assert_allclose(out["rec/vector"], np.square(error).sum(-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("field, loss", [("reward", "rew"), ("is_terminal", "con")])
def test_reward_and_end_of_a_row_touch_that_rows_loss_alone(field, loss):
    batch = tiny.make_batch(tiny.SPECS["vector"], context=0)
    values = getattr(batch, field).copy()
    values[2, 3] = 1 - values[2, 3] if field == "reward" else not values[2, 3]
    before, after = (losses()(b)[0] for b in (batch, batch._replace(**{field: values})))
    for name in before:
        changed = np.argwhere(np.asarray(before[name]) != np.asarray(after[name])).tolist()
        assert changed == ([[2, 3]] if name == loss else []), name


def test_every_loss_is_a_float32_number_per_row():
    batch = tiny.make_batch(tiny.SPECS["vector"], context=0)
    out, _, _ = losses()(batch)
    assert set(out) == set(world_model().scales)
    assert {(x.shape, x.dtype.name) for x in out.values()} == {(batch.reward.shape, "float32")}


# --- observations that do not fit -------------------------------------------------------------------


def picture(height: int, width: int) -> Space:
    return Space((height, width, 3), "uint8")


@pytest.mark.parametrize("height, width", [(48, 48), (12, 64), (7, 7), (1, 1), (2, 9), (210, 160), (67, 131)])
def test_pictures_of_any_size_are_taken(height, width):
    model = rssm.make(tiny.WORLD_MODEL, Spec({"camera": picture(height, width)}, ACTION))
    fresh = jax.eval_shape(model.init, jax.random.key(0))
    shown = jax.eval_shape(model.decode, fresh, model.initial(2))
    assert shown["camera"].shape == (2, height, width, 3) and shown["camera"].dtype == np.uint8


def test_picture_channels_that_the_blocks_do_not_divide_are_a_user_error():
    config = dataclasses.replace(tiny.WORLD_MODEL, depth=1, mults=(2, 3, 4, 3))
    with pytest.raises(UserError, match="must be a multiple of blocks"):
        rssm.make(config, Spec({"camera": picture(64, 64)}, ACTION))


def test_a_decoder_of_ones_own_is_not_held_to_the_blocks():
    config = dataclasses.replace(
        tiny.WORLD_MODEL, depth=1, mults=(2, 3, 4, 3), decoder="tests.test_haiku:make_decoder"
    )
    rssm.make(config, Spec({"camera": picture(64, 64)}, ACTION))


def test_a_class_of_too_many_is_a_user_error():
    with pytest.raises(UserError, match="'where' has 1,000,000 classes.*at most 65,536"):
        rssm.make(tiny.WORLD_MODEL, Spec({"where": Space((), "int64", 10**6)}, ACTION))


def test_nothing_to_see_is_a_user_error():
    with pytest.raises(UserError, match="no observation"):
        rssm.make(tiny.WORLD_MODEL, Spec({}, ACTION))


def test_unknown_encoder_is_a_user_error():
    with pytest.raises(UserError, match="encoder"):
        rssm.make(dataclasses.replace(tiny.WORLD_MODEL, encoder="encodr"), tiny.SPECS["vector"])
