"""KL balancing between posterior and prior."""

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
    """KL(q || p) of mixed logits [.., S, C], summed over the groups -> [..]."""
    return jnp.sum(categorical_kl(q, p), -1)


def kl_balance(
    post: Any, prior: Any, free_nats: Array | float, kl: Callable[[Any, Any], Array] = summed_kl
) -> tuple[Array, Array, Array]:
    """The dynamics and the representation loss. post, prior: statistics, by default mixed logits [.., S, C].

        dyn = max(free_nats, KL(sg(post) || prior))        rep = max(free_nats, KL(post || sg(prior)))

    The KL is summed over S and then clipped, element by element, so that a clipped element has no gradient.
    kl(q, p) -> [..]: the KL of these statistics. Returns dyn, rep and the unclipped KL, each [..].
    Source: DreamerV3, eq. 3 and 5.
    """
    chex.assert_trees_all_equal_shapes(post, prior)
    dyn, rep = kl(sg(post), prior), kl(post, sg(prior))
    return jnp.maximum(dyn, free_nats), jnp.maximum(rep, free_nats), sg(dyn)
