"""The contracts of the framework. Read this first.

Axes: B replay sequences, T replay time, E environments, N dream starts, H horizon, D deter, S stoch
groups, C classes, F = D + S*C feat, A action width, K two-hot bins. Batch-major everywhere; time comes
to the front inside `ops/scan.py` only.

A component is a record of pure functions: `vmap` over seeds, `scan` over updates, sharding, donation and
testing one function alone follow from that. Configs stop at the `make` that builds the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from dreamer.spaces import Space, Spec
from dreamer.steps import Batch

Array = jax.Array
Key = jax.Array
Params = Any  # pytree of float32 arrays, changed by gradients
Extra = Any  # pytree of arrays, changed by rules: normalisers, slow copies, traced hyperparameters
Latent = Any  # pytree of arrays [.., ...] that one world model understands
Obs = Mapping[str, Array]
Losses = dict[str, Array]
Metrics = dict[str, Array]

PRIORITY = "replay/priority"  # beside the latents that an update gives: how badly each row was predicted

__all__ = [
    "PRIORITY", "Agent", "Array", "Batch", "Behavior", "Carry", "Dream", "Extra", "Key", "Latent", "Losses", "Metrics",
    "Network", "Obs", "Params", "Replayed", "Space", "Spec", "TrainState", "Variables", "WorldModel", "WorldModelOut",
]  # fmt: skip


class Network(NamedTuple):
    """A parametric function, made from Flax or Haiku alike (`nets/adapters.py`).

    init(key, *inputs) -> params        apply(params, *inputs) -> outputs
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


class Variables(NamedTuple):
    """What a component owns: `params` move by gradients, `extra` by rules."""

    params: Params
    extra: Extra


class WorldModelOut(NamedTuple):
    """What `WorldModel.loss` gives besides its losses.

    latent: posterior latents [B, T, ..], gradients flow through them | extra: the next one | metrics {name: []}
    """

    latent: Latent
    extra: Extra
    metrics: Metrics


class WorldModel(NamedTuple):
    """A model of the environment in latent space.

    init(key) -> Variables
    initial(batch_size) -> latent [batch_size, ..], the state before an episode's first row
    observe(params, key, latent [B, ..], obs [B, T, ..], prev_action [B, T, A], is_first [B, T]) -> latent [B, T, ..]
        posterior latents; where is_first, the incoming latent and prev_action are dropped
    imagine(params, key, latent [N, ..], action [N, A]) -> latent [N, ..], one prior step
    feat(latent) -> [.., F]
    predict(params, feat [.., F]) -> reward [..], cont [..] float32, expectations
    loss(params, extra, key, latent [B, ..], prev_action [B, T, A], batch [B, T])
        -> losses {name: [B, T]}, WorldModelOut
    decode(params, latent [..]) -> {k: [.., ..]} in the units of the observation, or {} when there is nothing to show
    pack(latent) -> {name: array}, unpack({name: array}) -> latent: the lossless form in which replay stores latents
    storage: {name: Space} of `pack`
    scales: {loss name: weight in the total}
    allowed(params, feat [.., F]) -> [.., n] bool, which entries of an action's one-hots are allowed as far as the model
        can tell; None in an environment without action masks
    """

    init: Callable[[Key], Variables]
    initial: Callable[[int], Latent]
    observe: Callable[..., Latent]
    imagine: Callable[..., Latent]
    feat: Callable[[Latent], Array]
    predict: Callable[[Params, Array], tuple[Array, Array]]
    loss: Callable[..., tuple[Losses, WorldModelOut]]
    decode: Callable[[Params, Latent], Mapping[str, Array]]
    pack: Callable[[Latent], Mapping[str, Array]]
    unpack: Callable[[Mapping[str, Array]], Latent]
    storage: Mapping[str, Space]
    scales: Mapping[str, float]
    allowed: Callable[[Params, Array], Array] | None = None


class Dream(NamedTuple):
    """A world model with its parameters closed over: all that a behavior may see.

    imagine(key, latent [N, ..], action [N, A]) -> latent | feat(latent) -> [.., F] | predict(feat) -> reward, cont
    allowed(feat) -> [.., n] bool, None in an environment without action masks
    """

    imagine: Callable[[Key, Latent, Array], Latent]
    feat: Callable[[Latent], Array]
    predict: Callable[[Array], tuple[Array, Array]]
    allowed: Callable[[Array], Array] | None = None


class Replayed(NamedTuple):
    """The real sequences behind the dream's starts: N = B * T, row-major.

    feat [B, T, F] with its gradient | reward, is_last, is_terminal [B, T]
    """

    feat: Array
    reward: Array
    is_last: Array
    is_terminal: Array


class Behavior(NamedTuple):
    """What chooses actions and learns from dreams.

    init(key) -> Variables
    act(params, key, dream, latent [E, ..], mode "sample" | "mode") -> action [E, A]
        also allowed [E, n] bool, by name, in an environment with action masks
    loss(params, extra, key, dream, start [N, ..], replayed) -> losses {name: [..]}, (extra, metrics)
    refresh(params, extra) -> extra, applied after each optimizer step (the slow critic)
    scales: {loss name: weight in the total}
    """

    init: Callable[[Key], Variables]
    act: Callable[..., Array]
    loss: Callable[..., tuple[Losses, tuple[Extra, Metrics]]]
    refresh: Callable[[Params, Extra], Extra]
    scales: Mapping[str, float]


class TrainState(NamedTuple):
    """All that training changes, one pytree.

    step [] int32, updates done | key | params and extra {"world_model", "behavior"} | opt_state
    extra["optimizer"]["learning_rate"] and each component's extra["hyper"] are traced, so that settings
    that differ only there share one compiled program.
    """

    step: Array
    key: Key
    params: dict[str, Params]
    extra: dict[str, Extra]
    opt_state: Any


class Carry(NamedTuple):
    """What acting remembers from row to row: latent [E, ..] | prev_action [E, A]."""

    latent: Latent
    prev_action: Array


class Agent(NamedTuple):
    """World model + behavior + optimizer, pure.

    init(key) -> TrainState
    initial_carry(envs) -> Carry
    update(state, batch) -> state, latent {name: [B, T, ..]} packed posteriors to store back, metrics {name: []};
        an agent made with `priorities` puts PRIORITY [B, T] float32 beside the latents
    act(params, key, carry, obs {k: [E, ..]}, is_first [E], mode) -> carry, action [E, A]
    report(state, batch) -> {"truth/k", "dream/k": [B, T, ..]}, the first half observed, the rest dreamed open-loop
    pack(latent) -> {name: array}, the lossless form in which replay stores latents | storage: {name: Space} of it
    """

    init: Callable[[Key], TrainState]
    initial_carry: Callable[[int], Carry]
    update: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, Array], Metrics]]
    act: Callable[..., tuple[Carry, Array]]
    report: Callable[[TrainState, Batch], dict[str, Array]]
    pack: Callable[[Latent], Mapping[str, Array]]
    storage: Mapping[str, Space]
