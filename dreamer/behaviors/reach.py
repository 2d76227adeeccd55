"""Plans to reach a goal: searches for the actions after which the dreamed features are nearest to those of the goal.

The command "goal" [E, F] is the goal: features, as `Agent.encode` returns them. Without a goal, actions are random, so
that the same behavior collects the experience for its world model. It learns nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer.fields import at_least, between, check_bounds
from dreamer.interfaces import Array, Ask, Behavior, Dream, Key, Mode, Replayed, State, Variables
from dreamer.ops.action_dist import uniform
from dreamer.spaces import Action, Spec

GOAL = "goal"  # the command


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the search, a beam search: in each step it keeps the states that are nearest to the goal."""

    name: str = "reach"
    "module in dreamer.behaviors, or a dotted module of your own"
    length: Annotated[int, at_least(1)] = 4
    "dreamed steps"
    beam: Annotated[int, at_least(1)] = 16
    "states that are kept after each step"
    tries: Annotated[int, at_least(1)] = 32
    "random actions tried from each state; if an action is one of a few classes, all of them are tried instead"
    classes: Annotated[int, at_least(0)] = 64
    "most classes for which all are tried"
    noise: Annotated[float, between(0, 1)] = 0.05
    "share of random actions on the way to a goal, which lead out of places where the model is wrong"

    def __post_init__(self) -> None:
        check_bounds(self)


class Carry(NamedTuple):
    """What the planner remembers: the features [E, F] of the row before, and the actions tried there, [E, M] bool."""

    feat: Array
    tried: Array


class Search(NamedTuple):
    """What is searched. kinds: the actions | whole: whether all are tried, because they are a few classes"""

    config: Config
    kinds: Action
    whole: bool


def make(
    config: Config, spec: Spec, *, feat_width: int, dtype: Any = jnp.float32, horizon: float = 333.0,
    contdisc: bool = True,
) -> Behavior:  # fmt: skip
    """Makes the planner. It takes the first action of the shortest sequence that comes nearest to the goal.

    If actions are one of a few classes, and the features stayed the same after an action, it is not taken again until
    they change, even if the model expects more of it. Action masks are respected in the first step, because only the
    mask of this step is known.
    """
    kinds = spec.action
    whole = len(kinds.classes) == 1 and not kinds.continuous and kinds.onehots <= config.classes
    search = Search(config, kinds, whole)

    def act(
        v: Variables, key: Key, dream: Dream, state: State, carry: Carry, ask: Ask, mode: Mode
    ) -> tuple[Array, Carry]:
        keys = jax.random.split(key, 3)
        anything = uniform(keys[0], ask.is_first.shape, kinds.classes, kinds.continuous, ask.allowed)
        if GOAL not in ask.command:
            return anything, carry
        feat = dream.feat(state).astype(jnp.float32)
        same = (feat == carry.feat).all(-1) & ~ask.is_first
        tried, allowed = carry.tried & same[:, None], ask.allowed
        if whole:
            usual = jnp.ones_like(tried) if allowed is None else allowed
            new = usual & ~tried
            allowed = jnp.where(new.any(-1, keepdims=True), new, usual)
        goal = ask.command[GOAL].astype(jnp.float32)
        chex.assert_shape(goal, (None, feat_width))
        planned = plan(search, keys[1], dream, state, goal, allowed)
        at_random = jax.random.bernoulli(keys[2], config.noise, ask.is_first.shape)
        action = jnp.where(at_random[:, None], anything, planned)
        return action, Carry(feat, tried | (action[:, : tried.shape[1]] > 0))

    def initial(envs: int) -> Carry:
        return Carry(jnp.zeros((envs, feat_width)), jnp.zeros((envs, kinds.onehots if whole else 0), bool))

    def loss(v: Variables, key: Key, dream: Dream, start: State, replayed: Replayed) -> Any:
        return {}, (v.extra, {})

    return Behavior(
        init=lambda key: Variables({}, {}, {}), initial=initial, act=act, loss=loss, refresh=lambda v: v.extra,
        scales={}, needs=frozenset(),
    )  # fmt: skip


def plan(search: Search, key: Key, dream: Dream, state: State, goal: Array, allowed: Array | None) -> Array:
    """Returns the first action [E, A] of the shortest sequence whose features come nearest to the goals [E, F].

    state [E, ..]: where the sequences begin | allowed [E, A]: the actions of the first step; None: all
    """
    keys = jax.random.split(key, search.config.length)
    first, states, distance = expand(search, keys[0], dream, state, goal, allowed)
    kept, keep = best(distance, min(search.config.beam, distance.shape[1]))
    states, first = select(states, kept), jnp.take_along_axis(first, kept[..., None], 1)

    def step(before: Any, key: Key) -> tuple[Any, None]:
        states, first, far, least, action = before
        _, states, distance = expand(search, key, dream, states, goal, None)
        each = distance.shape[1] // first.shape[1]  # M
        # Sequences that begin with an action that is not allowed are left out.
        distance = jnp.where(jnp.repeat(jnp.isinf(far), each, 1), jnp.inf, distance)
        kept, keep = best(distance, first.shape[1])
        first = jnp.take_along_axis(first, kept[..., None] // each, 1)
        nearer = keep[:, 0] < least
        action = jnp.where(nearer[:, None], first[:, 0], action)
        return (select(states, kept), first, keep, jnp.minimum(least, keep[:, 0]), action), None

    begin = states, first, keep, keep[:, 0], first[:, 0]
    (*_, action), _ = jax.lax.scan(step, begin, keys[1:])
    return action


def expand(
    search: Search, key: Key, dream: Dream, states: State, goal: Array, allowed: Array | None
) -> tuple[Array, State, Array]:
    """Dreams one step from states [E * W, ..]. Returns actions [E, W * M, A], states [E * W * M, ..] and distances.

    The distances [E, W * M] to the goals [E, F] are infinite for actions that are not allowed.
    """
    try_key, imagine_key = jax.random.split(key)
    count, envs = len(jax.tree.leaves(states)[0]), len(goal)
    actions = candidates(search, try_key, count, allowed)
    each = actions.shape[1]
    states = jax.tree.map(lambda x: jnp.repeat(x, each, 0), states)
    states = dream.imagine(imagine_key, states, actions.reshape(count * each, -1))
    feat = dream.feat(states).astype(jnp.float32).reshape(envs, -1, goal.shape[-1])
    distance = jnp.square(feat - goal[:, None]).sum(-1)
    if search.whole and allowed is not None:
        distance = jnp.where(allowed | ~allowed.any(-1, keepdims=True), distance, jnp.inf)
    return actions.reshape(envs, distance.shape[1], -1), states, distance


def candidates(search: Search, key: Key, count: int, allowed: Array | None) -> Array:
    """Returns the actions to try from each of `count` states, [count, M, A]."""
    kinds, tries = search.kinds, search.config.tries
    if search.whole:
        return jnp.broadcast_to(jnp.eye(kinds.onehots), (count, kinds.onehots, kinds.onehots))
    some = None if allowed is None else jnp.repeat(allowed[:, None], tries, 1)
    return uniform(key, (count, tries), kinds.classes, kinds.continuous, some)


def best(distance: Array, count: int) -> tuple[Array, Array]:
    """Returns the indices and the values of the `count` smallest distances [E, n], in rising order, each [E, count]."""
    found, index = jax.lax.top_k(-distance, count)
    return index, -found


def select(states: State, index: Array) -> State:
    """Selects states [E * n, ..] by their index [E, W] within each environment -> [E * W, ..]."""
    envs, count = index.shape

    def one(x: Array) -> Array:
        rows = x.reshape(envs, -1, *x.shape[1:])
        taken = jnp.take_along_axis(rows, index.reshape(envs, count, *(1,) * (rows.ndim - 2)), 1)
        return taken.reshape(envs * count, *x.shape[1:])

    return jax.tree.map(one, states)
