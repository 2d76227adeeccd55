"""dreamer.ops against the golden components, values and gradients."""

from __future__ import annotations

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer.ops import balance, distributions, normalize, optimizers, returns

UNIMIX = 0.01
DISCOUNT = 1 - 1 / 333
LAMBDA = 0.95


def onehot(index, classes):
    """Converts integers [..] to one-hots [.., classes] float32, for the events and actions of the golden files."""
    return np.eye(classes, dtype=np.float32)[index]


def test_mixed_categorical():
    def forward(params, inputs):
        mixed_q, mixed_p = (distributions.mix_uniform(inputs[name], UNIMIX) for name in ("logits_q", "logits_p"))
        return {
            "mixed_q": mixed_q,
            "mixed_p": mixed_p,
            "logp": distributions.categorical_log_prob(mixed_q, inputs["event"]),
            "entropy": distributions.categorical_entropy(mixed_q),
            "kl": distributions.categorical_kl(mixed_q, mixed_p),
        }

    golden.check("unimix_categorical", forward)


def test_straight_through_sample():
    def forward(params, inputs):
        mixed = distributions.mix_uniform(inputs["logits"], UNIMIX)
        return {"value": distributions.straight_through(onehot(inputs["index"], 5), mixed)}

    golden.check("straight_through", forward)


def test_kl_losses():
    def forward(params, inputs):
        post, prior = (distributions.mix_uniform(inputs[name], UNIMIX) for name in ("post", "prior"))
        dyn, rep, raw = balance.kl_balance(post, prior, 1.0)
        return {"dyn": dyn, "rep": rep, "aux_raw": raw}

    golden.check("kl_losses", forward)


def test_clipped_kl_has_no_gradient():
    data = golden.load("kl_losses")
    clipped = data.out["aux_raw"] < 1.0
    assert clipped.sum() == 8
    gradient = jax.grad(lambda post: balance.kl_balance(post, jnp.asarray(data.inputs["prior"]), 1.0)[1].sum())
    assert not np.any(gradient(jnp.asarray(data.inputs["post"]))[clipped])


def test_twohot_bins():
    np.testing.assert_allclose(distributions.twohot_bins(255), golden.load("symexp_twohot").out["bins"], rtol=2e-6)


def test_twohot_target():
    data = golden.load("symexp_twohot")
    weights = distributions.twohot_encode(jnp.asarray(data.inputs["target"]), distributions.twohot_bins(255))
    golden.assert_close("symexp_twohot", "out", "target_dist", weights, data.out["target_dist"])


def test_twohot_loss_and_gradients():
    data = golden.load("symexp_twohot")
    bins = distributions.twohot_bins(255)

    def objective(logits):
        loss = distributions.twohot_loss(logits, jnp.asarray(data.inputs["target"]), bins)
        pred = distributions.twohot_mean(logits, bins)
        return jnp.sum(data.cot["loss"] * loss) + jnp.sum(data.cot["pred"] * pred), loss

    gradient, loss = jax.jit(jax.grad(objective, has_aux=True))(data.inputs["logits"])
    golden.assert_close("symexp_twohot", "out", "loss", loss, data.out["loss"])
    golden.assert_close("symexp_twohot", "gin", "logits", gradient, data.gin["logits"])


def test_twohot_mean():
    """Uses the tolerance of the golden README, because the reference sums terms up to 5e8 that cancel."""
    data = golden.load("symexp_twohot")
    bins = distributions.twohot_bins(255)
    logits = data.inputs["logits"].astype(np.float64)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    allowed = 1e-6 * np.abs(probs * bins).sum(-1)
    actual = jax.jit(lambda x: distributions.twohot_mean(x, bins))(data.inputs["logits"])
    assert np.all(np.abs(actual - data.out["pred"]) <= allowed)


def test_uniform_logits_predict_exactly_zero_when_jitted():
    bins = distributions.twohot_bins(255)
    assert np.all(jax.jit(lambda x: distributions.twohot_mean(x, bins))(jnp.full((3, 255), 0.7)) == 0.0)


def test_imagined_lambda_return():
    data = golden.load("lambda_return_imagined")
    rew, con, val = (data.inputs[name][:, 1:] for name in ("rew", "con", "val"))
    ret = jax.vmap(returns.lambda_returns, (0, 0, 0, None))(rew, con, val, LAMBDA)
    golden.assert_close("lambda_return_imagined", "out", "ret", ret, data.out["ret"])


def test_replay_lambda_return():
    data = golden.load("lambda_return_replay")
    last, term, rew, boot = (data.inputs[name][:, 1:].astype(np.float32) for name in ("last", "term", "rew", "boot"))
    ret = jax.vmap(returns.lambda_returns)(rew, (1 - term) * DISCOUNT, boot, (1 - last) * LAMBDA)
    golden.assert_close("lambda_return_replay", "out", "ret", ret, data.out["ret"])


@pytest.mark.parametrize(
    "file, normalizer, state",
    [
        ("return_normaliser", normalize.percentiles(), lambda s: {"lo": s.lo, "hi": s.hi}),
        ("option_meanstd_normaliser", normalize.moments(), lambda s: {"lo": s.mean, "hi": s.sqrs}),
    ],
)
def test_normalizer(file, normalizer, state):
    data = golden.load(file)
    current = normalizer.init()
    for value in golden.flatten(data.params).values():
        assert value == 0  # the files start from the initial state, as init does
    rows = []
    for x in data.inputs["x"]:
        current = normalizer.update(current, jnp.asarray(x))
        offset, scale = normalizer.stats(current)
        rows.append({**state(current), "offset": offset, "scale": scale})
    golden.assert_tree_close(file, "out", {name: np.stack([row[name] for row in rows]) for name in rows[0]}, data.out)


@pytest.mark.parametrize("file", ["optimizer", "optimizer_option_wd"])
def test_optimizer(file):
    """Six updates: the clipped gradient, the update, the parameters after it, and the moments at the end."""
    data = golden.load(file)
    names = ("learning_rate", "agc", "beta1", "beta2", "eps", "warmup", "weight_decay")
    hyper = dict(zip(names, data.inputs["hyper"].tolist(), strict=True))
    config = optimizers.Config(**hyper | {"warmup": int(hyper["warmup"])})
    optimizer, clip = optimizers.make(config), optimizers.clip_by_agc(config.agc)

    @jax.jit
    def step(params, state, grads, count):
        clipped, _ = clip.update(grads, clip.init(params), params)
        scaled, state = optimizer.update(grads, state, params)
        rate = optimizers.learning_rate(config, jnp.float32(config.learning_rate), count)
        update = jax.tree.map(lambda u: -rate * u, scaled)
        return optax.apply_updates(params, update), state, clipped, update

    params = jax.tree.map(jnp.asarray, data.params)
    state = optimizer.init(params)
    out = {"agc": {}, "update": {}, "params": {}}
    for t in range(6):
        grads = jax.tree.map(lambda g, t=t: g[t], data.inputs["grad"])
        params, state, clipped, update = step(params, state, grads, jnp.int32(t))
        for name, value in (("agc", clipped), ("update", update), ("params", params)):
            out[name][str(t)] = value
    (rms,) = (part for part in state if hasattr(part, "nu"))
    (momentum,) = (part for part in state if hasattr(part, "ema"))
    golden.assert_tree_close(file, "out", {**out, "nu": rms.nu, "mu": momentum.ema}, data.out)


def test_categorical_action():
    def forward(params, inputs):
        return {
            "logp": distributions.categorical_log_prob(inputs["logits"], onehot(inputs["action"], 5)),
            "entropy": distributions.categorical_entropy(inputs["logits"]),
        }

    golden.check("categorical", forward)


def test_bounded_normal_action():
    def forward(params, inputs):
        mean, std = distributions.bounded_normal(inputs["raw_mean"], inputs["raw_std"], 0.1, 1.0)
        logp = distributions.normal_log_prob(mean, std, inputs["action"])
        return {"mean": mean, "std": std, "logp": logp, "entropy": distributions.normal_entropy(std)}

    golden.check("bounded_normal", forward)
