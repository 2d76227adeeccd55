"""Networks made with Haiku, chosen by their dotted name, work in place of those made with Flax."""

from __future__ import annotations

import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import tiny

from dreamer import agent as agents
from dreamer.nets.adapters import from_haiku
from dreamer.nets.encoder import concat_vectors
from dreamer.ops import optimizers
from dreamer.world_models import rssm

SPEC = tiny.SPECS["vector"]


def make_encoder(spaces, *, units, symlog, dtype, **sizes):
    """obs -> tokens [.., units]."""

    def encode(obs):
        x = concat_vectors(spaces, obs, symlog).astype(dtype)
        return hk.nets.MLP([units, units], activate_final=True, name="haiku_encoder")(x)

    return from_haiku(encode)


def make_decoder(spaces, *, units, dtype, **sizes):
    """deter [.., D], stoch [.., S, C] -> raw output of each vector key."""

    def decode(deter, stoch):
        x = jnp.concatenate([deter, stoch.reshape(*stoch.shape[:-2], -1).astype(dtype)], -1)
        x = jax.nn.silu(hk.Linear(units, name="haiku_hidden")(x))
        return {key: hk.Linear(space.width, name=f"haiku_{key}")(x) for key, space in spaces.items()}

    return from_haiku(decode)


def make_core(width):
    """Makes a Haiku GRU to replace the block GRU."""

    def core(deter, stoch, action):
        x = jnp.concatenate([stoch.reshape(*stoch.shape[:-2], -1), action], -1)
        return hk.GRU(width, name="haiku_core")(x, deter)[0]

    return from_haiku(core)


@functools.cache
def run(updates: int = 15):
    """Returns first and last parameters of the world model, and the metrics of every update on one batch."""
    world_model = dataclasses.replace(
        tiny.WORLD_MODEL, encoder="tests.test_haiku:make_encoder", decoder="tests.test_haiku:make_decoder"
    )
    optimizer = optimizers.Config(learning_rate=1e-2, warmup=2)
    agent = agents.make(dataclasses.replace(tiny.CONFIG, world_model=world_model, optimizer=optimizer), SPEC)
    state, update, batch = tiny.jit(agent.init)(jax.random.key(0)), tiny.jit(agent.update), tiny.make_batch(SPEC)
    first, history = state.params["world_model"], []
    for _ in range(updates):
        state, out = update(state, batch)
        history.append({name: float(value) for name, value in out.metrics.items()})
    return first, state.params["world_model"], history


def test_haiku_encoder_and_decoder_are_the_ones_in_use():
    params, _, _ = run()
    assert all(name.startswith("haiku_encoder") for name in params["enc"])
    assert set(params["dec"]) == {"haiku_hidden", "haiku_vector"}


def test_every_haiku_parameter_is_trained():
    first, last, _ = run()
    for part in ("enc", "dec"):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), first[part], last[part])
        assert all(jax.tree.leaves(moved)), moved


def test_losses_fall_with_haiku_networks():
    _, _, history = run()
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    assert history[-1]["loss/rec/vector"] < 0.9 * history[0]["loss/rec/vector"]
    assert history[-1]["train/loss"] < history[0]["train/loss"]


def test_haiku_core_filters_and_learns(key):
    config = tiny.WORLD_MODEL
    nets = rssm.make_nets(config, SPEC, jnp.float32, tiny.argmax_onehot)
    nets = nets._replace(core=make_core(config.deter))
    start = rssm.Latent(jnp.zeros((8, config.deter)), jnp.zeros((8, config.stoch, config.classes)))
    batch = tiny.make_batch(SPEC, context=0)

    @tiny.jit
    def objective_and_gradient(key):
        latent = jax.tree.map(lambda x: x[:1], start)
        tokens = jnp.zeros((1, config.units))
        dyn = (
            nets.core.init(key, *latent, jnp.zeros((1, 2)))
            | nets.prior.init(key, latent.deter)
            | nets.posterior.init(key, latent.deter, tokens)
        )
        seen = jnp.broadcast_to(batch.obs["vector"].sum(-1, keepdims=True), (*batch.reward.shape, config.units))

        def objective(dyn):
            last, _, _ = rssm.observe_sequence(
                nets, {"dyn": dyn}, key, start, seen, batch.action, batch.is_first
            )
            return jnp.square(rssm.imagine_step(nets, {"dyn": dyn}, key, last, batch.action[:, -1]).deter - 1).mean()

        return jax.value_and_grad(objective)(dyn)

    value, grads = objective_and_gradient(key)
    core = {name: grad for name, grad in grads.items() if name.startswith("haiku_core")}
    assert np.isfinite(value) and core and all(np.any(x) for x in jax.tree.leaves(core))
