"""The host's side of the fused loop: makes turns on the device, and keeps the parts of the run up to date.

The fused loop holds the train state, the replay and the environments while it runs. After each call the host copies the
new rows into the replay of the run; before a checkpoint, `settle` copies everything else. So a checkpoint has one form,
and either loop resumes it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.interfaces import Agent
from dreamer.runtime.devices import placement
from dreamer.runtime.fused import loop as fused
from dreamer.runtime.fused.loop import Episodes, Keys, Loop, Plan, Report
from dreamer.runtime.fused.ring import Ring, Sizes
from dreamer.runtime.fused.workers import JaxWorkers
from dreamer.runtime.log.episodes import EpisodeTracker
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.replay import spans
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.run.collector import Collector
from dreamer.runtime.run.learner import Learner
from dreamer.runtime.run.limiter import Limiter
from dreamer.runtime.workers import Workers

SECONDS = 1.0  # the time between two visits of the host, unless something is due earlier
LARGEST = 2**30  # of the integers on the device


@dataclasses.dataclass(frozen=True)
class Owners:
    """The parts of a run whose state moves to the device while the fused loop runs."""

    learner: Learner
    replay: Replay
    workers: JaxWorkers
    collector: Collector
    tracker: EpisodeTracker
    limiter: Limiter
    logger: Logger


class OnDevice:
    """Owns the fused loop, that is, the state of a run on the device and the program that changes it."""

    def __init__(self, config: Config, agent: Agent, owners: Owners, rate: Fraction):
        """Moves nothing yet. rate: updates per row, see `ratio.updates_per_step`."""
        replay, workers = owners.replay, owners.workers
        sizes = Sizes(
            workers.streams, replay.size.rows_per_stream, replay.config.context, replay.config.batch_length,
            replay.config.online,
        )  # fmt: skip
        batch_size = replay.config.batch_size
        self._plan = Plan(sizes, batch_size, rate, replay.wanted(batch_size))
        check_numbers(self._plan)
        self._agent, self._owners = agent, owners
        key = jax.random.key(config.seed)
        # Acting uses the same random numbers as `Collector`.
        self._keys = Keys(jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))
        self._run: Any = jax.jit(
            fused.make_run(agent, workers.spec, workers.functions, self._plan), donate_argnums=0
        )
        self._rows: Callable[..., Any] = jax.jit(_newest, static_argnums=1)
        self._loop: Loop | None = None
        self._compiled = False
        self._per_turn = 0.0  # seconds
        self._done: float | None = None

    def compile(self) -> None:
        """Moves the run to the device and compiles the program, without making a turn."""
        self._loop = self._take()
        with self._owners.learner.as_user_errors("compiling the loop on the device"):
            self._run = self._run.lower(self._loop, jnp.int32(1)).compile()
        self._compiled = True

    def advance(self, most: int) -> None:
        """Makes turns for about SECONDS, at least one and at most `most`, and updates replay, counters and metrics.

        Raises UserError if the device fails, or if the parameters have diverged.
        """
        turns = self._turns(most)
        assert self._loop is not None and self._compiled
        owners, before = self._owners, time.monotonic()
        if self._done is not None:
            owners.learner.idle += max(0.0, before - self._done)
        loop, self._loop = self._loop, None
        try:
            with owners.learner.as_user_errors("the loop on the device"):
                loop, report = self._run(loop, jnp.int32(turns))
                bucket = min(1 << (turns - 1).bit_length(), self._plan.sizes.rows)
                rows, report = placement.to_host((self._rows(loop.ring, bucket), report))
        except BaseException:
            owners.learner.forget()  # the state was donated; what the parts have is older than the rows
            raise
        self._done = time.monotonic()
        self._per_turn = (self._done - before) / turns
        columns = {name: column[:, bucket - turns :] for name, column in rows.items()}
        if not np.isfinite(columns["action"]).all():
            owners.learner.load(loop.train, owners.learner.updates)
            raise UserError("the agent's action is not finite: its parameters have diverged")
        self._loop = loop
        spans.append(owners.replay, columns)
        owners.learner.updates += int(report.updates)
        self._log(report)

    def settle(self) -> None:
        """Copies the state of the loop to the parts of the run, for a checkpoint or an evaluation."""
        if self._loop is None:
            return
        loop, owners = self._loop, self._owners
        numbers: Any = {"keys": None, "train": None, "envs": None, "carry": None, "ring": loop.ring._replace(columns={})}
        host: Any = placement.to_host(loop._replace(**numbers))
        owners.learner.load(placement.first_copy(loop.train), owners.learner.updates)
        owners.workers.give_back(placement.first_copy(loop.envs))
        leaves = jax.tree.leaves(placement.to_host(loop.carry))
        owners.collector.load({**{f"carry/{i:04d}": x for i, x in enumerate(leaves)}, "count": host.acted})
        owners.tracker.load_state(
            {"returns": host.episodes.returns.astype(np.float64), "lengths": host.episodes.lengths.astype(np.int64)}
        )
        owners.limiter.load(credited(owners.replay.steps, host, self._plan.rate))
        spans.put_held_latents(owners.replay, placement.to_host(_latents(loop.ring)))
        spans.put_queue(owners.replay, queue(host.ring, self._plan.sizes))

    def _take(self) -> Loop:
        """Returns the state of the run as a Loop on the first device."""
        owners, plan = self._owners, self._plan
        replay, collected = owners.replay, owners.collector.state()
        added = int(replay.counts[0])
        if (replay.counts != added).any():
            raise UserError("loop device: the streams of this run have different lengths; resume it with --loop host")
        columns: dict[str, Any] = dict(replay.columns)
        ring = Ring(columns, jnp.int32(added), jnp.int32(taken(replay, plan.sizes)))
        carry = self._agent.initial_carry(owners.workers.streams)
        leaves = [collected[f"carry/{i:04d}"].astype(x.dtype) for i, x in enumerate(jax.tree.leaves(carry))]
        episodes = owners.tracker.state()
        started, owed = debt(replay.steps, owners.limiter.state(), plan.rate)
        loop = Loop(
            keys=self._keys, train=owners.learner.state, ring=ring, envs=owners.workers.take(),
            carry=jax.tree.unflatten(jax.tree.structure(carry), leaves), acted=jnp.int32(collected["count"]),
            episodes=Episodes(jnp.float32(episodes["returns"]), jnp.int32(episodes["lengths"])),
            started=jnp.bool_(started), debt=jnp.int32(owed),
        )  # fmt: skip
        with owners.learner.as_user_errors("moving the replay to the device"):
            return placement.first_copy(loop)

    def _turns(self, most: int) -> int:
        wanted = int(SECONDS / self._per_turn) if self._per_turn else 1
        return max(1, min(wanted, most, self._plan.sizes.rows))

    def _log(self, report: Report) -> None:
        owners, updates, episodes = self._owners, int(report.updates), int(report.episodes)
        if updates:
            owners.logger.add({name: float(total) / updates for name, total in report.metrics.items()}, count=updates)
        if episodes:
            means = {"episode/return": report.returns / episodes, "episode/length": report.lengths / episodes}
            owners.logger.add({name: float(mean) for name, mean in means.items()}, count=episodes)


def choose(config: Config, workers: Workers, devices: int) -> tuple[bool, str]:
    """Returns whether the loop runs on the device, and a line to print about it, or "".

    devices: the number of devices that learn
    Raises UserError if config.loop is "device" and the loop cannot run there.
    """
    against = {
        "the environment is not written in JAX, or workers.backend runs it elsewhere": workers.backend != "jax",
        "replay.recency and replay.priority draw on the host only": config.replay.uniform < 1,
        "replay.tier disk keeps observations on the host": config.replay.tier == "disk",
        f"{devices} devices learn together; devices.count 1 uses one": devices > 1,
    }
    reasons = [reason for reason, holds in against.items() if holds]
    if config.loop == "device" and reasons:
        raise UserError(f"loop device: {reasons[0]}; use loop host")
    if workers.backend != "jax":
        return False, ""
    if config.loop == "host" or reasons:
        return False, f"loop: on the host, because {'; '.join(reasons) or 'the config says so'}"
    return True, "loop: on the device; one program acts, steps the environments, stores their rows and learns"


def check_numbers(plan: Plan) -> None:
    """Raises UserError if the replay ratio cannot be kept with the integers of a device."""
    if max(plan.sizes.streams * plan.rate.numerator, plan.rate.denominator) >= LARGEST:
        raise UserError(
            "loop device: the replay ratio is too fine a fraction for the device; give it with fewer digits, or use "
            "loop host"
        )


def queue(ring: Any, sizes: Sizes) -> list[tuple[int, int]]:
    """Returns the new sequences (stream, first row) that were not trained on yet. ring: with numbers on the host."""
    whole = int(ring.added) // sizes.sequence
    oldest = max(whole - sizes.rows // sizes.sequence, 0)
    first = max(int(ring.taken), sizes.streams * oldest)
    return [(j % sizes.streams, j // sizes.streams * sizes.sequence) for j in range(first, sizes.streams * whole)]


def taken(replay: Replay, sizes: Sizes) -> int:
    """Returns how many new sequences were trained on or dropped, from the queue of the replay."""
    if not replay.queue:
        return sizes.streams * (int(replay.counts[0]) // sizes.sequence)
    stream, start = replay.queue[0]
    return start // sizes.sequence * sizes.streams + stream


def credited(steps: int, loop: Any, rate: Fraction) -> str | None:
    """Returns `Limiter.state`: the step up to which all updates were made. loop: with numbers on the host."""
    return str(steps - Fraction(int(loop.debt), rate.numerator)) if rate and bool(loop.started) else None


def debt(steps: int, state: str | None, rate: Fraction) -> tuple[bool, int]:
    """Returns `started` and `debt` of a Loop from `Limiter.state`. Raises UserError if updates are due."""
    if state is None:
        return False, 0
    owed = (steps - Fraction(state)) * rate.numerator
    if owed.denominator != 1 or not 0 <= owed < LARGEST:
        raise UserError("loop device: this checkpoint has another replay ratio; resume it with --loop host")
    return True, int(owed)


def _newest(ring: Ring, rows: int) -> Mapping[str, Any]:
    """Returns the last `rows` rows {name: [S, rows, ..]} of each stream, oldest first."""
    number = ring.added - rows + jnp.arange(rows)
    return {name: column[:, number % column.shape[1]] for name, column in ring.columns.items()}


def _latents(ring: Ring) -> dict[str, Any]:
    return {name: column for name, column in ring.columns.items() if name.startswith("latent/")}
