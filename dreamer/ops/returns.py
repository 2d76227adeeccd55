"""Computes the lambda-returns of one trajectory. Use `jax.vmap` for a batch."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def lambda_returns(reward_t: Array, cont_t: Array, value_t: Array, lam: Array | float) -> Array:
    """Computes the TD(lambda) targets of one trajectory with H steps.

        R_i = reward_i + cont_i * ((1 - lam_i) * value_i + lam_i * R_{i+1}),    R_H = value_{H-1}

    Entry i of every argument belongs to the state after step i: reward_t [H] is the reward received with that state,
    cont_t [H] the chance that the episode continues from it, value_t [H] its value estimate. lam: [] or [H].
    Returns R [H]: entry i is the return from the state before step i. Source: DreamerV3, eq. 6 and replay critic.
    """
    chex.assert_rank([reward_t, cont_t, value_t], 1)
    chex.assert_equal_shape([reward_t, cont_t, value_t])
    lam_t = jnp.broadcast_to(jnp.asarray(lam, reward_t.dtype), reward_t.shape)
    interim_t = reward_t + cont_t * (1 - lam_t) * value_t

    def step(future: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        interim, carry_on = inputs
        ret = interim + carry_on * future
        return ret, ret

    _, returns = jax.lax.scan(step, value_t[-1], (interim_t, cont_t * lam_t), reverse=True, unroll=8)
    return returns
