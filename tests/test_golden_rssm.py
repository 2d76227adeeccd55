"""The recurrent state-space model against the golden components, values and gradients."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.nets import block_gru
from dreamer.ops import balance, distributions
from dreamer.ops.scan import scan_time
from dreamer.spaces import Action, Space, Spec
from dreamer.world_models import rssm

HIDDEN, STOCH, CLASSES, UNIMIX = 6, 3, 4, 0.01
CONFIG = rssm.Config(deter=16, hidden=HIDDEN, stoch=STOCH, classes=CLASSES, blocks=8, unimix=UNIMIX)


def most_likely(key, logits):
    """A sampler that always takes the class with the largest logit."""
    return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])


def make_nets(action: Action, sample=most_likely) -> rssm.Nets:
    spec = Spec({"vector": Space((5,), "float32")}, action)  # the encoder is not run: tokens are given
    return rssm.make_nets(CONFIG, spec, jnp.float32, sample)


CONTINUOUS = Action(continuous=2)
DISCRETE = Action((5,))


@pytest.mark.parametrize("file, blocks", [("rssm_core", 8), ("rssm_core_blocks4", 4)])
def test_core(file, blocks):
    core = block_gru.Core(HIDDEN, blocks)

    def forward(params, inputs):
        return {"deter": core.apply({"params": params["dyn"]}, inputs["deter"], inputs["stoch"], inputs["action"])}

    golden.check(file, forward)


def test_prior():
    nets = make_nets(CONTINUOUS)
    golden.check("rssm_prior", lambda params, inputs: {"logit": nets.prior.apply(params["dyn"], inputs["deter"])})


def test_posterior():
    nets = make_nets(CONTINUOUS)

    def forward(params, inputs):
        return {"logit": nets.posterior.apply(params["dyn"], inputs["deter"], inputs["tokens"])}

    golden.check("rssm_posterior", forward)


def sequence_outputs(nets: rssm.Nets, params, tokens, latent: rssm.Latent, mixed):
    """Returns the outputs that the golden sequences record, with raw logits recomputed from the latents."""
    post = nets.posterior.apply(params["dyn"], latent.deter, tokens)
    prior = nets.prior.apply(params["dyn"], latent.deter)
    mixed_prior = distributions.mix_uniform(prior, UNIMIX)
    dyn, rep, _ = balance.kl_balance(mixed, mixed_prior, 1.0)
    return {
        "deter": latent.deter,
        "stoch": latent.stoch,
        "post_logit": post,
        "prior_logit": prior,
        "kl_raw": distributions.categorical_kl(mixed, mixed_prior).sum(-1),
        "dyn": dyn,
        "rep": rep,
    }


def start(inputs) -> rssm.Latent:
    return rssm.Latent(jnp.asarray(inputs["deter0"]), jnp.asarray(inputs["stoch0"]))


def test_filtering_with_forced_samples():
    nets = make_nets(CONTINUOUS, sample=lambda forced, logits: forced)  # the key argument carries the sample

    def forward(params, inputs):
        def step(carry, x):
            latent, mixed = rssm.observe_step(nets, params, x[0], carry, *x[1:])
            return latent, (latent, mixed)

        rows = tuple(inputs[name] for name in ("forced_stoch", "tokens", "prev_action", "is_first"))
        _, (latent, mixed) = scan_time(step, start(inputs), rows)
        return sequence_outputs(nets, params, inputs["tokens"], latent, mixed)

    golden.check("rssm_observe_forced", forward)


def test_filtering_with_argmax_samples():
    nets = make_nets(CONTINUOUS)

    def forward(params, inputs):
        rows = (inputs[name] for name in ("tokens", "prev_action", "is_first"))
        _, latent, mixed = rssm.observe_sequence(nets, params, jax.random.key(0), start(inputs), *rows)
        return sequence_outputs(nets, params, inputs["tokens"], latent, mixed)

    golden.check("rssm_observe_argmax", forward)


def test_filtering_with_discrete_actions():
    nets = make_nets(DISCRETE)

    def forward(params, inputs):
        action = np.eye(5, dtype=np.float32)[inputs["prev_action"]]
        _, latent, _ = rssm.observe_sequence(
            nets, params, jax.random.key(0), start(inputs), inputs["tokens"], action, inputs["is_first"]
        )
        post = nets.posterior.apply(params["dyn"], latent.deter, inputs["tokens"])
        return {"deter": latent.deter, "stoch": latent.stoch, "post_logit": post}

    golden.check("rssm_observe_discrete_argmax", forward)


def test_returned_posterior_logits_are_the_mixed_ones():
    data = golden.load("rssm_observe_argmax")
    nets = make_nets(CONTINUOUS)
    rows = (data.inputs[name] for name in ("tokens", "prev_action", "is_first"))
    _, _, mixed = rssm.observe_sequence(nets, data.params, jax.random.key(0), start(data.inputs), *rows)
    expected = distributions.mix_uniform(jnp.asarray(data.out["post_logit"]), UNIMIX)
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


def test_rows_before_a_reset_change_nothing_after_it():
    data = golden.load("rssm_observe_argmax")
    nets = make_nets(CONTINUOUS)
    env, time = np.argwhere(data.inputs["is_first"][:, 1:])[0] + (0, 1)

    def run(inputs):
        rows = (inputs[name] for name in ("tokens", "prev_action", "is_first"))
        return rssm.observe_sequence(nets, data.params, jax.random.key(0), start(inputs), *rows)[1]

    other = {name: value.copy() for name, value in data.inputs.items()}
    for name in ("tokens", "prev_action"):
        other[name][env, :time] += 1
    other["prev_action"][env, time] += 1
    other["deter0"][env] += 1
    before, after = run(data.inputs), run(other)
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left[env, time:], right[env, time:])
    assert np.any(before.deter[env, :time] != after.deter[env, :time])


def test_imagination():
    nets = make_nets(CONTINUOUS)

    def forward(params, inputs):
        def step(carry, action):
            latent = rssm.imagine_step(nets, params, jax.random.key(0), carry, action)
            return latent, latent

        _, latent = scan_time(step, start(inputs), inputs["action"])
        logit = nets.prior.apply(params["dyn"], latent.deter)
        return {"deter": latent.deter, "stoch": latent.stoch, "prior_logit": logit}

    golden.check("rssm_imagine_argmax", forward)
