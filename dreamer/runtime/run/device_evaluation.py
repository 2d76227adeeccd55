"""Plays the episodes of an evaluation on the device, for environments written in JAX, and counts them on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from dreamer.interfaces import Agent, Key, Variables
from dreamer.runtime.devices import placement
from dreamer.runtime.fused import evaluation as fused
from dreamer.runtime.fused.evaluation import Limits, Played
from dreamer.runtime.fused.workers import JaxWorkers
from dreamer.runtime.run.shares import Shares
from dreamer.steps import Step


def play(
    agent: Agent, variables: Mapping[str, Variables], workers: JaxWorkers, shares: Shares, *, key: Key, mode: str,
    max_steps: int, check: Callable[[], None], progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Plays the episodes that `shares` counts. All of them draw the actions that `run_episodes` draws on the host.

    check, progress: called before every call of the program, that is, every 1,000 turns or fewer.
    Raises UserError if a reward or an observation is not finite.
    """
    program = workers.player(agent.act)
    seeds = jnp.array([workers.seed(env) for env in range(workers.envs)], jnp.uint32)
    limits = Limits(jnp.asarray(shares.quota, jnp.int32), jnp.int32(max_steps))
    playing = fused.begin(workers.take(), seeds, agent.initial_carry(workers.streams))
    playing, turns = placement.first_copy(playing), 0
    while not shares.over:
        check()
        progress(turns, shares.finished)
        playing, played = program(variables, key, playing, limits, mode)
        workers.give_back(playing.envs)  # raises an error for a row that is not finite
        turns += observe(shares, placement.to_host(played))


def observe(shares: Shares, played: Played) -> int:
    """Counts the episodes of the turns of one call, and returns the number of turns. played: with numpy arrays."""
    turns = int(played.turns)
    everyone = np.arange(played.reward.shape[1])
    for at, (reward, first, last) in enumerate(zip(*(x[:turns] for x in played[:3]), strict=True)):
        ended = np.flatnonzero(last).tolist() if played.own else ()
        own = {stream: {name: float(x[at, stream]) for name, x in played.own.items()} for stream in ended}
        shares.observe(everyone, Step({}, np.zeros(0), reward, first, last, last), own)
    return turns
