"""CMA-ES over the parameters of a policy. All candidates are tried together, in dreams or in environments.

The strategy comes from the library evosax (Apache-2.0), which is written in JAX: its state is a tree of arrays that is
saved with the run, and many searches can run side by side under `vmap`.
"""

from __future__ import annotations

import functools
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


Act = Callable[[Array, Array], Array]  # a policy: theta [n], feat [B, F] -> action [B, A]
Move = Callable[[Array, Key, Any], tuple[Any, Array, Array]]
FEWEST = 32  # arrays are not halved below this number of trials, since each size compiles a loop of its own


def in_dreams(
    dream: Dream, act: Act, candidates: Array, start: State, key: Key, *, horizon: int, end: float = 0.5
) -> Tried:
    """Tries candidates theta [P, n] in dreams from start [R, ..], all with the same random numbers.

    horizon: the longest dream | end: the `cont` below which a dream ends
    The reward of the step that ends a dream counts, and nothing after it. Rewards are not discounted.
    """

    def move(theta: Array, key: Key, state: State) -> tuple[State, Array, Array]:
        state = dream.imagine(key, state, act(theta, dream.feat(state)))
        predicted = dream.predict(dream.feat(state))
        return state, predicted["reward"], predicted["cont"] >= end

    return try_all(move, candidates, start, key, horizon)


def in_environments(
    env: JaxEnv, dream: Dream, act: Act, candidates: Array, start: State, key: Key, *, horizon: int
) -> Tried:
    """Tries candidates theta [P, n] in R episodes of an environment each, all with the same random numbers.

    horizon: as in `in_dreams` | start [R, ..]: any states of the world model; episodes begin without a past
    """
    assert dream.observe is not None  # as in every Dream of `losses.make_dream`
    observe = dream.observe

    def move(theta: Array, key: Key, now: tuple[Any, ...]) -> tuple[tuple[Any, ...], Array, Array]:
        state, prev_action, inside, row = now
        observe_key, env_key = jax.random.split(key)
        state = observe(observe_key, state, row.obs, prev_action, row.is_first)
        action = act(theta, dream.feat(state))
        inside, row = jax.vmap(env.step)(env_key[None], inside, action)
        return (state, action, inside, row), row.reward, ~row.is_last

    count = len(jax.tree.leaves(start)[0])
    reset_key, key = jax.random.split(key)
    inside, row = jax.vmap(env.reset)(jax.random.split(reset_key, count))
    return try_all(move, candidates, (start, jnp.zeros((count, env.spec.action_width)), inside, row), key, horizon)


class Running(NamedTuple):
    """N trials at a time. number [N] int32: candidate * R + rollout | now [N, 1, ..] | lives [N] | found [N]"""

    time: Array
    number: Array
    now: Any
    lives: Array
    found: Tried


def try_all(move: Move, candidates: Array, start: Any, key: Key, horizon: int) -> Tried:
    """Moves P x R trials, of candidates theta [P, n] from start [R, ..], until each has ended or made `horizon` steps.

    move(theta [n], key, now [1, ..]) -> now [1, ..], reward [1], lives [1]; `key` is that of the step and of the start
    Whenever half of the trials have ended, the others go on in arrays of half the size.
    """
    chex.assert_rank(candidates, 2)
    rollouts = len(jax.tree.leaves(start)[0])
    grid = (len(candidates), rollouts)
    number = jnp.arange(len(candidates) * rollouts)
    tried = Tried(*jnp.zeros((2, len(number))))

    def step(running: Running) -> Running:
        time, number, now, lives, found = running
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, time), jnp.arange(rollouts))
        if len(number) == len(candidates) * rollouts:  # random numbers are drawn once for all candidates
            now = jax.tree.map(lambda x: x.reshape(*grid, *x.shape[1:]), now)
            moved = jax.vmap(jax.vmap(move, (None, 0, 0)), (0, None, 0))(candidates, keys, now)
            now, reward, goes_on = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), moved)
        else:
            now, reward, goes_on = jax.vmap(move)(candidates[number // rollouts], keys[number % rollouts], now)
        found = Tried(found.fitness + lives * reward[:, 0], found.length + lives)
        return Running(time + 1, number, now, lives & goes_on[:, 0], found)

    now = jax.tree.map(lambda x: x[number % rollouts, None], start)
    running = Running(jnp.int32(0), number, now, jnp.ones(len(number), bool), tried)
    for fewer in (*halves(len(number)), 0):
        running = jax.lax.while_loop(functools.partial(more_live, fewer, horizon), step, running)
        tried, running = entered(tried, running), living(running, fewer)
    return jax.tree.map(lambda x: x.reshape(-1, rollouts), tried)


def more_live(fewer: int, horizon: int, running: Running) -> Array:
    """Returns whether more than `fewer` trials have not ended, before step `horizon`."""
    return (running.time < horizon) & (running.lives.sum() > fewer)


def entered(tried: Tried, running: Running) -> Tried:
    """Returns `tried` [P * R] with what the running trials have found."""
    return jax.tree.map(lambda x, y: x.at[running.number].set(y), tried, running.found)


def living(running: Running, fewer: int) -> Running:
    """Returns `fewer` of the trials: all that live, unless the time is over."""
    kept = jnp.argsort(~running.lives, stable=True)[:fewer]
    return Running(running.time, *jax.tree.map(lambda x: x[kept], running[1:]))


def halves(count: int) -> list[int]:
    """Returns count / 2, count / 4, .., rounded up and at least `FEWEST`."""
    half = -(-count // 2)
    return [half, *halves(half)] if half >= FEWEST else []


def choose_starts(key: Key, start: State, is_first: Array, count: int, first: bool) -> State:
    """Draws `count` of the states start [N, ..], with replacement.

    first: draw only states of first rows, is_first [N], with equal probability; if there are none, draw from all states
    """
    wanted = is_first if first else jnp.ones_like(is_first)
    logits = jnp.where(wanted | ~wanted.any(), 0.0, -jnp.inf)
    index = jax.random.categorical(key, logits, shape=(count,))
    return jax.tree.map(lambda x: x[index], start)
