"""The contracts of the framework. Read this first.

Axes: B replay sequences, T replay time, E environments, N dream starts, H horizon, D deter, S stoch groups, C classes,
F feat, A action width, K two-hot bins. Arrays are batch-major everywhere; only `ops/scan.py` moves time to the front.

A component is a NamedTuple of pure functions. Therefore `vmap` over seeds, `scan` over updates, sharding, donation and
tests of one function alone are possible. Only the `make` that builds a component reads a Config.

A row is one time step of one environment (see `steps.py`). A latent is a world model's representation of one row. A
state is all that the model needs to continue from a row: in an RSSM, state and latent are the same; in a transformer,
the state is a cache of many rows. Replay stores packed latents; dreaming and acting pass states from row to row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax

from dreamer.spaces import Space, Spec
from dreamer.steps import Batch, Step

Array = jax.Array
Key = jax.Array
Params = Any  # pytree of float32 arrays, changed by gradients
Extra = Any  # pytree of arrays, changed by rules: normalisers, slow copies, a search distribution, counters
Hyper = Any  # {name: []} float32, constant in an update: a population may vary them without recompiling
Latent = Any  # pytree of arrays [.., ...] that one world model understands
State = Any  # pytree of arrays [B, ...] that one world model understands
Obs = Mapping[str, Array]
Losses = dict[str, Array]
Metrics = dict[str, Array]
Mode = Literal["collect", "sample", "mode"]

__all__ = [
    "Agent", "Array", "Ask", "Batch", "Behavior", "Carry", "Dream", "Extra", "Hyper", "JaxEnv", "Key", "Latent",
    "Learned", "Losses", "Metrics", "Mode", "Network", "Obs", "Params", "Replayed", "Space", "Spec", "State", "Step",
    "TrainState", "Update", "Variables", "WorldModel",
]  # fmt: skip


class Network(NamedTuple):
    """A parametric function, made from Flax or Haiku (`nets/adapters.py`).

    init(key, *inputs) -> params        apply(params, *inputs) -> outputs
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


class Variables(NamedTuple):
    """The variables of a component.

    params: changed by gradients | extra: changed by rules | hyper {name: []}: numbers that are constant in an update
    An extra with the entry "updates" counts the updates of the run in it: `--init-from` does not take it over.
    """

    params: Params
    extra: Extra = ()
    hyper: Hyper = ()


class Learned(NamedTuple):
    """The results of `WorldModel.loss` besides its losses.

    latent: the posterior latents [B, T, ..], with gradients | extra: the next value of v.extra | metrics {name: []}
    surprise [B, T]: how badly each row was predicted, for a prioritised replay; None: use the sum of the scaled losses
    """

    latent: Latent
    extra: Extra
    metrics: Metrics
    surprise: Array | None = None


class WorldModel(NamedTuple):
    """A model of the environment in latent space. `v` are its Variables.

    init(key) -> Variables
    initial(batch_size) -> state [batch_size, ..] before the first row of an episode
    observe(v, key, state [B, ..], obs [B, T, ..], prev_action [B, T, A], is_first [B, T])
        -> state [B, ..] after the last row, posterior latents [B, T, ..]
        in rows with is_first set, the incoming state and prev_action are ignored
    starts(v, latent [B, T, ..], prev_action [B, T, A], is_first [B, T]) -> state [B * T, ..], row-major:
        the states from which dreams begin; a state that covers several rows covers rows of one episode only
    imagine(v, key, state [N, ..], action [N, A]) -> state [N, ..] of the next row, sampled from the prior
    latent(state [N, ..]) -> latent [N, ..]
    feat(latent) -> [.., F]
    predict(v, feat [.., F]) -> {"reward", "cont": [..] float32, "allowed": [.., n] bool}, those that the model learns;
        reward and cont are expectations; allowed marks the entries of an action's one-hots that may be chosen
    loss(v, key, state [B, ..], prev_action [B, T, A], batch [B, T])
        -> (losses {name: [B, T']} with T' <= T, Learned)
    decode(v, latent [..]) -> {k: [.., ..]} in the units of the observation; {} if the model reconstructs nothing
    pack(latent) -> {name: array}, the lossless form in which replay stores latents; {}: replay stores no latents
    unpack({name: array [B, ..]}) -> state [B, ..]
    storage: {name: Space}, one for each array of `pack`
    scales: {loss name: weight of the loss in the total}
    pictures(v, obs {k: [B, T, ..]}) -> {name: [B, T, h, w, 1 or 3]} from 0 to 255: how the model sees observations,
        for reports; {} by default
    deter_width: D, the width of the deterministic part of features, their first entries; 0: there is no such part
    from_deter(v, deter [.., D]) -> latent [..]: the most likely latent with this deterministic part; only if D > 0
    reads: names in `storage`; `loss` also gets these packed latents as they were stored with its rows, in
        `batch.latent` {name: [B, T, ..]}, which is {} without context rows
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
    pictures: Callable[[Variables, Obs], Mapping[str, Array]] = lambda v, obs: {}
    deter_width: int = 0
    from_deter: Callable[[Variables, Array], Latent] = lambda v, deter: ()
    reads: frozenset[str] = frozenset()


class Dream(NamedTuple):
    """The functions of a world model that a behavior may call; the model's variables are already filled in.

    imagine(key, state [N, ..], action [N, A]) -> state | feat(state) -> [N, F]
    predict(feat [.., F]) -> {"reward", ..}, see `WorldModel.predict` | decode(state) -> {k: [N, ..]}
    observe(key, state [N, ..], obs {k: [N, ..]}, prev_action [N, A], is_first [N]) -> state after one more row each,
        for a behavior that tries itself in environments of its own
    draw(deter [.., D]) -> {k: [.., ..]}: the observations of `WorldModel.from_deter`; {} if the model has no such part
    """

    imagine: Callable[[Key, State, Array], State]
    feat: Callable[[State], Array]
    predict: Callable[[Array], Mapping[str, Array]]
    decode: Callable[[State], Mapping[str, Array]]
    observe: Callable[..., State] | None = None
    draw: Callable[[Array], Mapping[str, Array]] = lambda deter: {}


class Replayed(NamedTuple):
    """Replayed sequences. The N = B * T dreams of a batch start from their rows, in row-major order.

    rows [B, T]: the rows that are trained on; `rows.latent` is what the world model `reads`
    feat [B, T, F]: their features, with gradients
    """

    rows: Batch
    feat: Array


class Ask(NamedTuple):
    """Further inputs of `Behavior.act`: flags and masks from the environment, and a task.

    is_first [E] bool | allowed [E, n] bool: the action mask; None: the environment has no action masks
    command {name: [E, ..]}: the task of the behavior, such as the features [E, F] of a goal to reach
    """

    is_first: Array
    allowed: Array | None = None
    command: Mapping[str, Array] = {}


class Behavior(NamedTuple):
    """A component that chooses actions and learns from dreams. `v` are its Variables.

    init(key) -> Variables
    initial(envs) -> carry [E, ..], passed from one row to the next; () for most behaviors
    act(v, key, dream, state [E, ..], carry [E, ..], ask, mode) -> action [E, A], carry
        ask: an Ask, with is_first, the action mask and the task
        mode "collect": for training, with exploration | "sample": for evaluation | "mode": the most likely action
    loss(v, key, dream, start [N, ..], replayed) -> losses {name: [..]}, (extra, metrics)
        start: the states from which dreams begin | replayed: a Replayed, the replayed rows of these states
        extra: the next value of v.extra | losses are {} for a behavior that learns without gradients
    refresh(v) -> extra: the next value of v.extra after an optimizer step, for example with a newer slow critic
    scales: {loss name: weight of the loss in the total}
    needs: names of the world-model predictions that this behavior uses
    pictures(v, key, dream, feat [B, T, F], obs {k: [B, T, ..]}) -> {name: [B, T, h, w, 1 or 3]} from 0 to 255: what the
        behavior has in mind at these rows, for reports; {} by default
    """

    init: Callable[[Key], Variables]
    initial: Callable[[int], Any]
    act: Callable[..., tuple[Array, Any]]
    loss: Callable[..., tuple[Losses, tuple[Extra, Metrics]]]
    refresh: Callable[[Variables], Extra]
    scales: Mapping[str, float]
    needs: frozenset[str] = frozenset({"reward", "cont"})
    pictures: Callable[..., Mapping[str, Array]] = lambda v, key, dream, feat, obs: {}


class TrainState(NamedTuple):
    """Everything that training changes, as one pytree.

    step [] int32: the number of updates done | key: the random key of the run | opt_state: the optimizers' state
    params, extra: {"world_model", "behavior"}
    hyper: {"world_model", "behavior", "scale": {loss name: []}, "learning_rate": {prefix: []}}; these are traced, so
        that settings that differ only in hyper share one compiled program
    """

    step: Array
    key: Key
    params: dict[str, Params]
    extra: dict[str, Extra]
    hyper: dict[str, Hyper]
    opt_state: Any


class Update(NamedTuple):
    """The results of an update besides the next state: arrays on the device, or numpy arrays on the host.

    latent {name: [B, T, ..]}: the packed posterior latents, to be written back to the replay | metrics {name: []}
    surprise [B, T] float32: how badly each row was predicted; None: the agent was made without `priorities`
    """

    latent: Mapping[str, Any]
    metrics: Mapping[str, Any]
    surprise: Any = None


class Carry(NamedTuple):
    """What `Agent.act` passes from one row to the next.

    state [E, ..]: the world model's state | prev_action [E, A] | behavior [E, ..]: the behavior's own carry
    """

    state: State
    prev_action: Array
    behavior: Any = ()


class Agent(NamedTuple):
    """A world model, a behavior and optimizers, as pure functions.

    init(key) -> TrainState
    variables(state) -> {part: Variables} for "world_model" and "behavior", the first argument of act and encode
    initial_carry(envs) -> Carry
    update(state, batch) -> state, Update
    act(variables, key, carry, obs {k: [E, ..]}, is_first [E], mode="sample", command={}) -> carry, action [E, A]
    report(state, batch) -> {"truth/k", "dream/k": [B, T, ..]}; half of the T rows are observed, the rest is dreamed;
        and {"seen/name", "mind/name": [B, T, h, w, 1 or 3]}, the `pictures` of world model and behavior
    encode(variables, key, obs {k: [E, ..]}) -> feat [E, F] of observations that have no past, such as goals
    pack(state [E, ..]) -> {name: [E, ..]}, the lossless form in which replay stores the latents of states
    storage: {name: Space}, one for each array of `pack` | scales: {loss name: weight of the loss in the total}
    world_model, behavior: the parts, for uses such as dreaming, play, export and diagnosis
    reads: the names in `storage` that batches hold for all rows, see `WorldModel.reads`
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
    reads: frozenset[str] = frozenset()


class JaxEnv(NamedTuple):
    """An environment written in JAX, as pure functions of one environment. The caller makes many of them with `vmap`.

    spec: its observations and actions
    reset(key) -> env_state, row: begins an episode; the row has is_first set
    step(key, env_state, action [A]) -> env_state, row: the answer to the agent's action vector, see `spaces.Action`
        a row with is_last set is the true last observation; the caller resets the environment after it
    render(env_state) -> image uint8 [H, W, 3]; None: the environment cannot draw itself
    metrics(env_state) -> {name: []}: numbers of the current episode, read at its last row and logged as episode/NAME
        and eval/NAME; None: it has none

    A row is a Step without the axis E: obs {k: [..]} in the dtypes of `spec`, action [A] of zeros, reward [] float32,
    is_first, is_last, is_terminal [] bool. If spec.agents > 1, each array of a row, and the action, begins with an axis
    of that length. The env_state is a pytree of arrays of fixed shapes.
    """

    spec: Spec
    reset: Callable[[Key], tuple[Any, Step]]
    step: Callable[[Key, Any, Array], tuple[Any, Step]]
    render: Callable[[Any], Array] | None = None
    metrics: Callable[[Any], Mapping[str, Array]] | None = None
