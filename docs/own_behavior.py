"""A behavior of your own: a planner that learns nothing.

    dreamer train probe --env probes:action --agent.behavior.name docs.own_behavior

For each row it dreams under many random sequences of actions, and takes the first action of the best one.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.fields import at_least, between
from dreamer.interfaces import Array, Ask, Behavior, Dream, Key, Mode, Replayed, State, Variables
from dreamer.ops import action_dist
from dreamer.spaces import Spec


@dataclasses.dataclass(frozen=True)
class Config:
    """Random shooting."""

    name: str = "docs.own_behavior"
    "the module that holds it"
    sequences: Annotated[int, at_least(1)] = 64
    "sequences of actions dreamed for each row"
    length: Annotated[int, at_least(1)] = 5
    "steps of each dream"
    explore: Annotated[float, between(0, 1)] = 0.2
    "share of random actions while collecting"


def make(
    config: Config, spec: Spec, *, feat_width: int, dtype: Any, horizon: float, contdisc: bool
) -> Behavior:
    """The planner for an environment. UserError when it has action masks."""
    if spec.masked:
        raise UserError("docs.own_behavior does not obey action masks")
    actions = action_dist.make(spec.action.classes, spec.action.continuous)
    discount = 1.0 if contdisc else 1 - 1 / horizon

    def draw(key: Key, count: int) -> Array:
        """Random actions [count, A]: each class is as likely as the others, numbers are normal around 0."""
        outs = {"logits": spec.action.onehots, "mean": spec.action.continuous, "stddev": spec.action.continuous}
        return actions.sample(key, {name: jnp.zeros((count, width)) for name, width in outs.items()}, None)

    def act(v: Variables, key: Key, dream: Dream, state: State, carry: tuple, ask: Ask, mode: Mode) -> Any:
        envs = len(ask.is_first)
        every = jax.tree.map(lambda x: jnp.repeat(x, config.sequences, 0), state)  # [E * sequences, ..]

        def step(before: Any, key: Key) -> Any:
            state, weight = before
            act_key, imagine_key = jax.random.split(key)
            action = draw(act_key, envs * config.sequences)
            state = dream.imagine(imagine_key, state, action)
            predicted = dream.predict(dream.feat(state))
            return (state, weight * discount * predicted["cont"]), (action, weight * predicted["reward"])

        choose_key, explore_key, dream_key = jax.random.split(key, 3)
        keys = jax.random.split(dream_key, config.length)
        _, (action, reward) = jax.lax.scan(step, (every, jnp.ones(envs * config.sequences)), keys)
        best = reward.sum(0).reshape(envs, config.sequences).argmax(-1)
        planned = action[0].reshape(envs, config.sequences, -1)[jnp.arange(envs), best]
        if mode != "collect":
            return planned, carry
        explores = jax.random.uniform(choose_key, (envs, 1)) < config.explore
        return jnp.where(explores, draw(explore_key, envs), planned), carry

    def loss(v: Variables, key: Key, dream: Dream, start: State, replayed: Replayed) -> Any:
        return {}, (v.extra, {})

    return Behavior(
        init=lambda key: Variables({}), initial=lambda envs: (), act=act, loss=loss, refresh=lambda v: v.extra,
        scales={}, needs=frozenset({"reward", "cont"}),
    )  # fmt: skip
