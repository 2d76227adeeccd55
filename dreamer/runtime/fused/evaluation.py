"""The episodes of an evaluation as one program: all environments play until each stream has finished its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.interfaces import Array, Carry, Key, Spec, Step
from dreamer.runtime.fused import envs as environments
from dreamer.runtime.fused.envs import Envs, Functions
from dreamer.runtime.fused.loop import all_finite, envs_of, for_agent, streams_of

TURNS = 1000  # the most turns of one call, after which the host can stop the evaluation


class Playing(NamedTuple):
    """An evaluation between two turns of E environments with S streams.

    envs: the environments, with rows that the agent has not seen yet | seeds [E] uint32: their seeds
    carry: what acting passes on | turns [] int32: the number of turns
    lengths [S] int32: the steps of the current episodes | finished [S] int32: the number of episodes that have ended
    """

    envs: Envs
    seeds: Array
    carry: Carry
    turns: Array
    lengths: Array
    finished: Array


class Limits(NamedTuple):
    """The ends of an evaluation.

    share [S] int32: the number of episodes that count in each stream
    steps [] int32: the length at which an episode that counts is cut off; 0: none is
    """

    share: Array
    steps: Array


class Played(NamedTuple):
    """The rows of the turns of one call: reward [TURNS, S] float32, is_first, is_last [TURNS, S] bool.

    own {name: [TURNS, S] float32}: the environments' own metrics, which count where is_last is set
    turns [] int32: the number of turns; the rows after them are zeros
    """

    reward: Array
    is_first: Array
    is_last: Array
    own: dict[str, Array]
    turns: Array


def begin(envs: Envs, seeds: Array, carry: Carry) -> Playing:
    """Returns an evaluation before its first turn. envs: with their reset rows | seeds [E] uint32"""
    none = jnp.zeros(envs.row.reward.size, jnp.int32)
    return Playing(envs, seeds, carry, jnp.int32(0), none, none)


def make_play(
    act: Callable[..., Any], spec: Spec, functions: Functions
) -> Callable[[Any, Key, Playing, Limits, str], tuple[Playing, Played]]:
    """Returns the function (variables, key, playing, limits, mode) -> playing, played.

    It makes turns until every stream has finished its share, or a row is not finite, or TURNS turns were made.
    act, mode: as in `Agent.act`. A turn draws its random numbers from the key and its own number.
    """

    def play(variables: Any, key: Key, playing: Playing, limits: Limits, mode: str) -> tuple[Playing, Played]:
        def goes_on(both: tuple[Playing, Played]) -> Array:
            row, more = both[0].envs.row, (both[0].finished < limits.share).any()
            return more & (both[1].turns < TURNS) & all_finite((row.reward, row.obs))

        def turn(both: tuple[Playing, Played]) -> tuple[Playing, Played]:
            playing, played = both
            row = streams_of(spec, playing.envs.row)
            own = {name: x.repeat(spec.agents) for name, x in functions.metrics(playing.envs).items()}
            playing, cut = observe(playing, row, limits, spec.agents)
            carry, action = act(
                variables, jax.random.fold_in(key, playing.turns), playing.carry, for_agent(spec, row.obs),
                row.is_first, mode,
            )  # fmt: skip
            envs = functions.turn(playing.envs, envs_of(spec, action), ~cut)
            playing = playing._replace(envs=envs, carry=carry, turns=playing.turns + 1)
            return _restart(functions, playing, cut), _add(played, row, own)

        none = _none(playing.finished.size, [*jax.eval_shape(functions.metrics, playing.envs)])
        return jax.lax.while_loop(goes_on, turn, (playing, none))

    return play


def observe(playing: Playing, row: Step, limits: Limits, agents: int) -> tuple[Playing, Array]:
    """Counts the episodes that end with a row [S, ..], and returns which environments [E] must begin again.

    These are those in which an episode that counts is as long as `limits.steps`. All their episodes end.
    """
    lengths = jnp.where(row.is_first, 0, playing.lengths + 1)
    finished = playing.finished + row.is_last
    long = (finished < limits.share) & ~row.is_last & (limits.steps > 0) & (lengths >= limits.steps)
    cut = long.reshape(-1, agents).any(1)
    finished = finished + (cut.repeat(agents) & ~row.is_last)
    return playing._replace(lengths=lengths, finished=finished), cut


def _restart(functions: Functions, playing: Playing, cut: Array) -> Playing:
    """Gives the environments in `cut` [E] new seeds, as `Workers.restart` does."""
    seeds = playing.seeds + jnp.uint32(cut.size) * cut

    def anew() -> Envs:
        return environments.choose(cut, functions.begin(environments.env_keys(seeds)), playing.envs)

    return playing._replace(envs=jax.lax.cond(cut.any(), anew, lambda: playing.envs), seeds=seeds)


def _none(streams: int, names: Sequence[str]) -> Played:
    flags, numbers = jnp.zeros((TURNS, streams), bool), jnp.zeros((TURNS, streams))
    return Played(numbers, flags, flags, dict.fromkeys(names, numbers), jnp.int32(0))


def _add(played: Played, row: Step, own: dict[str, Array]) -> Played:
    at, new = played.turns, (row.reward, row.is_first, row.is_last, own)
    reward, is_first, is_last, own = jax.tree.map(lambda whole, x: whole.at[at].set(x), tuple(played[:-1]), new)
    return Played(reward, is_first, is_last, own, at + 1)
