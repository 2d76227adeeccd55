"""Runs a policy inside a world model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, Dream, Key, State
from dreamer.ops.scan import scan

Policy = Callable[[Any, Key, Array], tuple[Any, Array]]


def rollout(
    dream: Dream, policy: Policy, carry: Any, key: Key, start: State, horizon: int
) -> tuple[Array, Array, Any]:
    """Dreams `horizon` steps from start [N, ..] under policy(carry, key, feat [N, F]) -> carry, action [N, A].

    carry: what the policy passes from one step to the next; () for nothing. H = horizon.
    Returns feat [N, H+1, F], action [N, H+1, A] and the last carry. feat begins with the feat of `start`. Action i was
    chosen at feat i; the last action is never executed.
    """

    def step(before: tuple[State, Any], key: Key) -> tuple[tuple[State, Any], tuple[Array, Array]]:
        state, carry = before
        act_key, imagine_key = jax.random.split(key)
        feat = dream.feat(state)
        carry, action = policy(carry, act_key, feat)
        return (dream.imagine(imagine_key, state, action), carry), (feat, action)

    keys = jax.random.split(key, horizon + 1)
    (state, carry), (feat, action) = scan(step, (start, carry), keys[:-1])
    last = dream.feat(state)
    carry, last_action = policy(carry, keys[-1], last)
    feat = jnp.concatenate([feat, last[None]], 0).swapaxes(0, 1)
    action = jnp.concatenate([action, last_action[None]], 0).swapaxes(0, 1)
    chex.assert_equal_shape_prefix([feat, action], 2)
    return feat, action, carry
