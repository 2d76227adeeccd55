"""DreamerV3 with Gaussian latents: the distribution by hand, DreamerV1's golden filtering, and a training run."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs

from dreamer import agent as agents
from dreamer import load_config, train
from dreamer.interfaces import Network
from dreamer.ops import latent_dist
from dreamer.world_models import rssm

CONFIG = dataclasses.replace(tiny.WORLD_MODEL, latent="gaussian", stoch=3)


# --- by hand ----------------------------------------------------------------------------------------


def test_statistics_are_the_mean_and_softplus_plus_the_least_deviation():
    normal = latent_dist.gaussian(2, minstd=0.1).stats(jnp.float32([[1.5, 0.0], [-2.0, np.log(np.e - 1)]]))
    np.testing.assert_allclose(normal.mean, [1.5, -2.0])
    np.testing.assert_allclose(normal.std, [np.log(2) + 0.1, 1.1], rtol=1e-6)


def test_kl_of_two_normals_by_hand():
    # ln(2 / 1) + (1 + 3^2) / (2 * 4) - 1/2 = 0.693147 + 1.25 - 0.5, and 0 for equal ones
    q = latent_dist.Normal(jnp.float32([3, 7]), jnp.float32([1, 2]))
    p = latent_dist.Normal(jnp.float32([0, 7]), jnp.float32([2, 2]))
    np.testing.assert_allclose(latent_dist.gaussian(2).kl(q, p), 1.443147, rtol=1e-6)


def test_entropy_of_normals_by_hand():
    # 1/2 ln(2 pi e std^2) each: 1.418939 for std 1, ln 2 more for std 2
    normal = latent_dist.Normal(jnp.zeros(2), jnp.float32([1, 2]))
    np.testing.assert_allclose(latent_dist.gaussian(2).entropy(normal), 2 * 1.4189385 + 0.6931472, rtol=1e-6)


def test_samples_are_the_mean_plus_noise_times_the_deviation_with_its_gradient(key):
    drawn, noise = latent_dist.gaussian(3), jax.random.normal(key, (3,))

    def sample(mean, std):
        return drawn.sample(key, latent_dist.Normal(mean, std))

    mean, std = jnp.float32([1, -2, 0]), jnp.float32([0.5, 1, 2])
    np.testing.assert_allclose(sample(mean, std), (mean + std * noise)[:, None], rtol=1e-6)
    by_mean, by_std = jax.jacobian(lambda *args: sample(*args)[:, 0], (0, 1))(mean, std)
    np.testing.assert_allclose(by_mean, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(by_std, np.diag(noise), atol=1e-6)


def test_packing_keeps_every_bit_the_empty_state_included():
    drawn = latent_dist.gaussian(4)
    stoch = jnp.float32([[0, 0, 0, 0], [1e-30, -0.0, 3.5, -7.25]])[..., None]
    packed = drawn.pack(stoch)
    assert packed.shape == (2, 4) and drawn.packed == ((4,), "float32") and packed.dtype == np.float32
    assert np.asarray(drawn.unpack(packed)).tobytes() == np.asarray(stoch).tobytes()


# --- DreamerV1's filtering --------------------------------------------------------------------------


class Forced(NamedTuple):
    """Statistics of a normal, and the noise to sample it with."""

    mean: jax.Array
    std: jax.Array
    noise: jax.Array


def dense(params: Any, x: jax.Array) -> jax.Array:
    return jnp.einsum("...i,io->...o", x, params["kernel"]) + params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def gru(params: Any, x: jax.Array, deter: jax.Array) -> jax.Array:
    """The cell of tests/golden/README.md."""
    z, r, h = jnp.split(x @ params["kernel"] + params["bias"][:1], 3, -1)
    z_, r_, h_ = jnp.split(deter @ params["recurrent_kernel"] + params["bias"][1:], 3, -1)
    z, r = jax.nn.sigmoid(z + z_), jax.nn.sigmoid(r + r_)
    return z * deter + (1 - z) * jnp.tanh(h + r * h_)


def outputs(x: jax.Array) -> jax.Array:
    """[.., 2 S], means first -> [.., S, 2]."""
    return jnp.stack(jnp.split(x, 2, -1), -1)


def core(params: Any, deter: jax.Array, stoch: jax.Array, action: jax.Array) -> jax.Array:
    return gru(params["gru"], jax.nn.elu(dense(params["img1"], jnp.concatenate([stoch[..., 0], action], -1))), deter)


def prior(params: Any, deter: jax.Array) -> jax.Array:
    return outputs(dense(params["img3"], jax.nn.elu(dense(params["img2"], deter))))


def posterior(params: Any, deter: jax.Array, tokens: jax.Array) -> jax.Array:
    """tokens: the embedding, followed by the noise of the sample, which is returned with the outputs."""
    embed, noise = tokens[..., :7], tokens[..., 7:]
    hidden = jax.nn.elu(dense(params["obs1"], jnp.concatenate([deter, embed], -1)))
    return jnp.concatenate([outputs(dense(params["obs2"], hidden)), noise[..., None]], -1)


def forced_dist() -> latent_dist.LatentDist:
    """The Gaussian distribution, sampled with given noise."""
    drawn = latent_dist.gaussian(3)
    return drawn._replace(
        stats=lambda outs: Forced(*drawn.stats(outs[..., :2]), outs[..., 2]),
        sample=lambda key, stats: (stats.mean + stats.std * stats.noise)[..., None],
    )


def test_filtering_with_gaussian_latents_is_dreamer_v1s():
    networks = (Network(None, apply) for apply in (core, prior, posterior))
    nets = rssm.Nets(None, None, *networks, dist=forced_dist(), heads={})

    def forward(params, inputs):
        tokens = jnp.concatenate([inputs["embed"], inputs["post_noise"]], -1)
        start = rssm.Latent(jnp.asarray(inputs["deter0"]), jnp.asarray(inputs["stoch0"])[..., None])
        never = jnp.zeros(tokens.shape[:2], bool)
        _, latent, post = rssm.observe_sequence(
            nets, {"dyn": params}, jax.random.key(0), start, tokens, inputs["action"], never
        )
        ahead = latent_dist.gaussian(3).stats(prior(params, latent.deter))
        kl = nets.dist.kl(post, ahead)
        return {
            "deter": latent.deter, "stoch": latent.stoch[..., 0], "post_mean": post.mean, "post_std": post.std,
            "prior_mean": ahead.mean, "prior_std": ahead.std, "kl": kl,
            "prior_stoch": ahead.mean + ahead.std * inputs["prior_noise"],
            "aux_kl_loss_free3": jnp.maximum(kl.mean(), 3), "aux_kl_loss_free0.1": jnp.maximum(kl.mean(), 0.1),
        }  # fmt: skip

    golden.check("rssm_observe_gaussian", forward)


# --- the agent --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    """Returns the agent of "vector" with Gaussian latents, and the results of six updates on one batch."""
    agent = agents.make(dataclasses.replace(tiny.CONFIG, world_model=CONFIG), tiny.SPECS["vector"])
    batch = tiny.make_batch(tiny.SPECS["vector"])
    stored = {"deter": batch.latent["deter"], "stoch": np.zeros((tiny.BATCH, 1, 3), np.float32)}
    state, update, outs = tiny.jit(agent.init)(jax.random.key(0)), tiny.jit(agent.update), []
    for _ in range(6):
        state, out = update(state, batch._replace(latent=stored))
        outs.append(out)
    return agent, state, outs


def test_an_agent_with_gaussian_latents_learns(learned):
    _, _, outs = learned
    losses = [float(out.metrics["loss/rec/vector"]) for out in outs]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert all(np.isfinite(value) for value in outs[-1].metrics.values())


def test_its_latents_are_stored_as_numbers_and_come_back(learned):
    agent, _, outs = learned
    assert agent.storage["stoch"].shape == (3,) and agent.storage["stoch"].dtype == "float32"
    stoch = outs[-1].latent["stoch"]
    assert stoch.shape == (tiny.BATCH, tiny.LENGTH, 3) and len(np.unique(stoch)) == stoch.size
    state = agent.world_model.unpack({name: x[:, 0] for name, x in outs[-1].latent.items()})
    np.testing.assert_array_equal(agent.pack(state)["stoch"], stoch[:, 0])


@pytest.mark.slow
def test_the_preset_trains(tmp_path):
    """Applies the shipped preset to a run of seconds."""
    overrides = {name: value for name, value in tiny_runs.flat(tiny_runs.TINY).items() if not name.endswith(".stoch")}
    overrides |= {"run_dir": str(tmp_path / "run"), "env_steps": 48, "eval.episodes": 0, "eval.video": "off"}
    config = load_config("gaussian_latents", overrides=overrides)
    assert (config.agent.world_model.latent, config.agent.world_model.stoch) == ("gaussian", 30)
    lines = tiny_runs.lines(train(config))
    losses = [line["loss/dyn"] for line in lines if "loss/dyn" in line]
    assert lines[-1]["updates"] >= 2 and losses and np.isfinite(losses).all()
