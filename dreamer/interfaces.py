"""The contracts of the framework. Read this first.

Axes: B replay sequences, T replay time, E environments, N dream starts, H horizon, D deter, S stoch
groups, C classes, F feat, A action width, K two-hot bins. Batch-major everywhere; time comes
to the front inside `ops/scan.py` only.

A component is a record of pure functions: `vmap` over seeds, `scan` over updates, sharding, donation and
testing one function alone follow from that. Configs stop at the `make` that builds the record.

A latent is a world model's representation of one row. A state is all it needs to continue from a row: for an RSSM the
two are the same, for a transformer the state is a cache of many rows. Replay stores packed latents; dreams and acting
carry states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

from dreamer.spaces import Space, Spec
from dreamer.steps import Batch

Array = jax.Array
Key = jax.Array
Params = Any  # pytree of float32 arrays, changed by gradients
Extra = Any  # pytree of arrays, changed by rules: normalisers, slow copies, a search distribution, counters
Hyper = Any  # {name: []} float32, constant in an update: a population may vary them without recompiling
Latent = Any  # pytree of arrays [.., ...] that one world model understands
State = Any  # pytree of arrays [B, ...], likewise
Obs = Mapping[str, Array]
Losses = dict[str, Array]
Metrics = dict[str, Array]
Mode = Literal["collect", "sample", "mode"]

__all__ = [
    "Agent", "Array", "Ask", "Batch", "Behavior", "Carry", "Dream", "Extra", "Hyper", "Key", "Latent", "Learned",
    "Losses", "Metrics", "Mode", "Network", "Obs", "Params", "Replayed", "Space", "Spec", "State", "TrainState",
    "Update", "Variables", "WorldModel",
]  # fmt: skip


class Network(NamedTuple):
    """A parametric function, made from Flax or Haiku (`nets/adapters.py`).

    init(key, *inputs) -> params        apply(params, *inputs) -> outputs
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


class Variables(NamedTuple):
    """The variables of a component.

    params: changed by gradients | extra: changed by rules | hyper {name: []}: numbers that only a launcher changes
    """

    params: Params
    extra: Extra = ()
    hyper: Hyper = ()


class Learned(NamedTuple):
    """The results of `WorldModel.loss` besides its losses.

    latent: posterior latents [B, T, ..], gradients flow through them | extra: the next extra | metrics {name: []}
    surprise [B, T]: how badly each row was predicted, for a prioritised replay; None: the sum of the scaled losses
    """

    latent: Latent
    extra: Extra
    metrics: Metrics
    surprise: Array | None = None


class WorldModel(NamedTuple):
    """A model of the environment in latent space. `v` are its Variables.

    init(key) -> Variables
    initial(batch_size) -> state [batch_size, ..], before an episode's first row
    observe(v, key, state [B, ..], obs [B, T, ..], prev_action [B, T, A], is_first [B, T])
        -> state [B, ..] after the last row, posterior latents [B, T, ..]
        where is_first, the incoming state and prev_action are dropped
    starts(v, latent [B, T, ..], prev_action [B, T, A], is_first [B, T]) -> state [B * T, ..], row-major
        where dreams begin; a window over several rows never crosses the border of an episode
    imagine(v, key, state [N, ..], action [N, A]) -> state [N, ..], one prior step
    latent(state [N, ..]) -> latent [N, ..]
    feat(latent) -> [.., F]
    predict(v, feat [.., F]) -> {"reward", "cont": [..] float32, "allowed": [.., n] bool}, only those that it learns;
        reward and cont are expectations, allowed marks the entries of an action's one-hots that may be chosen
    loss(v, key, state [B, ..], prev_action [B, T, A], batch [B, T]) -> losses {name: [B, T']}, T' <= T, Learned
    decode(v, latent [..]) -> {k: [.., ..]} in the units of the observation, or {} when there is nothing to show
    pack(latent) -> {name: array}, the lossless form in which replay stores latents; {} to store none
    unpack({name: array [B, ..]}) -> state [B, ..]
    storage: {name: Space} of `pack`
    scales: {loss name: weight in the total}
    """

    init: Callable[[Key], Variables]
    initial: Callable[[int], State]
    observe: Callable[..., tuple[State, Latent]]
    starts: Callable[[Variables, Latent, Array, Array], State]
    imagine: Callable[[Variables, Key, State, Array], State]
    latent: Callable[[State], Latent]
    feat: Callable[[Latent], Array]
    predict: Callable[[Variables, Array], Mapping[str, Array]]
    loss: Callable[..., tuple[Losses, Learned]]
    decode: Callable[[Variables, Latent], Mapping[str, Array]]
    pack: Callable[[Latent], Mapping[str, Array]]
    unpack: Callable[[Mapping[str, Array]], State]
    storage: Mapping[str, Space]
    scales: Mapping[str, float]


class Dream(NamedTuple):
    """A world model with its variables closed over: all that a behavior may see.

    imagine(key, state [N, ..], action [N, A]) -> state | feat(state) -> [N, F]
    predict(feat [.., F]) -> {"reward", ..}, see `WorldModel.predict` | decode(state) -> {k: [N, ..]}
    """

    imagine: Callable[[Key, State, Array], State]
    feat: Callable[[State], Array]
    predict: Callable[[Array], Mapping[str, Array]]
    decode: Callable[[State], Mapping[str, Array]]


class Replayed(NamedTuple):
    """The real sequences behind the dream's starts: N = B * T, row-major.

    rows [B, T]: the trained rows with their actions, no latents | feat [B, T, F] with its gradient
    """

    rows: Batch
    feat: Array


class Ask(NamedTuple):
    """The inputs of a behavior besides the observation, when it chooses an action.

    is_first [E] bool | allowed [E, n] bool, None in an environment without action masks
    command {name: [E, ..]}: the task of the behavior, such as a goal, the feat [E, F] to reach
    """

    is_first: Array
    allowed: Array | None = None
    command: Mapping[str, Array] = {}


class Behavior(NamedTuple):
    """A component that chooses actions and learns from dreams. `v` are its Variables.

    init(key) -> Variables
    initial(envs) -> carry [E, ..] from row to row, () for most
    act(v, key, dream, state [E, ..], carry [E, ..], ask, mode) -> action [E, A], carry
        mode "collect": for training, with exploration | "sample": for evaluation | "mode": the most likely action
    loss(v, key, dream, start [N, ..], replayed) -> losses {name: [..]}, (extra, metrics)
        losses are {} for a behavior that learns without gradients
    refresh(v) -> extra, after each optimizer step (the slow critic)
    scales: {loss name: weight in the total}
    needs: the predictions of the world model that it uses
    """

    init: Callable[[Key], Variables]
    initial: Callable[[int], Any]
    act: Callable[..., tuple[Array, Any]]
    loss: Callable[..., tuple[Losses, tuple[Extra, Metrics]]]
    refresh: Callable[[Variables], Extra]
    scales: Mapping[str, float]
    needs: frozenset[str] = frozenset({"reward", "cont"})


class TrainState(NamedTuple):
    """All that training changes, as one pytree.

    step [] int32, updates done | key | params, extra {"world_model", "behavior"} | opt_state
    hyper {"world_model", "behavior", "scale": {loss name: []}, "learning_rate": {prefix: []}}: traced, so that settings
    that differ only there share one compiled program
    """

    step: Array
    key: Key
    params: dict[str, Params]
    extra: dict[str, Extra]
    hyper: dict[str, Hyper]
    opt_state: Any


class Update(NamedTuple):
    """The results of an update besides the next state: arrays on the device, or numpy arrays once fetched to the host.

    latent {name: [B, T, ..]}: packed posteriors to store back | metrics {name: []}
    surprise [B, T] float32: how badly each row was predicted, None unless the agent was made with `priorities`
    """

    latent: Mapping[str, Any]
    metrics: Mapping[str, Any]
    surprise: Any = None


class Carry(NamedTuple):
    """The carry of acting from row to row: state [E, ..] | prev_action [E, A] | behavior [E, ..], its own carry."""

    state: State
    prev_action: Array
    behavior: Any = ()


class Agent(NamedTuple):
    """World model + behavior + optimizers, pure. `variables` are {"world_model", "behavior"}: Variables.

    init(key) -> TrainState
    variables(state) -> {part: Variables}
    initial_carry(envs) -> Carry
    update(state, batch) -> state, Update
    act(variables, key, carry, obs {k: [E, ..]}, is_first [E], mode="sample", command={}) -> carry, action [E, A]
    report(state, batch) -> {"truth/k", "dream/k": [B, T, ..]}, the first half observed, the rest dreamed open-loop
    encode(variables, key, obs {k: [E, ..]}) -> feat [E, F] of observations without a past, such as goals
    pack(state [E, ..]) -> {name: [E, ..]}, the lossless form in which replay stores the latents of states
    storage: {name: Space} of it | scales: {loss name: weight in the total} of both parts
    world_model, behavior: the parts, open to dreaming, play, export and diagnosis
    """

    init: Callable[[Key], TrainState]
    variables: Callable[[TrainState], dict[str, Variables]]
    initial_carry: Callable[[int], Carry]
    update: Callable[[TrainState, Batch], tuple[TrainState, Update]]
    act: Callable[..., tuple[Carry, Array]]
    report: Callable[[TrainState, Batch], dict[str, Array]]
    encode: Callable[..., Array]
    pack: Callable[[State], Mapping[str, Array]]
    storage: Mapping[str, Space]
    scales: Mapping[str, float]
    world_model: WorldModel
    behavior: Behavior
