"""dreamer.nets against the golden components, values and gradients."""

from __future__ import annotations

import functools

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np

from dreamer.nets import decoder, encoder, heads
from dreamer.nets.convolutions import Conv, max_pool
from dreamer.nets.layers import BlockLinear, Linear, RMSNorm, from_blocks, to_blocks
from dreamer.ops import distributions
from dreamer.spaces import Space

BINS = distributions.twohot_bins(255)
SPACES = {
    "velocity": Space((2,), "float32"),
    "position": Space((3,), "float32"),
    "kind": Space((), "int32", classes=4),
    "image": Space((64, 64, 3), "uint8"),
}
VECTORS = ("velocity", "position", "kind")
KINDS = {"vector": VECTORS, "image": ("image",), "both": (*VECTORS, "image")}
SIZES = {"depth": 2, "mults": (2, 3, 4, 4), "units": 6, "layers": 3, "kernel": 5, "dtype": jnp.float32}


def apply(module: nn.Module, params, *inputs):
    return module.apply({"params": params}, *inputs)


def test_linear_norm_silu():
    def forward(params, inputs):
        linear = apply(Linear(6), params["linear"], inputs["x"])
        norm = apply(RMSNorm(), params["norm"], linear)
        return {"linear": linear, "norm": norm, "act": nn.silu(norm)}

    golden.check("linear_rms_silu", forward)


def test_rms_norm():
    golden.check("rms_norm", lambda params, inputs: {"y": apply(RMSNorm(), params["norm"], inputs["x"])})


def test_block_linear():
    def forward(params, inputs):
        y = apply(BlockLinear(12), params["bl"], to_blocks(inputs["x"], 4))
        return {"y": from_blocks(y, inputs["x"].shape[:-1])}

    golden.check("block_linear", forward)


def test_convolution_and_max_pool():
    def forward(params, inputs):
        conv = apply(Conv(4, 5), params["conv"], inputs["x"])
        return {"conv": conv, "pooled": max_pool(conv)}

    golden.check("conv5_maxpool", forward)


def encode(kind: str):
    spaces = {key: SPACES[key] for key in KINDS[kind]}
    network = encoder.make(spaces, symlog=True, **SIZES)

    def forward(params, inputs):
        return {"tokens": network.apply(params["enc"], {key: inputs[key] for key in spaces})}

    return forward


def test_encoder_of_vectors():
    golden.check("encoder_vector", encode("vector"))


def test_encoder_with_missing_values():
    golden.check("encoder_vector_missing", encode("vector"))


def test_encoder_of_images():
    golden.check("encoder_image", encode("image"))


def test_encoder_of_both():
    golden.check("encoder_both", encode("both"))


def decode(kind: str, without: tuple[str, ...] = ()):
    spaces = {key: SPACES[key] for key in KINDS[kind]}
    network = decoder.make(spaces, blocks=8, **SIZES)

    def forward(params, inputs):
        raw = network.apply(params["dec"], inputs["deter"], inputs["stoch"])
        assert set(raw) == set(spaces)
        out = {}
        for key, space in spaces.items():
            out[f"loss_{key}"] = decoder.reconstruction_loss(space, raw[key], inputs[f"target_{key}"])
            out[f"{'logits' if space.discrete else 'pred'}_{key}"] = raw[key]
            if space.discrete:
                out[f"pred_{key}"] = decoder.to_observation(space, raw[key])
        return {name: value for name, value in out.items() if name not in without}

    return forward


def test_decoder_of_vectors():
    golden.check("decoder_vector", decode("vector"))


def test_decoder_of_images():
    golden.check("decoder_image", decode("image"))


def test_decoder_of_both():
    golden.check("decoder_both", decode("both", without=("pred_image",)))


def test_each_block_of_deter_fills_its_own_slice_of_the_start_grid():
    """The golden decoders have one channel for each block, which cannot distinguish this order from its reverse."""
    depth, blocks, channels = 4, 8, 16
    sizes = SIZES | {"depth": depth, "mults": (2, 4)}
    module = decoder.Decoder((("image", Space((16, 16, 3), "uint8")),), **sizes, blocks=blocks)
    deter, stoch = jnp.zeros((1, 16)), jnp.zeros((1, 3, 4))
    params = jax.jit(module.init)(jax.random.key(0), deter, stoch)["params"]
    bias = np.zeros((blocks, 4 * 4 * channels // blocks), np.float32)
    bias[2] = 1.0
    params["sp0"]["bias"] = bias.reshape(-1)
    decode = functools.partial(
        module.apply, mutable="intermediates", capture_intermediates=lambda part, _: part.name == "spnorm"
    )
    _, kept = jax.jit(decode)({"params": params}, deter, stoch)
    (grid,) = kept["intermediates"]["spnorm"]["__call__"]
    np.testing.assert_array_equal(np.flatnonzero(np.any(np.asarray(grid[0]), (0, 1))), [4, 5])


def scalar_head(layers: int, name: str):
    head = heads.ScalarHead(layers, units=6, bins=255)

    def forward(params, inputs):
        logits = apply(head, params[name], inputs["feat"])
        loss = distributions.twohot_loss(logits, inputs["target"], BINS)
        return {"logits": logits, "loss": loss, "pred": distributions.twohot_mean(logits, BINS)}

    return forward


def test_reward_head():
    golden.check("reward_head", scalar_head(1, "rew"))


def test_value_head():
    golden.check("value_head", scalar_head(3, "val"))


def test_continue_head():
    def forward(params, inputs):
        logit = apply(heads.BinaryHead(1, units=6), params["con"], inputs["feat"])
        label = (1 - inputs["is_terminal"].astype(np.float32)) * (1 - 1 / 333)
        return {"logit": logit, "prob": nn.sigmoid(logit), "loss": distributions.bernoulli_loss(logit, label)}

    golden.check("continue_head", forward)


actor = functools.partial(heads.ActorHead, layers=3, units=6)


def test_categorical_actor():
    def forward(params, inputs):
        logits = apply(actor(onehots=5, continuous=0), params["pol"], inputs["feat"])["logits"]
        action = np.eye(5, dtype=np.float32)[inputs["action"]]
        logp = distributions.categorical_log_prob(logits, action)
        return {"logits": logits, "logp": logp, "entropy": distributions.categorical_entropy(logits)}

    golden.check("actor_categorical", forward)


def test_bounded_normal_actor():
    def forward(params, inputs):
        out = apply(actor(onehots=0, continuous=3), params["pol"], inputs["feat"])
        mean, std = distributions.bounded_normal(out["mean"], out["stddev"], 0.1, 1.0)
        logp = distributions.normal_log_prob(mean, std, inputs["action"])
        return {"mean": mean, "pred": mean, "std": std, "logp": logp, "entropy": distributions.normal_entropy(std)}

    golden.check("actor_bounded_normal", forward)
