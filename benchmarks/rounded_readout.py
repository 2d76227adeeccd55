"""Trains with the rounding errors of the reference's compiled two-hot mean, to measure their effect.

    python benchmarks/rounded_readout.py experiments/dmc_proprio_paper.yaml --env dmc:cheetah-run

Accepts the arguments of `dreamer train`. The reference sums p * b over mirrored bins as low + high. Compiled, each pair
becomes one fused multiply-add, high + round(low). With the same p on both sides, the result is not 0 but the rounding
error of one product, up to 0.06 where b is 5e8. This script computes that error exactly and adds it to our mean, which
has none.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.apps import cli
from dreamer.ops import distributions

SPLITTER = 4097.0  # 2 ** 12 + 1: splits a float32 into two parts of 12 bits

exact_mean = distributions.twohot_mean


def rounding_error(a: jax.Array, b: jax.Array) -> jax.Array:
    """a * b - round(a * b) in float32, exactly. Source: Dekker 1971."""
    product = jax.lax.optimization_barrier(a * b)
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def rounded_mean(logits: jax.Array, bins: np.ndarray) -> jax.Array:
    """The two-hot mean of logits [.., K] as computed by the reference's compiled program -> [..]."""
    middle = len(bins) // 2
    low = jax.nn.softmax(logits.astype(jnp.float32))[..., :middle][..., ::-1]
    upper = jnp.broadcast_to(jnp.asarray(bins[middle + 1 :]), low.shape)
    return exact_mean(logits, bins) + jax.lax.stop_gradient(rounding_error(low, upper).sum(-1))


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    scaled = SPLITTER * x
    high = jax.lax.optimization_barrier(scaled - jax.lax.optimization_barrier(scaled - x))
    return high, x - high


if __name__ == "__main__":
    distributions.twohot_mean = rounded_mean
    sys.exit(cli.main(["train", *sys.argv[1:]]))
