"""A network of your own: an encoder of two dense layers, written with jax alone.

    dreamer train probe --env probes:both --agent.world-model.encoder docs.own_network:make

An encoder is a function `make` of the observations' spaces and the sizes in the world model's config. It returns a
`Network`: how parameters begin, and how they turn observations {k: [.., ...]} into tokens [.., E].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, Key, Network, Obs, Params
from dreamer.spaces import Space


def make(spaces: Mapping[str, Space], *, units: int, symlog: bool, dtype: Any, **sizes: Any) -> Network:
    """The encoder of all keys. sizes: depth, mults, layers and kernel, which it does not use."""
    width = sum(space.width for space in spaces.values())

    def init(key: Key, obs: Obs) -> Params:
        keys = jax.random.split(key)
        return {"first": dense(keys[0], width, units), "second": dense(keys[1], units, units)}

    def apply(params: Params, obs: Obs) -> Array:
        x = jnp.concatenate([flat(spaces[name], obs[name]) for name in sorted(spaces)], -1)
        if symlog:
            x = jnp.sign(x) * jnp.log1p(jnp.abs(x))
        for layer in (params["first"], params["second"]):
            x = jax.nn.silu(x.astype(dtype) @ layer["kernel"].astype(dtype))
        return x

    return Network(init, apply)


def dense(key: Key, inputs: int, outputs: int) -> Params:
    """The parameters of a layer: a kernel [inputs, outputs] that keeps the size of its input."""
    return {"kernel": jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(inputs)}


def flat(space: Space, x: Array) -> Array:
    """One observation [.., *shape] as numbers [.., n]: classes as one-hots, images from 0 to 1."""
    lead = x.shape[: x.ndim - len(space.shape)]
    if space.discrete:
        x = jax.nn.one_hot(x, space.classes)
    elif space.image:
        low, high = space.ends
        x = (x.astype(jnp.float32) - low) / (high - low)
    return x.reshape(*lead, -1)
