"""CMA-ES over the parameters of a policy. All candidates are tried together, in dreams or in environments.

The strategy comes from the library evosax (Apache-2.0), which is written in JAX: its state is a tree of arrays that is
saved with the run, and many searches can run side by side under `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dreamer.errors import UserError
from dreamer.interfaces import Array, Dream, JaxEnv, Key, State

Search = dict[str, Array]  # the state of a strategy; its "mean" [n] and "std" [] describe the search distribution


class Strategy(NamedTuple):
    """A search for the vector [n] with the lowest cost.

    init(key) -> search | ask(key, search) -> candidates [P, n], search
    tell(key, candidates [P, n], cost [P], search) -> search
    """

    init: Callable[[Key], Search]
    ask: Callable[[Key, Search], tuple[Array, Search]]
    tell: Callable[[Key, Array, Array, Search], Search]


def cma_es(size: int, population: int, std: float) -> Strategy:
    """Makes CMA-ES over vectors of `size` numbers, from 0 with the deviation `std`, with `population` candidates.

    Its other numbers are the defaults of Hansen's tutorial (arXiv 1604.00772). Raises UserError without evosax.
    """
    try:
        from evosax.algorithms import CMA_ES
        from evosax.algorithms.distribution_based.cma_es import State as Found
    except ImportError as error:
        raise UserError(f'CMA-ES needs the package evosax; pip install "dreamer-jax[evolution]": {error}') from error
    strategy = CMA_ES(population, jnp.zeros(size))
    settings = strategy.default_params.replace(std_init=jnp.float32(std))

    def plain(found: Any) -> Search:
        return {name: jnp.asarray(getattr(found, name)) for name in Found.__dataclass_fields__}

    def init(key: Key) -> Search:
        return plain(strategy.init(key, jnp.zeros(size), settings))

    def ask(key: Key, search: Search) -> tuple[Array, Search]:
        with jax.numpy_rank_promotion("allow"):  # evosax adds arrays of different ranks
            candidates, found = strategy.ask(key, Found(**search), settings)
        return candidates, plain(found)

    def tell(key: Key, candidates: Array, cost: Array, search: Search) -> Search:
        with jax.numpy_rank_promotion("allow"):
            return plain(strategy.tell(key, candidates, cost, Found(**search), settings)[0])

    return Strategy(init, ask, tell)


def cost_of(fitness: Array, candidates: Array, decay: Array | float) -> Array:
    """Returns -fitness [P] + decay * mean(theta^2) [P] of candidates theta [P, n].

    The source subtracts the second term, which rewards large weights; a negative `decay` does that too.
    """
    return -fitness + decay * jnp.square(candidates).mean(-1)


class Tried(NamedTuple):
    """What candidates reached in each of their trials: the sum of rewards, and the steps until the end, [P, R]."""

    fitness: Array
    length: Array


def in_dreams(
    dream: Dream, act: Callable[[Array, Array], Array], candidates: Array, start: State, key: Key, *, horizon: int,
    end: float = 0.5,
) -> Tried:  # fmt: skip
    """Tries candidates theta [P, n] in dreams from start [R, ..], all with the same random numbers.

    act(theta [n], feat [R, F]) -> action [R, A] | horizon: the longest dream | end: the `cont` below which a dream ends
    The reward of the step that ends a dream counts, and nothing after it. Rewards are not discounted.
    """
    chex.assert_rank(candidates, 2)
    lead = (len(candidates), len(jax.tree.leaves(start)[0]))

    def step(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        time, state, alive, tried = loop
        now = jax.random.fold_in(key, time)

        def move(theta: Array, state: State) -> tuple[State, Array, Array]:
            state = dream.imagine(now, state, act(theta, dream.feat(state)))
            predicted = dream.predict(dream.feat(state))
            return state, predicted["reward"], predicted["cont"]

        state, reward, cont = jax.vmap(move)(candidates, state)
        tried = Tried(tried.fitness + alive * reward, tried.length + alive)
        return time + 1, state, alive & (cont >= end), tried

    def lives(loop: tuple[Any, ...]) -> Array:
        return (loop[0] < horizon) & loop[2].any()

    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (lead[0], *x.shape)), start)
    begin = (jnp.int32(0), states, jnp.ones(lead, bool), Tried(jnp.zeros(lead), jnp.zeros(lead)))
    return jax.lax.while_loop(lives, step, begin)[-1]


def in_environments(
    env: JaxEnv, dream: Dream, act: Callable[[Array, Array], Array], candidates: Array, start: State, key: Key, *,
    horizon: int,
) -> Tried:  # fmt: skip
    """Tries candidates theta [P, n] in R episodes of an environment each, all with the same random numbers.

    act, horizon: as in `in_dreams` | start [R, ..]: any states of the world model; episodes begin without a past
    """
    chex.assert_rank(candidates, 2)
    assert dream.observe is not None  # as in every Dream of `losses.make_dream`
    observe = dream.observe
    count = len(jax.tree.leaves(start)[0])
    lead = (len(candidates), count)

    def step(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        time, now, alive, tried = loop
        observe_key, env_key = jax.random.split(jax.random.fold_in(key, time))

        def move(theta: Array, now: tuple[Any, ...]) -> tuple[Any, ...]:
            state, prev_action, inside, row = now
            state = observe(observe_key, state, row.obs, prev_action, row.is_first)
            action = act(theta, dream.feat(state))
            inside, row = jax.vmap(env.step)(jax.random.split(env_key, count), inside, action)
            return state, action, inside, row

        now = jax.vmap(move)(candidates, now)
        row = now[-1]
        tried = Tried(tried.fitness + alive * row.reward, tried.length + alive)
        return time + 1, now, alive & ~row.is_last, tried

    def lives(loop: tuple[Any, ...]) -> Array:
        return (loop[0] < horizon) & loop[2].any()

    inside, row = jax.vmap(env.reset)(jax.random.split(key, count))
    begin = (start, jnp.zeros((count, env.spec.action_width)), inside, row)
    now = jax.tree.map(lambda x: jnp.broadcast_to(x, (lead[0], *x.shape)), begin)
    empty = Tried(jnp.zeros(lead), jnp.zeros(lead))
    return jax.lax.while_loop(lives, step, (jnp.int32(0), now, jnp.ones(lead, bool), empty))[-1]


def choose_starts(key: Key, start: State, is_first: Array, count: int, first: bool) -> State:
    """Draws `count` of the states start [N, ..], with replacement.

    first: draw only states of first rows, is_first [N], with equal probability; if there are none, draw from all states
    """
    wanted = is_first if first else jnp.ones_like(is_first)
    logits = jnp.where(wanted | ~wanted.any(), 0.0, -jnp.inf)
    index = jax.random.categorical(key, logits, shape=(count,))
    return jax.tree.map(lambda x: x[index], start)
