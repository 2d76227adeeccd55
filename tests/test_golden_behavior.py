"""The actor-critic's losses and its slow critic against the golden components, values and gradients."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.behaviors import actor_critic
from dreamer.dreaming import actor_critic as ac
from dreamer.interfaces import Batch, Variables
from dreamer.ops import distributions, normalize
from dreamer.ops.returns import lambda_returns
from dreamer.spaces import Action, Space, Spec

BINS = distributions.twohot_bins(255)
DISCOUNT = 1 - 1 / 333
CLASSES = 5
DEFAULTS = ac.Settings(BINS, lam=0.95, entropy=3e-4, slow_scale=1.0, slow_target=False, discount=1.0)
NORMS = ac.Norms(normalize.percentiles(), normalize.identity(), normalize.identity())
METRICS = {
    "adv": "adv", "adv_std": "adv_std", "adv_mag": "adv_mag", "rew": "reward", "con": "cont", "ret": "return_normed",
    "ret_min": "return_normed_min", "ret_max": "return_normed_max", "ret_rate": "return_rate", "val": "value",
    "tar": "target", "weight": "weight", "slowval": "slow_value",
}  # fmt: skip


def policy(inputs):
    """Log-probability and entropy [N, H+1] of the golden policy's actions."""
    if "policy_logits" in inputs:
        action = np.eye(CLASSES, dtype=np.float32)[inputs["action"]]
        logits = inputs["policy_logits"]
        return distributions.categorical_log_prob(logits, action), distributions.categorical_entropy(logits)
    mean, std = inputs["policy_mean"], inputs["policy_std"]
    return distributions.normal_log_prob(mean, std, inputs["action"]), distributions.normal_entropy(std)


def imagined(settings: ac.Settings):
    def forward(params, inputs):
        log_prob, entropy = policy(inputs)
        slow = distributions.twohot_mean(inputs["slow_logits"], BINS)
        dreamed = ac.Imagined(
            jnp.asarray(inputs["rew"]), jnp.asarray(inputs["con"]), inputs["value_logits"], slow, log_prob, entropy
        )
        before = normalize.Percentiles(*(params["retnorm"][name]["value"] for name in ("lo", "hi")))
        states = ac.Norms(before, (), ())
        losses, returns, after, metrics = ac.imagined_losses(settings, NORMS, states, dreamed)
        shown = {name: metrics[f"dream/{ours}"] for name, ours in METRICS.items()}
        shown["ent"] = {"action": metrics["dream/action_entropy"]}
        if "policy_logits" in inputs:
            shown["rand"] = {"action": metrics["dream/action_entropy"] / np.log(CLASSES)}
        return {
            "policy": losses["policy"],
            "value": losses["value"],
            "ret": with_gradient(returns, settings, inputs),
            "aux_weight": weights(settings, inputs["con"])[:, :-1],
            "aux_value": distributions.twohot_mean(inputs["value_logits"], BINS),
            "aux_slow": slow,
            "aux_retscale": metrics["dream/return_scale"],
            "aux_retnorm_lo_after": after.ret.lo,
            "aux_retnorm_hi_after": after.ret.hi,
            "aux_metric": shown,
        }

    return forward


def with_gradient(returns, settings, inputs):
    """Returns `returns` with the gradient of the golden J: ours have a stop_gradient where they are computed, those of
    the reference only where they are used."""
    if settings.slow_target:
        return returns
    value = distributions.twohot_mean(inputs["value_logits"], BINS)
    rows = (inputs["rew"][:, 1:], settings.discount * inputs["con"][:, 1:], value[:, 1:])
    again = jax.vmap(lambda_returns, (0, 0, 0, None))(*rows, settings.lam)
    return returns + (again - jax.lax.stop_gradient(again))


def weights(settings, cont):
    """Returns the weights of the losses, measured with a policy whose loss is -1 everywhere."""
    count, length = cont.shape
    zeros, ones = jnp.zeros((count, length)), jnp.ones((count, length))
    dreamed = ac.Imagined(zeros, jnp.asarray(cont), jnp.zeros((count, length, 255)), zeros, zeros, ones)
    states = ac.Norms(NORMS.ret.init(), (), ())
    losses, *_ = ac.imagined_losses(settings._replace(entropy=1.0), NORMS, states, dreamed)
    return jnp.pad(-losses["policy"], ((0, 0), (0, 1)))


def check_imagined(file: str, settings: ac.Settings) -> None:
    """Applies `golden.check`, with the magnitudes of terms for means in the metrics, whose terms cancel."""
    out = golden.load(file).out
    value, slow, returns = (float(np.abs(out[name]).mean()) for name in ("aux_value", "aux_slow", "ret"))
    terms = {"val": value, "slowval": slow, "tar": returns, "ret": returns / float(out["aux_retscale"])}
    terms["adv"] = float(out["aux_metric"]["adv_mag"])
    golden.check(file, imagined(settings), {f"aux_metric/{name}": size for name, size in terms.items()})


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("actions", ["disc", "cont"])
def test_imagined_losses(actions, call):
    check_imagined(f"imag_loss_{actions}_call{call}", DEFAULTS)


def test_imagined_losses_with_explicit_discount_and_slow_target():
    settings = DEFAULTS._replace(discount=DISCOUNT, slow_target=True)
    check_imagined("imag_loss_option_nocontdisc_slowtar", settings)


def test_the_files_cover_every_size_of_the_return_scale():
    scales = [float(golden.load(f"imag_loss_disc_call{call}").out["aux_retscale"]) for call in range(3)]
    assert scales[0] == 1 < scales[1] < scales[2]


def test_replayed_loss():
    def forward(params, inputs):
        slow = distributions.twohot_mean(inputs["slow_logits"], BINS)
        rows = Batch({}, None, jnp.asarray(inputs["rew"]), None, inputs["last"], inputs["term"], {})
        loss, returns = ac.replayed_loss(
            DEFAULTS, DISCOUNT, rows, jnp.asarray(inputs["boot"]), inputs["value_logits"], slow
        )
        value = distributions.twohot_mean(inputs["value_logits"], BINS)
        return {"repval": loss, "aux_ret": returns, "aux_slow": slow, "aux_value": value}

    golden.check("repl_loss", forward)


def test_slow_critic():
    data = golden.load("slow_critic")
    spec = Spec({"vector": Space((3,), "float32")}, Action(continuous=2))
    behavior = actor_critic.make(actor_critic.Config(slow_rate=0.02), spec, feat_width=3)
    fast, extra, out = data.params["val"], {"slow": data.params["slowval"]}, {}
    for t, delta in enumerate(data.inputs["delta"]):
        fast = jax.tree.map(lambda x, delta=delta: x + delta, fast)
        extra = behavior.refresh(Variables({"val": fast}, extra, {"slow_rate": jnp.float32(0.02)}))
        out[f"slow_after_{t}"] = extra["slow"]
    golden.assert_tree_close("slow_critic", "out", out, data.out)
