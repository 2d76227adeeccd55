"""Functions in float32 for symlog, two-hot scalars, categorical latents and distributions of actions."""

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
    """Returns sign(x) ln(1 + |x|), elementwise."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """Returns sign(x) (exp(|x|) - 1), the inverse of `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


# --- two-hot scalars --------------------------------------------------------------------------------


@functools.lru_cache
def twohot_bins(count: int = 255) -> np.ndarray:
    """Returns K = `count` bins [K] float32: symexp of equally spaced points from -20 to 20, exactly symmetric around 0.

    The bins are computed in float64 on the host, so that they have the same bits on every device. Raises ValueError
    unless `count` is odd and at least 3.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(f"two-hot needs an odd number of bins, at least 3: {count}")
    half = 0.0 - np.expm1(np.linspace(20, 0, count // 2 + 1)).astype(np.float32)
    return np.concatenate([half, -half[:-1][::-1]])


def twohot_encode(target: Array, bins: np.ndarray) -> Array:
    """Returns weights [.., K] that share each target [..] linearly between the values of its two neighbouring bins.

    A target beyond the first or the last bin has all weight on this bin.
    """
    return _weights(len(bins), *_neighbours(target, bins))


def twohot_loss(logits: Array, target: Array, bins: np.ndarray) -> Array:
    """Returns the cross-entropy [..] of logits [.., K] with the two-hot encoding of target [..].

    It is -sum_k w_k log softmax(l)_k = logsumexp(l) - w_i l_i - w_j l_j, where i and j are the bins next to the target.
    Its gradient is softmax(l) - w. The weights w [.., K] are not stored for the backward pass.
    """
    chex.assert_equal_shape_prefix([logits, target], target.ndim)
    return _neighbour_loss(logits.astype(jnp.float32), *_neighbours(target, bins))


def _neighbours(target: Array, bins: np.ndarray) -> tuple[Array, Array, Array]:
    """Returns, for each target [..], the indices of the bins below and above it, and the weight of the bin above."""
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
    """Returns the expectation [..] of the bins' values under two-hot logits [.., K].

    Mirrored bins are paired as b * (p - p_mirror), so that a uniform distribution gives exactly 0 in any order of
    summation, although single terms b * p reach 2e6.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    middle = len(bins) // 2
    upper = jnp.asarray(bins[middle + 1 :]).reshape((1,) * (logits.ndim - 1) + (-1,))
    return jnp.sum(upper * (probs[..., middle + 1 :] - probs[..., :middle][..., ::-1]), -1)


# --- categorical latents ----------------------------------------------------------------------------


def mix_uniform(logits: Array, unimix: float) -> Array:
    """Returns the log-probabilities [.., C] float32 of (1 - unimix) softmax(logits) + unimix / C."""
    logits = logits.astype(jnp.float32)
    if not unimix:
        return jax.nn.log_softmax(logits)
    return jnp.log((1 - unimix) * jax.nn.softmax(logits) + unimix / logits.shape[-1])


def sample_onehot(key: Array, logits: Array) -> Array:
    """Draws a class from each categorical with logits [.., C] -> one-hot [.., C] float32, without gradient."""
    return jax.nn.one_hot(jax.random.categorical(key, logits), logits.shape[-1])


@jax.custom_jvp
def straight_through(onehot: Array, log_probs: Array) -> Array:
    """Returns `onehot`, with the gradient of exp(log_probs). log_probs [.., C]: as returned by `mix_uniform`."""
    return onehot


@straight_through.defjvp
def _straight_through_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (onehot, log_probs), (_, dlog_probs) = primals, tangents
    return onehot, (jnp.exp(log_probs) * dlog_probs).astype(onehot.dtype)


def categorical_entropy(logits: Array) -> Array:
    """Returns the entropy [..] in nats of the categoricals with logits [.., C]."""
    logp = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logp) * logp, -1)


def categorical_kl(logits_q: Array, logits_p: Array) -> Array:
    """Returns KL(q || p) [..] in nats of the categoricals with logits [.., C]."""
    logq, logp = jax.nn.log_softmax(logits_q), jax.nn.log_softmax(logits_p)
    return jnp.sum(jnp.exp(logq) * (logq - logp), -1)


def categorical_log_prob(logits: Array, onehot: Array) -> Array:
    """Returns the log-probability [..] of one-hots [.., C] under logits [.., C]."""
    return jnp.sum(onehot * jax.nn.log_softmax(logits.astype(jnp.float32)), -1)


# --- bounded normal and Bernoulli -------------------------------------------------------------------


def bounded_normal(
    raw_mean: Array, raw_std: Array, minstd: Array | float, maxstd: Array | float
) -> tuple[Array, Array]:
    """Maps network outputs [.., A] to mean and std: tanh(raw_mean), sigmoid(raw_std + 2) scaled to minstd..maxstd."""
    mean = jnp.tanh(raw_mean.astype(jnp.float32))
    std = (maxstd - minstd) * jax.nn.sigmoid(raw_std.astype(jnp.float32) + 2.0) + minstd
    return mean, std


def normal_log_prob(mean: Array, std: Array, value: Array) -> Array:
    """Returns the log-density [..] of value [.., A] under independent normals, summed over A."""
    return jnp.sum(-0.5 * jnp.square((value - mean) / std) - jnp.log(std) - 0.5 * np.log(2 * np.pi), -1)


def normal_entropy(std: Array) -> Array:
    """Returns the differential entropy [..] in nats of independent normals with std [.., A], summed over A."""
    return jnp.sum(0.5 * np.log(2 * np.pi) + 0.5 + jnp.log(std), -1)


def bernoulli_loss(logit: Array, label: Array) -> Array:
    """Returns the cross-entropy [..] of a logit [..] with a label [..], which is from 0 to 1."""
    logit = logit.astype(jnp.float32)
    return -(label * jax.nn.log_sigmoid(logit) + (1 - label) * jax.nn.log_sigmoid(-logit))
