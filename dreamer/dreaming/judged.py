"""Losses of an actor with several critics, each for a reward of its own. Source: Director (Hafner et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer.interfaces import Array
from dreamer.ops import distributions as dist
from dreamer.ops.normalize import Normalizer, moments
from dreamer.ops.returns import lambda_returns

sg = jax.lax.stop_gradient


class Judged(NamedTuple):
    """What a critic computes for dreams: returns, values before each step, [.., H], and its weight in the score."""

    returns: Array
    value: Array
    weight: Array | float


def return_norm() -> Normalizer:
    """Returns Director's normaliser of returns and values. Its scale is a slow standard deviation, at least 0.01."""
    return moments(rate=1e-3, limit=1e-2)


def advantage_norm() -> Normalizer:
    """Returns Director's normaliser of advantages: it subtracts their mean and divides by their standard deviation."""
    return moments(rate=1e-2, limit=1e-8)


def returns_of(reward: Array, cont: Array, value: Array, lam: Array | float) -> Array:
    """Returns the lambda-returns [.., H] of rewards [.., H], with cont, discounted, and values of states [.., H+1]."""
    chex.assert_equal_shape([cont, value])
    flat = [x.reshape(-1, reward.shape[-1]) for x in (reward, cont[..., 1:], value[..., 1:])]
    returns = jax.vmap(lambda r, c, v: lambda_returns(r, c, v, lam))(*flat)
    return sg(returns).reshape(reward.shape)


def score(judged: Mapping[str, Judged], states: Mapping[str, Any], advantage: Any) -> tuple[Array, dict, Any]:
    """Returns the score [.., H] of the actions, and the next states of the normalisers.

        score = norm(sum_k weight_k * (returns_k / scale_k - value_k / scale_k))

    states {name: of `return_norm`}, advantage: of `advantage_norm`; both are updated before they are used
    """
    after = {name: return_norm().update(states[name], one.returns) for name, one in judged.items()}
    scales = {name: return_norm().stats(after[name])[1] for name in judged}
    total = sum(
        (one.weight * (one.returns - one.value) / scales[name] for name, one in judged.items()), jnp.zeros(())
    )
    advantage = advantage_norm().update(advantage, total)
    offset, scale = advantage_norm().stats(advantage)
    return sg((total - offset) / scale), after, advantage


def actor_loss(log_prob: Array, entropy: Array, score: Array, weight: Array) -> Array:
    """Returns the actor's loss [.., H]: weight * (-log_prob * score - entropy), by REINFORCE.

    log_prob [.., H]: of the actions, with gradient | entropy [.., H]: already weighted, with gradient
    weight [.., H]: of the states, see `hierarchy.state_weights`
    """
    chex.assert_equal_shape([log_prob, entropy, score, weight])
    return sg(weight) * (-log_prob * sg(score) - entropy)


def code_losses(decoded: Array, state: Array, logits: Array) -> tuple[Array, Array]:
    """Returns the losses of a goal autoencoder: reconstruction and KL, each [..].

    decoded, state [.., G]: the squared error is summed over G | logits [.., S, C]: of the code; the KL divergence to
    uniform one-hots, in nats, is summed over S
    """
    chex.assert_equal_shape([decoded, state])
    kl = jnp.log(logits.shape[-1]) - dist.categorical_entropy(logits)
    return jnp.square(decoded - state).sum(-1), kl.sum(-1)
