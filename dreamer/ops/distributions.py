"""Maths in float32: squashing, two-hot scalars, categorical latents and distributions of actions."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
sg = jax.lax.stop_gradient


def symlog(x: Array) -> Array:
    """sign(x) ln(1 + |x|), elementwise."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """sign(x) (exp(|x|) - 1), the inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


# --- two-hot scalars --------------------------------------------------------------------------------


@functools.lru_cache
def twohot_bins(count: int = 255) -> np.ndarray:
    """Bins [K] float32: symexp of equally spaced points from -20 to 20; they are exactly symmetric around 0.

    The bins are computed in float64 on the host, so that they have the same bits on every device.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(f"two-hot needs an odd number of bins, at least 3: {count}")
    half = 0.0 - np.expm1(np.linspace(20, 0, count // 2 + 1)).astype(np.float32)
    return np.concatenate([half, -half[:-1][::-1]])


def twohot_encode(target: Array, bins: np.ndarray) -> Array:
    """Target [..] -> weights [.., K] of the two neighbouring bins, linear in raw space.

    A target beyond the first or the last bin has all weight on this bin.
    """
    return _weights(len(bins), *_neighbours(target, bins))


def twohot_loss(logits: Array, target: Array, bins: np.ndarray) -> Array:
    """Cross-entropy of logits [.., K] with the two-hot encoding of target [..] -> [..].

    -sum_k w_k log softmax(l)_k = logsumexp(l) - w_i l_i - w_j l_j, where i and j are the neighbours of the target; the
    gradient is softmax(l) - w. No array [.., K] of weights is kept.
    """
    chex.assert_equal_shape_prefix([logits, target], target.ndim)
    return _neighbour_loss(logits.astype(jnp.float32), *_neighbours(target, bins))


def _neighbours(target: Array, bins: np.ndarray) -> tuple[Array, Array, Array]:
    """Target [..] -> the indices of the bins below and above it, and the weight of the bin above."""
    target = sg(target.astype(jnp.float32))
    values, count = jnp.asarray(bins), len(bins)
    reached = jnp.searchsorted(values, target, side="right", method="scan_unrolled")
    below, above = jnp.clip(reached - 1, 0, count - 1), jnp.clip(reached, 0, count - 1)
    to_below, to_above = jnp.abs(values[below] - target), jnp.abs(values[above] - target)
    return below, above, jnp.where(below == above, 0.5, to_below / (to_below + to_above))


def _weights(count: int, below: Array, above: Array, share: Array) -> Array:
    index = jnp.arange(count).reshape((1,) * below.ndim + (-1,))
    below, above, share = (x[..., None] for x in (below, above, share))
    return (index == below) * (1 - share) + (index == above) * share


@jax.custom_vjp
def _neighbour_loss(logits: Array, below: Array, above: Array, share: Array) -> Array:
    return _neighbour_loss_forward(logits, below, above, share)[0]


def _neighbour_loss_forward(logits: Array, below: Array, above: Array, share: Array) -> tuple[Array, Any]:
    total = jax.nn.logsumexp(logits, -1)
    at_below, at_above = (jnp.take_along_axis(logits, i[..., None], -1)[..., 0] for i in (below, above))
    return total - (1 - share) * at_below - share * at_above, (logits, total, below, above, share)


def _neighbour_loss_backward(kept: Any, dloss: Array) -> tuple[Array, None, None, None]:
    logits, total, *neighbours = kept
    weights = _weights(logits.shape[-1], *neighbours)
    return dloss[..., None] * (jnp.exp(logits - total[..., None]) - weights), None, None, None


_neighbour_loss.defvjp(_neighbour_loss_forward, _neighbour_loss_backward)


def twohot_mean(logits: Array, bins: np.ndarray) -> Array:
    """The expectation of two-hot logits [.., K] in raw space -> [..].

    Mirrored bins are paired as b * (p - p_mirror), so that a uniform distribution gives exactly 0 in any order of
    summation, although single terms reach 2e6.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    middle = len(bins) // 2
    upper = jnp.asarray(bins[middle + 1 :]).reshape((1,) * (logits.ndim - 1) + (-1,))
    return jnp.sum(upper * (probs[..., middle + 1 :] - probs[..., :middle][..., ::-1]), -1)


# --- categorical latents ----------------------------------------------------------------------------


def mix_uniform(logits: Array, unimix: float) -> Array:
    """Log-probabilities [.., C] of (1 - unimix) softmax(logits) + unimix / C, in float32."""
    logits = logits.astype(jnp.float32)
    if not unimix:
        return jax.nn.log_softmax(logits)
    return jnp.log((1 - unimix) * jax.nn.softmax(logits) + unimix / logits.shape[-1])


def sample_onehot(key: Array, logits: Array) -> Array:
    """Draws one class for each group of logits [.., C] -> one-hot [.., C] float32, without gradient."""
    return jax.nn.one_hot(jax.random.categorical(key, logits), logits.shape[-1])


@jax.custom_jvp
def straight_through(onehot: Array, log_probs: Array) -> Array:
    """The value of `onehot` with the gradient of exp(log_probs). log_probs [.., C]: as returned by `mix_uniform`."""
    return onehot


@straight_through.defjvp
def _straight_through_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (onehot, log_probs), (_, dlog_probs) = primals, tangents
    return onehot, (jnp.exp(log_probs) * dlog_probs).astype(onehot.dtype)


def categorical_entropy(logits: Array) -> Array:
    """Entropy in nats of the categoricals with logits [.., C] -> [..]."""
    logp = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logp) * logp, -1)


def categorical_kl(logits_q: Array, logits_p: Array) -> Array:
    """KL(q || p) in nats of the categoricals with logits [.., C] -> [..]."""
    logq, logp = jax.nn.log_softmax(logits_q), jax.nn.log_softmax(logits_p)
    return jnp.sum(jnp.exp(logq) * (logq - logp), -1)


def categorical_log_prob(logits: Array, onehot: Array) -> Array:
    """Log-probability of a one-hot [.., C] under logits [.., C] -> [..]."""
    return jnp.sum(onehot * jax.nn.log_softmax(logits.astype(jnp.float32)), -1)


# --- bounded normal and Bernoulli -------------------------------------------------------------------


def bounded_normal(
    raw_mean: Array, raw_std: Array, minstd: Array | float, maxstd: Array | float
) -> tuple[Array, Array]:
    """Outputs [.., A] of a network -> mean in [-1, 1] by tanh, std in [minstd, maxstd] by a sigmoid with offset 2."""
    mean = jnp.tanh(raw_mean.astype(jnp.float32))
    std = (maxstd - minstd) * jax.nn.sigmoid(raw_std.astype(jnp.float32) + 2.0) + minstd
    return mean, std


def normal_log_prob(mean: Array, std: Array, value: Array) -> Array:
    """Log-density of value [.., A] under independent normals, summed over A -> [..]."""
    return jnp.sum(-0.5 * jnp.square((value - mean) / std) - jnp.log(std) - 0.5 * np.log(2 * np.pi), -1)


def normal_entropy(std: Array) -> Array:
    """Differential entropy in nats of independent normals with std [.., A], summed over A -> [..]."""
    return jnp.sum(0.5 * np.log(2 * np.pi) + 0.5 + jnp.log(std), -1)


def bernoulli_loss(logit: Array, label: Array) -> Array:
    """Cross-entropy of a logit [..] with a label in [0, 1] [..] -> [..]."""
    logit = logit.astype(jnp.float32)
    return -(label * jax.nn.log_sigmoid(logit) + (1 - label) * jax.nn.log_sigmoid(-logit))
