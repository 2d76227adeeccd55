"""Distributions of the stochastic part of a latent: one-hot categoricals (DreamerV2, V3) or Gaussians (V1)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.ops import distributions as dist
from dreamer.ops.balance import summed_kl

Array = jax.Array
Stats = Any  # pytree of arrays [.., S, ..]
sg = jax.lax.stop_gradient


class LatentDist(NamedTuple):
    """The distribution of a stochastic state [.., S, C], which has S independent groups.

    shape: (S, C), the shape of a state | outputs: (S, n), the shape of a network's outputs for a state
    stats(outs [.., S, n]) -> stats, float32 | sample(key, stats) -> [.., S, C] float32, with gradients to stats
    mode(stats) -> the most likely [.., S, C]
    kl(q, p) -> KL(q || p) [..] in nats | entropy(stats) -> [..] in nats; both are summed over the groups
    pack(stoch) -> array for the replay | unpack(array) -> the same stoch, bit for bit
    packed: the shape, without leading axes, and the dtype of a packed array
    """

    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    stats: Callable[[Array], Stats]
    sample: Callable[[Array, Stats], Array]
    mode: Callable[[Stats], Array]
    kl: Callable[[Stats, Stats], Array]
    entropy: Callable[[Stats], Array]
    pack: Callable[[Array], Array]
    unpack: Callable[[Array], Array]
    packed: tuple[tuple[int, ...], str]


class Normal(NamedTuple):
    """Statistics of a Gaussian state: mean, std [.., S] float32."""

    mean: Array
    std: Array


def categorical(
    groups: int, classes: int, unimix: float = 0.01, draw: Callable[[Array, Array], Array] = dist.sample_onehot
) -> LatentDist:
    """Returns the distribution of S = `groups` one-hots of C = `classes` entries, with straight-through gradients.

    A share `unimix` of each categorical is uniform. draw(key, log-probabilities [.., S, C]) -> one-hots
    Packing keeps the class of each group; the number C stands for the all-zero state before the first step.
    Source: DreamerV3, section on the world model.
    """
    index = "uint8" if classes < 256 else "uint16"

    def sample(key: Array, logits: Array) -> Array:
        return dist.straight_through(draw(key, sg(logits)), logits)

    def pack(stoch: Array) -> Array:
        return jnp.where(stoch.sum(-1) > 0.5, jnp.argmax(stoch, -1), classes).astype(index)

    return LatentDist(
        shape=(groups, classes),
        outputs=(groups, classes),
        stats=functools.partial(dist.mix_uniform, unimix=unimix),
        sample=sample,
        mode=lambda logits: jax.nn.one_hot(jnp.argmax(logits, -1), classes),
        kl=summed_kl,
        entropy=lambda logits: dist.categorical_entropy(logits).sum(-1),
        pack=pack,
        unpack=lambda packed: jax.nn.one_hot(packed, classes),
        packed=((groups,), index),
    )


def gaussian(groups: int, minstd: float = 0.1) -> LatentDist:
    """Returns the distribution of S = `groups` independent normals; C is 1. Their deviation is softplus(out) + minstd.

    Samples are reparametrised. Source: DreamerV1 (Hafner et al. 2020), appendix A.
    """

    def stats(outs: Array) -> Normal:
        outs = outs.astype(jnp.float32)
        return Normal(outs[..., 0], jax.nn.softplus(outs[..., 1]) + minstd)

    def sample(key: Array, normal: Normal) -> Array:
        return (normal.mean + normal.std * jax.random.normal(key, normal.mean.shape))[..., None]

    return LatentDist(
        shape=(groups, 1),
        outputs=(groups, 2),
        stats=stats,
        sample=sample,
        mode=lambda normal: normal.mean[..., None],
        kl=normal_kl,
        entropy=lambda normal: dist.normal_entropy(normal.std),
        pack=lambda stoch: stoch[..., 0],
        unpack=lambda packed: packed[..., None],
        packed=((groups,), "float32"),
    )


def normal_kl(q: Normal, p: Normal) -> Array:
    """Returns KL(q || p) [..] of independent normals, summed over S. For each normal, it is

        log(p.std / q.std) + (q.std^2 + (q.mean - p.mean)^2) / (2 p.std^2) - 1/2
    """
    spread = (jnp.square(q.std) + jnp.square(q.mean - p.mean)) / (2 * jnp.square(p.std))
    return jnp.sum(jnp.log(p.std) - jnp.log(q.std) + spread - np.float32(0.5), -1)
