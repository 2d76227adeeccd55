"""World Models (2018): its networks, sampling, dreams, controller and cost against the golden files of its source."""

from __future__ import annotations

import functools

import golden
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.dreaming import evolution, linear_policy
from dreamer.nets import mdn_rnn, vae
from dreamer.nets.adapters import from_flax
from dreamer.ops import mixture
from dreamer.spaces import Action

CHANNELS = (2, 3, 4, 6)
NAME = "world_models_2018_"


def vae_params(given: golden.Tree) -> golden.Tree:
    """The parameters of V under the names of nets/vae.py."""
    dec = {"linear": given["dec_fc"], **{f"conv{i}": given[f"dec_deconv{i + 1}"] for i in range(4)}}
    if "enc_fc_mu" not in given:
        return {"dec": dec}
    enc = {"mean": given["enc_fc_mu"], "log_var": given["enc_fc_log_var"]}
    return {"enc": enc | {f"conv{i}": given[f"enc_conv{i + 1}"] for i in range(4)}, "dec": dec}


def rnn_params(given: golden.Tree) -> golden.Tree:
    """The parameters of M under the names of nets/mdn_rnn.py."""
    given = given["RNN"]
    return {
        "lstm": {"gates": given["layer_norm_basic_lstm_cell"]},
        "out": {"out": {"kernel": given["output_w"], "bias": given["output_b"]}},
    }


def encoder():
    return from_flax(vae.Encoder(CHANNELS, 6))


def decoder():
    return from_flax(vae.Decoder(CHANNELS, 3))


LSTM = from_flax(mdn_rnn.LSTM())


def output(done: bool):
    return from_flax(mdn_rnn.Output(4, 3, done))


# --- V ----------------------------------------------------------------------------------------------


def test_the_autoencoder_and_its_loss():
    def forward(params, inputs):
        params, image = vae_params(params), inputs["image"].astype(np.float32) / 255
        mean, log_var = encoder().apply(params["enc"], image)
        z = vae.draw(mean, log_var, inputs["noise"])
        rec = jnp.square(decoder().apply(params["dec"], z) - image).sum((1, 2, 3)).mean()
        kl = vae.kl_divergence(mean, log_var)
        floored = jnp.maximum(kl, 0.5 * 6).mean()
        return {
            "loss": rec + floored, "aux_mu": mean, "aux_logvar": log_var, "aux_z": z, "aux_r_loss": rec,
            "aux_kl_loss": floored, "aux_kl_per_sample": kl,
        }  # fmt: skip

    golden.check(f"{NAME}vae", forward)


def test_every_pixel_of_the_decoder():
    golden.check(
        f"{NAME}vae_recon",
        lambda params, inputs: {"recon": decoder().apply(vae_params(params)["dec"], inputs["z"])},
    )


# --- M ----------------------------------------------------------------------------------------------


def test_the_network_of_carracing_and_its_loss(monkeypatch):
    def forward(params, inputs):
        params, first = rnn_params(params), mdn_rnn.Memory(inputs["h0"], inputs["c0"])
        never = np.zeros(inputs["x"].shape[:2], bool)
        last, memory = mdn_rnn.read(LSTM, params["lstm"], first, (inputs["x"],), never)
        z = output(False).apply(params["out"], memory.hidden).z
        return {
            "loss": -mixture.log_likelihood(z, inputs["target"]).mean(), "aux_logmix": z.log_prob,
            "aux_mean": z.mean, "aux_logstd": z.log_std, "aux_c_last": last.cell, "aux_h_last": last.hidden,
        }  # fmt: skip

    file = f"{NAME}mdn_rnn_carracing"
    data = golden.load(file)
    clipped = data.out.pop("aux_clipped")
    for name, grad in golden.flatten(data.gparam).items():  # what the source's optimizer sees
        np.testing.assert_allclose(np.clip(grad, -1, 1), golden.flatten(clipped)[name])
    monkeypatch.setattr(golden, "load", lambda name: data)
    golden.check(file, forward)


def doom(params, inputs, fed: bool):
    """The network of Doom on (z, action, restart), which predicts the next z and whether the next row is a restart."""
    params, first = rnn_params(params), mdn_rnn.Memory(inputs["h0"], inputs["c0"])
    z, action, restart = (inputs[name] for name in ("z", "action", "restart"))
    x = jnp.concatenate([z, action[..., None], restart[..., None]], -1)[:, :-1]
    last, memory = mdn_rnn.read(LSTM, params["lstm"], first, (x,), restart[:, :-1] == 1, fed=fed)
    predicted = output(True).apply(params["out"], memory.hidden)
    z_cost = -mixture.log_likelihood(predicted.z, z[:, 1:]).mean()
    done_cost = mdn_rnn.done_loss(predicted.done[..., 0], restart[:, 1:]).mean()
    return {
        "loss": z_cost + done_cost, "aux_z_cost": z_cost, "aux_r_cost": done_cost,
        "aux_restart_logit": predicted.done[..., 0], "aux_logmix": predicted.z.log_prob,
        "aux_mean": predicted.z.mean, "aux_logstd": predicted.z.log_std, "aux_c_last": last.cell,
        "aux_h_last": last.hidden,
    }  # fmt: skip


@pytest.mark.parametrize("fed", [False, True], ids=["cleared", "as the source executes it"])
def test_the_network_of_doom_and_its_loss(fed):
    golden.check(f"{NAME}mdn_rnn_doom{'_fedstate' if fed else ''}", functools.partial(doom, fed=fed))


def test_sampling_of_a_mixture_at_a_temperature():
    data = golden.load(f"{NAME}mdn_sample")
    x = data.inputs
    given = mixture.Mixture(*(jnp.asarray(x[name]) for name in ("logmix", "mean", "logstd")))
    for tau in (0.1, 0.5, 1.0, 1.25):
        index = mixture.component(given, tau, x["uniform"])
        np.testing.assert_array_equal(index, data.out[f"index_tau{tau}"])
        z = mixture.draw(given, tau, x["uniform"], x["normal"])
        golden.assert_close(f"{NAME}mdn_sample", "out", f"z_tau{tau}", z, data.out[f"z_tau{tau}"])


# --- dreams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.1, 0.7, 1.0, 1.3])
def test_a_dream_of_carracing(tau):
    data = golden.load(f"{NAME}dream_carracing")
    params, x = rnn_params(data.params), data.inputs
    z, memory, dreamed = x["z0"][None], mdn_rnn.Memory(jnp.zeros((1, 6)), jnp.zeros((1, 6))), []
    for action, uniform, normal in zip(x["action"], x["uniform"], x["normal"], strict=True):
        memory = LSTM.apply(params["lstm"], memory, z, action[None])
        z = mixture.draw(output(False).apply(params["out"], memory.hidden).z, tau, uniform[None], normal[None])
        dreamed.append(z[0])
    golden.assert_close(f"{NAME}dream_carracing", "out", f"z_tau{tau}", dreamed, data.out[f"z_tau{tau}"])


@pytest.mark.parametrize("tau", [0.5, 1.25])
def test_a_dream_of_doom_until_it_ends(tau):
    data = golden.load(f"{NAME}dream_doom")
    params, x = rnn_params(data.params), data.inputs
    z = vae.draw(x["initial_mu"], x["initial_logvar"], x["normal"][0])[None]
    memory, states, ends = mdn_rnn.Memory(jnp.zeros((1, 5)), jnp.zeros((1, 5))), [], []
    states.append(jnp.concatenate([z, memory.cell, memory.hidden], -1)[0])
    for step in range(len(data.out[f"done_tau{tau}"])):
        restart = np.full((1, 1), step == 0, np.float32)
        memory = LSTM.apply(params["lstm"], memory, z, x["action"][None, step : step + 1], restart)
        predicted = output(True).apply(params["out"], memory.hidden)
        z = mixture.draw(predicted.z, tau, x["uniform"][None, step], x["normal"][None, step + 1])
        states.append(jnp.concatenate([z, memory.cell, memory.hidden], -1)[0])
        ends.append(bool(predicted.done[0, 0] > 0))
    np.testing.assert_array_equal(ends, data.out[f"done_tau{tau}"])
    golden.assert_close(f"{NAME}dream_doom", "out", f"state_tau{tau}", states, data.out[f"state_tau{tau}"])


# --- C ----------------------------------------------------------------------------------------------


def test_the_controller_of_carracing():
    """The agent's numbers are from -1 to 1: gas and brake, which the game has from 0 to 1, are halved and moved."""
    data = golden.load(f"{NAME}controller_carracing")
    policy = linear_policy.make(10, Action(continuous=3), one_sided=(2,))
    feat = np.concatenate([data.inputs["z"], data.inputs["h"]], -1)
    steer, gas, brake = policy.act(jnp.asarray(data.params["flat"]), feat).T
    native = jnp.stack([steer, (gas + 1) / 2, (brake + 1) / 2], -1)
    golden.assert_close(f"{NAME}controller_carracing", "out", "action", native, data.out["action"])
    assert policy.size == data.params["flat"].size and (data.out["action"][:, 2] == 0).any()


def test_the_controller_of_doom():
    data = golden.load(f"{NAME}controller_doom")
    feat = np.concatenate([data.inputs[name] for name in ("z", "c", "h")], -1)
    theta = jnp.asarray(data.params["flat"])
    outs = linear_policy.linear(theta, feat, 1, bias=False)
    golden.assert_close(f"{NAME}controller_doom", "out", "action", outs, data.out["action"])
    policy = linear_policy.make(16, Action((3,)), bias=False, discrete="threshold")
    pressed = np.asarray(policy.act(theta, feat))
    np.testing.assert_array_equal(pressed[:, 1] == 1, data.out["aux_button10"])
    np.testing.assert_array_equal(pressed[:, 2] == 1, data.out["aux_button11"])


def test_the_cost_with_the_sign_of_the_source_is_its_cost():
    data = golden.load(f"{NAME}es_cost")
    theta, reward = data.inputs["solutions"], data.inputs["reward"]
    golden.assert_close(f"{NAME}es_cost", "out", "cost", evolution.cost_of(reward, theta, -0.01), data.out["cost"])
    corrected = evolution.cost_of(reward, theta, 0.01)
    np.testing.assert_array_less(data.out["cost"], corrected)  # large parameters cost something, and do not pay
