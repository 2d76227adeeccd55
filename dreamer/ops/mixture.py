"""Mixtures of normals, one for each dimension of a vector. Source: Ha and Schmidhuber 2018, model M."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Mixture(NamedTuple):
    """Mixtures of K normals for each of Z dimensions, float32.

    log_prob [.., Z, K]: normalised log-probabilities of the components | mean, log_std [.., Z, K]
    """

    log_prob: Array
    mean: Array
    log_std: Array


def from_outputs(outs: Array, components: int) -> Mixture:
    """Reads the outputs [.., Z * 3K] of a network: for each dimension K logits, K means, K logarithms of deviations."""
    outs = outs.astype(jnp.float32).reshape(*outs.shape[:-1], -1, 3 * components)
    logits, mean, log_std = jnp.split(outs, 3, -1)
    return Mixture(jax.nn.log_softmax(logits), mean, log_std)


def log_likelihood(mixture: Mixture, value: Array) -> Array:
    """Returns log sum_k p_k N(value | mean_k, std_k) [.., Z] of value [.., Z]."""
    scaled = (value[..., None] - mixture.mean) * jnp.exp(-mixture.log_std)
    normal = -0.5 * jnp.square(scaled) - mixture.log_std - np.float32(0.5 * np.log(2 * np.pi))
    return jax.nn.logsumexp(mixture.log_prob + normal, -1)


def draw(mixture: Mixture, temperature: Array | float, uniform: Array, normal: Array) -> Array:
    """Draws a value [.., Z] with given random numbers: uniform [.., Z] from 0 to 1, normal [.., Z].

    The component is the first whose cumulated probability reaches `uniform`. With a temperature tau, the logits of the
    components are divided by tau, and the deviations are multiplied by sqrt(tau).
    """
    chosen = component(mixture, temperature, uniform)[..., None]
    mean, log_std = (jnp.take_along_axis(x, chosen, -1)[..., 0] for x in (mixture.mean, mixture.log_std))
    return mean + jnp.exp(log_std) * normal * jnp.sqrt(temperature)


def component(mixture: Mixture, temperature: Array | float, uniform: Array) -> Array:
    """Returns the index [.., Z] of the component that `draw` chooses."""
    cumulated = jnp.cumsum(jax.nn.softmax(mixture.log_prob / temperature), -1)
    # The sum of all may be below 1 by rounding: the last component is chosen then.
    return jnp.sum(cumulated[..., :-1] < uniform[..., None], -1)


def sample(key: Array, mixture: Mixture, temperature: Array | float = 1.0) -> Array:
    """Draws a value [.., Z] at a temperature."""
    uniform_key, normal_key = jax.random.split(key)
    shape = mixture.mean.shape[:-1]
    return draw(mixture, temperature, jax.random.uniform(uniform_key, shape), jax.random.normal(normal_key, shape))
