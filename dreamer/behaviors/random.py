"""Random actions, to collect experience for a world model that learns without rewards. The behavior learns nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from dreamer.interfaces import Array, Ask, Behavior, Dream, Key, Mode, Replayed, State, Variables
from dreamer.ops.action_dist import uniform
from dreamer.spaces import Spec


@dataclasses.dataclass(frozen=True)
class Config:
    """Random actions; there is nothing to set."""

    name: str = "random"
    "module in dreamer.behaviors, or a dotted module of your own"


def make(
    config: Config, spec: Spec, *, feat_width: int = 0, dtype: Any = jnp.float32, horizon: float = 333.0,
    contdisc: bool = True,
) -> Behavior:  # fmt: skip
    """Makes the behavior: classes and numbers are uniform, also in mode "mode"; action masks are respected."""

    def act(
        v: Variables, key: Key, dream: Dream, state: State, carry: tuple, ask: Ask, mode: Mode
    ) -> tuple[Array, tuple]:
        return uniform(key, ask.is_first.shape, spec.action.classes, spec.action.continuous, ask.allowed), carry

    def loss(v: Variables, key: Key, dream: Dream, start: State, replayed: Replayed) -> Any:
        return {}, (v.extra, {})

    return Behavior(
        init=lambda key: Variables({}, {}, {}), initial=lambda envs: (), act=act, loss=loss, refresh=lambda v: v.extra,
        scales={}, needs=frozenset(),
    )  # fmt: skip
