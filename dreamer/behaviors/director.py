"""Director (Hafner et al. 2022): a manager chooses goals for a worker, which learns in dreams to reach them.

A goal autoencoder compresses the deterministic part of the model's states to a short code. Every K steps the manager
chooses a code, which the decoder turns into a goal; the worker acts to reach it. The manager is rewarded with the
reward of the environment, and for states that the autoencoder does not know well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer.dreaming import director, hierarchy, judged
from dreamer.dreaming.director import Nets, beside, choose
from dreamer.errors import UserError
from dreamer.fields import at_least, between, check_bound, check_bounds
from dreamer.interfaces import (
    Array,
    Ask,
    Behavior,
    Dream,
    Extra,
    Hyper,
    Key,
    Losses,
    Metrics,
    Mode,
    Obs,
    Params,
    Replayed,
    State,
    Variables,
)  # fmt: skip
from dreamer.nets import predictors
from dreamer.nets.adapters import from_flax
from dreamer.nets.goals import CodeHead, GoalDecoder
from dreamer.nets.heads import ActorHead
from dreamer.ops import action_dist
from dreamer.ops.action_dist import ActionDist
from dreamer.ops.keys import named_keys
from dreamer.spaces import Spec

sg = jax.lax.stop_gradient
GOAL = "goal"  # the command
CRITICS = ("extrinsic", "exploration", "worker")
TRACED = (
    "lam", "extrinsic_scale", "exploration_scale", "manager_entropy", "worker_entropy", "kl_target", "slow_rate",
    "minstd", "maxstd",
)  # fields of Config that are in hyper


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of Director."""

    name: str = "director"
    "module in dreamer.behaviors, or a dotted module of your own"
    units: Annotated[int, at_least(1)] = 64
    "width of the MLPs of autoencoder, manager, worker and critics; the source has 512"
    layers: Annotated[int, at_least(0)] = 4
    "hidden layers of these MLPs"
    steps: Annotated[int, at_least(1)] = 8
    "K, steps for which the worker keeps a goal"
    imagine_length: Annotated[int, at_least(1)] = 16
    "H, steps dreamed from each replayed state; a multiple of `steps`"
    groups: Annotated[int, at_least(1)] = 8
    "one-hots in the code of a goal"
    classes: Annotated[int, at_least(2)] = 8
    "classes of each of these one-hots"
    unimix: Annotated[float, between(0, 1)] = 0.01
    "share of the uniform distribution mixed into the manager and a discrete worker"
    minstd: Annotated[float, at_least(1e-4)] = 0.03
    "smallest standard deviation of a continuous worker"
    maxstd: float = 1.0
    "largest standard deviation of a continuous worker"
    critic: Literal["symlog", "twohot"] = "symlog"
    "how critics learn: squared error of the symlog, as in the source, or two-hot classes, as in DreamerV3"
    bins: Annotated[int, at_least(3)] = 255
    "K, two-hot bins of the critics"
    lam: Annotated[float, between(0, 1)] = 0.95
    "lambda of the returns"
    extrinsic_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the environment's reward for the manager"
    exploration_scale: Annotated[float, at_least(0)] = 0.1
    "weight of the autoencoder's error as a reward for the manager"
    manager_entropy: Annotated[float, between(0, 1)] = 0.5
    "entropy of each one-hot of the manager, relative to the largest, to which the weight of its entropy adapts"
    worker_entropy: Annotated[float, between(0, 1)] = 0.5
    "entropy of the worker, relative to the largest, to which the weight of its entropy adapts"
    kl_target: Annotated[float, at_least(0)] = 10.0
    "nats of the code to which the weight of the autoencoder's KL adapts; less than groups * ln(classes)"
    slow_every: Annotated[int, at_least(1)] = 100
    "updates between two moves of the slow critics"
    slow_rate: Annotated[float, between(0, 1)] = 1.0
    "share of the critics that moves into the slow critics"

    def __post_init__(self) -> None:
        check_bounds(self)
        check_bound("maxstd", self.maxstd, at_least(self.minstd))
        if self.imagine_length % self.steps:
            below = self.imagine_length // self.steps * self.steps or self.steps
            raise UserError(
                f"imagine_length must be a multiple of steps, {self.steps}, such as {below}, not {self.imagine_length}"
            )
        if self.kl_target >= (most := self.groups * math.log(self.classes)):
            raise UserError(f"kl_target must be less than groups * ln(classes), {most:.3g}, not {self.kl_target}")
        if self.bins % 2 == 0:
            raise UserError(f"bins must be odd, not {self.bins}")


class Held(NamedTuple):
    """The carry of `act`. goal [E, G] float32: the goal of the worker | age [E] int32: for how many rows it is held"""

    goal: Array
    age: Array


def make(
    config: Config, spec: Spec, *, feat_width: int, deter_width: int = 0, dtype: Any = jnp.float32,
    horizon: float = 333.0, contdisc: bool = True,
) -> Behavior:  # fmt: skip
    """Makes Director for features [.., feat_width], whose goals are their first `deter_width` entries; 0: all of them.

    contdisc: whether the world model's `cont` already contains the discount 1 - 1 / horizon
    """
    width = deter_width or feat_width
    nets, count = make_nets(config, spec, width, dtype), config.imagine_length // config.steps

    def init(key: Key) -> Variables:
        params = _init_params(config, nets, key, feat_width, width)
        # A copy, so that the two never share a buffer that may be donated.
        slow = jax.tree.map(jnp.copy, {name: params[f"value_{name}"] for name in CRITICS})
        weights = {"kl": jnp.ones(()), "manager": jnp.ones(config.groups), "worker": jnp.ones(())}
        norms = {name: judged.return_norm().init() for name in CRITICS}
        norms |= {f"{name}_advantage": judged.advantage_norm().init() for name in ("manager", "worker")}
        numbers = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        hyper = {name: jnp.float32(numbers[name]) for name in TRACED} | {"discount": jnp.float32(1 - 1 / horizon)}
        extra = {"updates": jnp.int32(0), "slow": slow, "weights": weights, "norms": norms}
        return Variables(params, extra, hyper)

    def initial(envs: int) -> Held:
        return Held(jnp.zeros((envs, width)), jnp.zeros(envs, jnp.int32))

    def act(
        v: Variables, key: Key, dream: Dream, state: State, carry: Held, ask: Ask, mode: Mode
    ) -> tuple[Array, Held]:
        keys, feat = jax.random.split(key), dream.feat(state)
        age = jnp.where(ask.is_first, 0, carry.age)
        new = choose(nets, v.params, None if mode == "mode" else keys[0], feat)[1]
        goal = jnp.where((age % config.steps == 0)[:, None], new, carry.goal)
        if GOAL in ask.command:
            chex.assert_shape(ask.command[GOAL], (None, feat_width))
            goal = ask.command[GOAL][:, :width].astype(jnp.float32)
        outs, actions = nets.worker.apply(v.params["worker"], beside(feat, goal)), actions_of(config, spec, v.hyper)
        action = actions.mode(outs, ask.allowed) if mode == "mode" else actions.sample(keys[1], outs, ask.allowed)
        return action, Held(goal, age + 1)

    def loss(
        v: Variables, key: Key, dream: Dream, start: State, replayed: Replayed
    ) -> tuple[Losses, tuple[Extra, Metrics]]:
        keys, frozen = named_keys(key, "dream", "goal", "novelty"), sg(v.params)
        actions = actions_of(config, spec, v.hyper)
        blocks = director.dream_of(nets, actions, frozen, keys["dream"], dream, start, count, spec.masked)
        predicted = sg(dict(dream.predict(blocks.feat)))
        # The manager's discount is one per block, so the chance to continue is needed without any.
        cont = jnp.minimum(predicted["cont"] / v.hyper["discount"], 1.0) if contdisc else predicted["cont"]
        state = blocks.feat[..., :width].astype(jnp.float32)
        code, _ = director.code_of(nets, frozen["enc"], keys["novelty"], state)
        novelty = hierarchy.novelty(nets.dec.apply(frozen["dec"], code), state)
        rewards = {"extrinsic": predicted["reward"][:, 1:], "exploration": novelty[:, 1:]}
        parts = [
            director.train_autoencoder(nets, v, keys["goal"], replayed.feat[..., :width]),
            director.train_manager(nets, v, blocks, cont, rewards),
            director.train_worker(nets, actions, v, blocks, cont, state, predicted.get("allowed")),
        ]
        metrics = {"dream/reward": predicted["reward"].mean(), "dream/cont": predicted["cont"].mean()}
        return director.joined(parts, v.extra, metrics)

    def refresh(v: Variables) -> Extra:
        rate = jnp.where(v.extra["updates"] % config.slow_every == 0, v.hyper["slow_rate"], 0.0)
        fast = {name: v.params[f"value_{name}"] for name in CRITICS}
        return {**v.extra, "slow": jax.tree.map(lambda f, s: rate * f + (1 - rate) * s, fast, v.extra["slow"])}

    def pictures(v: Variables, key: Key, dream: Dream, feat: Array, obs: Obs) -> Mapping[str, Array]:
        if not deter_width:
            return {}
        return director.pictures(nets, spec, v.params, key, dream, feat, obs, deter_width)

    scales = dict.fromkeys(("goal", "manager", "worker", *(f"value/{name}" for name in CRITICS)), 1.0)
    needs = frozenset({"reward", "cont"} | ({"allowed"} if spec.masked else set()))
    return Behavior(init, initial, act, loss, refresh, scales, needs, pictures)


def make_nets(config: Config, spec: Spec, width: int, dtype: Any) -> Nets:
    """Makes all networks, for goals of `width` numbers."""
    size, code = (config.layers, config.units), (config.groups, config.classes)
    if config.critic == "twohot":
        critic = predictors.scalar(*size, config.bins, dtype)
    else:
        critic = predictors.symlog_scalar(*size, dtype)
    return Nets(
        enc=from_flax(CodeHead(*size, *code, dtype=dtype)),
        dec=from_flax(GoalDecoder(*size, width, dtype)),
        manager=from_flax(CodeHead(*size, *code, outscale=0.01, dtype=dtype)),
        worker=from_flax(ActorHead(*size, spec.action.onehots, spec.action.continuous, dtype=dtype)),
        critics=dict.fromkeys(CRITICS, critic),
        steps=config.steps,
        classes=config.classes,
        unimix=config.unimix,
    )


def _init_params(config: Config, nets: Nets, key: Key, feat_width: int, width: int) -> Params:
    keys = named_keys(key, "enc", "dec", "manager", "worker", *CRITICS)
    feat, both = jnp.zeros((1, feat_width)), jnp.zeros((1, feat_width + width))
    params = {
        "enc": nets.enc.init(keys["enc"], jnp.zeros((1, width))),
        "dec": nets.dec.init(keys["dec"], jnp.zeros((1, config.groups, config.classes))),
        "manager": nets.manager.init(keys["manager"], feat),
        "worker": nets.worker.init(keys["worker"], both),
    }
    critics = {f"value_{name}": one.init(keys[name], both if name == "worker" else feat)
               for name, one in nets.critics.items()}  # fmt: skip
    return params | critics


def actions_of(config: Config, spec: Spec, hyper: Hyper) -> ActionDist:
    """Returns the distribution of the worker's actions."""
    return action_dist.make(
        spec.action.classes, spec.action.continuous, unimix=config.unimix, minstd=hyper["minstd"],
        maxstd=hyper["maxstd"],
    )  # fmt: skip
