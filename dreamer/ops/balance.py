"""Computes the balanced KL losses of posterior and prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dreamer.ops.distributions import categorical_kl

Array = jax.Array
sg = jax.lax.stop_gradient


def summed_kl(q: Array, p: Array) -> Array:
    """Returns KL(q || p) [..] of log-probabilities [.., S, C] from `mix_uniform`, summed over S."""
    return jnp.sum(categorical_kl(q, p), -1)


def kl_balance(
    post: Any, prior: Any, free_nats: Array | float, kl: Callable[[Any, Any], Array] = summed_kl
) -> tuple[Array, Array, Array]:
    """Returns the dynamics loss, the representation loss and the unclipped KL, each [..]. sg stops gradients.

        dyn = max(free_nats, KL(sg(post) || prior))        rep = max(free_nats, KL(post || sg(prior)))

    post, prior: statistics of distributions, by default log-probabilities [.., S, C] from `mix_uniform`
    kl(q, p) -> [..]: the KL of two such statistics, summed over S. It is then clipped to at least free_nats,
    element by element, so that a clipped element has no gradient.
    Source: DreamerV3, eq. 3 and 5.
    """
    chex.assert_trees_all_equal_shapes(post, prior)
    dyn, rep = kl(sg(post), prior), kl(post, sg(prior))
    return jnp.maximum(dyn, free_nats), jnp.maximum(rep, free_nats), sg(dyn)
