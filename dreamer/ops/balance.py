"""KL balancing between posterior and prior."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from dreamer.ops.distributions import categorical_kl

Array = jax.Array
sg = jax.lax.stop_gradient


def kl_balance(post: Array, prior: Array, free_nats: Array | float) -> tuple[Array, Array, Array]:
    """The dynamics and the representation loss from mixed logits [.., S, C].

    dyn = max(free_nats, KL(sg(post) || prior)), rep = max(free_nats, KL(post || sg(prior))): clipped per element,
    after the sum over S and before any mean, so that a clipped element has no gradient.
    Returns dyn, rep and the unclipped KL, each [..]. Source: DreamerV3, eq. 3 and 5.
    """
    chex.assert_equal_shape([post, prior])
    dyn = jnp.sum(categorical_kl(sg(post), prior), -1)
    rep = jnp.sum(categorical_kl(post, sg(prior)), -1)
    return jnp.maximum(dyn, free_nats), jnp.maximum(rep, free_nats), sg(dyn)
