"""Behaviour cloning: an actor that learns to take the actions of the replayed rows, from the posterior's features.

Other ways to learn from data can be compared with it: it reaches what a dataset gives without a model. It does not
dream, and needs neither rewards nor their prediction.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from dreamer.fields import at_least, between, check_bound, check_bounds
from dreamer.interfaces import Array, Ask, Behavior, Dream, Extra, Key, Metrics, Mode, Replayed, State, Variables
from dreamer.nets.adapters import from_flax
from dreamer.nets.heads import ActorHead
from dreamer.ops import action_dist
from dreamer.ops.action_dist import ActionDist
from dreamer.spaces import MASK, Spec

sg = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of behaviour cloning."""

    name: str = "cloning"
    "module in dreamer.behaviors, or a dotted module of your own"
    units: Annotated[int, at_least(1)] = 64
    "width of the actor's MLP"
    actor_layers: Annotated[int, at_least(0)] = 3
    "hidden layers of the actor"
    actor_unimix: Annotated[float, between(0, 1)] = 0.0
    "share of the uniform distribution mixed into a discrete actor"
    minstd: Annotated[float, at_least(0)] = 0.1
    "smallest standard deviation of a continuous actor"
    maxstd: float = 1.0
    "largest standard deviation of a continuous actor"
    clone_scale: Annotated[float, at_least(0)] = 1.0
    "weight of the loss"
    shape_model: bool = False
    "whether the loss trains the world model's features too"

    def __post_init__(self) -> None:
        check_bounds(self)
        check_bound("maxstd", self.maxstd, at_least(self.minstd))


def make(
    config: Config, spec: Spec, *, feat_width: int, dtype: Any = jnp.float32, horizon: float = 333.0,
    contdisc: bool = True,
) -> Behavior:  # fmt: skip
    """Makes the behavior for features [.., feat_width]. The loss is -log pi(a_t | feat_t), on rows with an action.

    A last row has no action, because none was taken there. The action masks of the rows are respected.
    """
    action = spec.action
    actor = from_flax(ActorHead(config.actor_layers, config.units, action.onehots, action.continuous, dtype=dtype))

    def actions(v: Variables) -> ActionDist:
        return action_dist.make(
            action.classes, action.continuous, unimix=config.actor_unimix, minstd=v.hyper["minstd"],
            maxstd=v.hyper["maxstd"],
        )  # fmt: skip

    def init(key: Key) -> Variables:
        hyper = {"minstd": jnp.float32(config.minstd), "maxstd": jnp.float32(config.maxstd)}
        return Variables({"pol": actor.init(key, jnp.zeros((1, feat_width)))}, {}, hyper)

    def act(
        v: Variables, key: Key, dream: Dream, state: State, carry: tuple, ask: Ask, mode: Mode
    ) -> tuple[Array, tuple]:
        outs, dist = actor.apply(v.params["pol"], dream.feat(state)), actions(v)
        return dist.mode(outs, ask.allowed) if mode == "mode" else dist.sample(key, outs, ask.allowed), carry

    def loss(
        v: Variables, key: Key, dream: Dream, start: State, replayed: Replayed
    ) -> tuple[dict[str, Array], tuple[Extra, Metrics]]:
        rows, dist = replayed.rows, actions(v)
        outs = actor.apply(v.params["pol"], replayed.feat if config.shape_model else sg(replayed.feat))
        allowed = rows.obs[MASK] == 1 if spec.masked else None
        chosen = 1 - rows.is_last.astype(jnp.float32)
        count = jnp.maximum(chosen.sum(), 1)
        metrics = {"clone/entropy": jnp.sum(chosen * dist.entropy(outs, allowed)) / count}
        away = jnp.abs(dist.mode(outs, allowed) - rows.action)
        if action.classes:  # a wrong class differs in two entries of its one-hot
            wrong = away[..., : action.onehots].sum(-1) / (2 * len(action.classes))
            metrics["clone/agreement"] = 1 - jnp.sum(chosen * wrong) / count
        if action.continuous:
            metrics["clone/error"] = jnp.sum(chosen * away[..., action.onehots :].mean(-1)) / count
        return {"clone": -chosen * dist.log_prob(outs, rows.action, allowed)}, (v.extra, metrics)

    return Behavior(
        init=init, initial=lambda envs: (), act=act, loss=loss, refresh=lambda v: v.extra,
        scales={"clone": config.clone_scale}, needs=frozenset(),
    )  # fmt: skip
