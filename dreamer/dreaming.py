"""Rolling a policy out inside a world model."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, Dream, Key, Latent
from dreamer.ops.scan import scan


def rollout(
    dream: Dream, policy: Callable[[Key, Array], Array], key: Key, start: Latent, horizon: int
) -> tuple[Array, Array]:
    """Dreams `horizon` steps from start [N, ..] under policy(key, feat [N, F]) -> action [N, A].

    Returns feat [N, H+1, F], the start's first, and action [N, H+1, A]: action i was chosen at feat i, the last one
    is never carried out.
    """

    def step(latent: Latent, key: Key) -> tuple[Latent, tuple[Array, Array]]:
        act_key, imagine_key = jax.random.split(key)
        feat = dream.feat(latent)
        action = policy(act_key, feat)
        return dream.imagine(imagine_key, latent, action), (feat, action)

    keys = jax.random.split(key, horizon + 1)
    latent, (feat, action) = scan(step, start, keys[:-1])
    last = dream.feat(latent)
    feat = jnp.concatenate([feat, last[None]], 0).swapaxes(0, 1)
    action = jnp.concatenate([action, policy(keys[-1], last)[None]], 0).swapaxes(0, 1)
    chex.assert_equal_shape_prefix([feat, action], 2)
    return feat, action
