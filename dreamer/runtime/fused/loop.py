"""The loop of a run as one program: act, step all environments, store the rows, and make the updates that are due."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.interfaces import Agent, Array, Carry, Key, Spec, Step, TrainState, Update
from dreamer.runtime.fused import ring as rings
from dreamer.runtime.fused.envs import Envs, Functions
from dreamer.runtime.fused.ring import Places, Ring, Sizes
from dreamer.steps import Batch


class Episodes(NamedTuple):
    """The current episode of each stream: the sum of its rewards [S] float32, and its number of steps [S] int32."""

    returns: Array
    lengths: Array


class Keys(NamedTuple):
    """The random keys of a run, [] each: for acting and for drawing sequences."""

    act: Key
    draw: Key


class Loop(NamedTuple):
    """The state of a run as one pytree on the device.

    keys: its random keys, which stay the same
    train: the train state | ring: the replay | envs: the environments, with rows that the agent has not seen yet
    carry: what acting passes on | acted [] int32: the number of turns | episodes: the current episodes
    started [] bool: whether training has started
    debt [] int32: the updates that are due for the collected rows, in units of 1 / `Plan.rate.denominator`
    """

    keys: Keys
    train: TrainState
    ring: Ring
    envs: Envs
    carry: Carry
    acted: Array
    episodes: Episodes
    started: Array
    debt: Array


class Report(NamedTuple):
    """What happened in the turns of one call.

    updates [] int32 | metrics {name: []}: the sums of the metrics of these updates
    episodes [] int32: the number of finished episodes | returns, lengths []: the sums over these episodes
    own {name: []}: the sums of the environments' own metrics over these episodes
    finite [] bool: whether all parameters are finite after these turns
    """

    updates: Array
    metrics: Mapping[str, Array]
    episodes: Array
    returns: Array
    lengths: Array
    own: Mapping[str, Array]
    finite: Array


class Plan(NamedTuple):
    """The numbers that the program is compiled for.

    sizes: those of the ring | batch_size: sequences of an update
    rate: updates per row, see `runtime/learning/ratio.py` | wanted: the number of items at which training starts
    """

    sizes: Sizes
    batch_size: int
    rate: Fraction
    wanted: int


class Operations(NamedTuple):
    """What a loop does with its agent, environments and rings. On several devices, see `mesh.py`.

    act, update: those of the agent | turn, metrics: those of the environments
    add, gather, refresh: those of `ring.py`
    draw(loop) -> ring, stream [B], start [B]: chooses the sequences of the next update
    """

    act: Callable[..., tuple[Carry, Array]]
    turn: Callable[[Envs, Array, Array], Envs]
    metrics: Callable[[Envs], Mapping[str, Array]]
    add: Callable[[Ring, Mapping[str, Array]], Ring]
    draw: Callable[[Loop], tuple[Ring, Array, Array]]
    gather: Callable[[Ring, Array, Array], tuple[Batch, Places]]
    update: Callable[[TrainState, Batch], tuple[TrainState, Update]]
    refresh: Callable[[Ring, Places, Mapping[str, Array]], Ring]


def operations(agent: Agent, envs: Functions, plan: Plan) -> Operations:
    """Returns the operations of a loop on one device."""

    def draw(loop: Loop) -> tuple[Ring, Array, Array]:
        return rings.draw(loop.ring, plan.sizes, draw_key(loop), plan.batch_size)

    def gather(ring: Ring, stream: Array, start: Array) -> tuple[Batch, Places]:
        return rings.gather(ring, plan.sizes, stream, start)

    return Operations(agent.act, envs.turn, envs.metrics, rings.add, draw, gather, agent.update, rings.refresh)


def draw_key(loop: Loop) -> Key:
    """Returns the random key [] for drawing the sequences of the next update."""
    return jax.random.fold_in(loop.keys.draw, loop.train.step)


def make_run(
    agent: Agent, spec: Spec, envs: Functions, plan: Plan, do: Operations | None = None
) -> Callable[[Loop, Array], tuple[Loop, Report]]:
    """Returns the function (loop, turns []) -> loop, report that makes `turns` turns. Compile it with `loop` donated.

    do: the operations; None: those on one device
    """
    do = do or operations(agent, envs, plan)
    collect = make_collect(agent, spec, do)
    update = make_update(spec, do)
    rate = plan.rate

    def turn(loop: Loop, report: Report) -> tuple[Loop, Report]:
        loop, report = collect(loop, report)
        ready = plan.sizes.streams * rings.items(loop.ring, plan.sizes) >= plan.wanted
        # The first update is due as soon as training may start. Rows that were collected before count for nothing.
        more = jnp.where(loop.started, plan.sizes.streams * rate.numerator, rate.denominator * ready)
        loop = loop._replace(started=loop.started | ready, debt=loop.debt + more)
        due = functools.partial(_due, rate)
        return jax.lax.while_loop(due, lambda both: pay(*both), (loop, report)) if rate else (loop, report)

    def pay(loop: Loop, report: Report) -> tuple[Loop, Report]:
        loop, metrics = update(loop)
        sums = jax.tree.map(lambda total, one: total + one, report.metrics, metrics)
        loop = loop._replace(debt=loop.debt - rate.denominator)
        return loop, report._replace(updates=report.updates + 1, metrics=sums)

    def run(loop: Loop, turns: Array) -> tuple[Loop, Report]:
        empty = empty_report(jax.eval_shape(update, loop)[1], jax.eval_shape(envs.metrics, loop.envs))
        loop, report = jax.lax.fori_loop(0, turns, lambda _, both: turn(*both), (loop, empty))
        return loop, report._replace(finite=all_finite(loop.train.params))

    return run


def all_finite(tree: Any) -> Array:
    """Returns whether all floating-point numbers of a tree are finite, []."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.bool_(True), *(jnp.isfinite(x).all() for x in leaves)]).all()


def _due(rate: Fraction, both: tuple[Loop, Report]) -> Array:
    return both[0].debt >= rate.denominator


def make_collect(
    agent: Agent, spec: Spec, do: Operations
) -> Callable[[Loop, Report], tuple[Loop, Report]]:
    """Returns the half of a turn that acts on the newest row of each stream, stores it, and steps all environments.

    It does what `Collector.collect` does. The actions for the last rows of episodes are not executed; zeros are stored.
    """

    def collect(loop: Loop, report: Report) -> tuple[Loop, Report]:
        row = streams_of(spec, loop.envs.row)
        carry, action = do.act(
            agent.variables(loop.train), jax.random.fold_in(loop.keys.act, loop.acted), loop.carry,
            for_agent(spec, row.obs), row.is_first, "collect",
        )  # fmt: skip
        row = row._replace(action=jnp.where(row.is_last[:, None], 0.0, action))
        ring = do.add(loop.ring, columns_of(row, agent.pack(carry.state), loop.ring))
        asked = jnp.ones(loop.envs.turns.shape, bool)
        stepped = do.turn(loop.envs, envs_of(spec, row.action), asked)
        # The metrics are read in the states of these rows, not in those of the next ones.
        own = {name: jnp.repeat(x, spec.agents) for name, x in do.metrics(loop.envs).items()}
        episodes, report = observe(loop.episodes, row, own, report)
        return loop._replace(ring=ring, envs=stepped, carry=carry, acted=loop.acted + 1, episodes=episodes), report

    return collect


def make_update(spec: Spec, do: Operations) -> Callable[[Loop], tuple[Loop, Mapping[str, Array]]]:
    """Returns the function loop -> loop, metrics that makes one update and writes its latents back to the ring."""

    def update(loop: Loop) -> tuple[Loop, Mapping[str, Array]]:
        ring, stream, start = do.draw(loop)
        batch, places = do.gather(ring, stream, start)
        train, out = do.update(loop.train, batch._replace(obs=for_agent(spec, batch.obs)))
        stored = {name: value for name, value in out.latent.items() if f"latent/{name}" in ring.columns}
        ring = do.refresh(ring, places, stored)
        return loop._replace(train=train, ring=ring), out.metrics

    return update


def observe(
    episodes: Episodes, row: Step, own: Mapping[str, Array], report: Report
) -> tuple[Episodes, Report]:
    """Adds a row [S, ..] to the current episodes, and counts those that end in it, as `EpisodeTracker` does.

    own {name: [S]}: the environments' own metrics
    """
    returns = jnp.where(row.is_first, 0.0, episodes.returns + row.reward)
    lengths = jnp.where(row.is_first, 0, episodes.lengths + 1)
    report = report._replace(
        episodes=report.episodes + row.is_last.sum(dtype=jnp.int32),
        returns=report.returns + jnp.where(row.is_last, returns, 0.0).sum(),
        lengths=report.lengths + jnp.where(row.is_last, lengths, 0).sum(),
        own={name: total + jnp.where(row.is_last, own[name], 0.0).sum() for name, total in report.own.items()},
    )
    return Episodes(returns, lengths), report


def empty_report(metrics: Mapping[str, Any], own: Mapping[str, Any]) -> Report:
    """Returns the Report of no turn.

    metrics {name: []}: arrays, or their shapes and dtypes | own: with the names of the environments' own metrics
    """
    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in metrics.items()}
    sums = {name: jnp.float32(0) for name in own}
    return Report(jnp.int32(0), zeros, jnp.int32(0), jnp.float32(0), jnp.int32(0), sums, jnp.bool_(True))


def columns_of(row: Step, latent: Mapping[str, Array], ring: Ring) -> dict[str, Array]:
    """Returns a row [S, ..] and its packed latents {name: [S, ..]} by column, in the dtypes of the ring."""
    given = {
        **{f"obs/{key}": value for key, value in row.obs.items()},
        **{name: getattr(row, name) for name in ("action", "reward", "is_first", "is_last", "is_terminal")},
        **{f"latent/{name}": value for name, value in latent.items()},
    }
    return {name: given[name].astype(column.dtype) for name, column in ring.columns.items()}


def for_agent(spec: Spec, obs: Mapping[str, Array]) -> dict[str, Array]:
    """Returns observations {k: [.., ..]} in the dtypes that the agent takes."""
    return {key: x.astype(spec.obs[key].device_dtype) for key, x in obs.items()}


def streams_of(spec: Spec, row: Step) -> Step:
    """Returns rows [E, ..] or [E, agents, ..] as rows [S, ..] of streams."""
    return row if spec.agents == 1 else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), row)


def envs_of(spec: Spec, action: Array) -> Array:
    """Returns actions [S, A] of streams as actions [E, A] or [E, agents, A] of environments."""
    return action if spec.agents == 1 else action.reshape(-1, spec.agents, action.shape[-1])
