"""Moves the state of a run into the fused loop and back into the parts of the run.

After each call of the fused loop, `receive` adds the new rows and metrics to the run. Before a checkpoint, `settle`
copies everything else. So a checkpoint has one form, and either loop resumes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.errors import UserError
from dreamer.interfaces import Agent
from dreamer.runtime.devices import placement
from dreamer.runtime.devices.mesh import home
from dreamer.runtime.fused import mesh as meshes
from dreamer.runtime.fused.loop import Episodes, Keys, Loop, Plan, Report
from dreamer.runtime.fused.ring import Ring, Sizes
from dreamer.runtime.fused.row_checks import check_rows, resets_after
from dreamer.runtime.fused.workers import JaxWorkers
from dreamer.runtime.learning.collector import Collector
from dreamer.runtime.learning.learner import Learner
from dreamer.runtime.learning.limiter import Limiter
from dreamer.runtime.log.episodes import EpisodeTracker
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.replay import spans
from dreamer.runtime.replay.replay import Replay

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


class Moving:
    """Moves the state of one run between its parts and a Loop."""

    def __init__(self, agent: Agent, owners: Owners, seed: int):
        """seed: that of the run. Raises UserError if the device cannot keep the replay ratio."""
        replay, workers = owners.replay, owners.workers
        config = replay.config
        sizes = Sizes(
            workers.streams, replay.size.rows_per_stream, config.context, config.batch_length, config.online,
            agent.reads,
        )
        self.plan = Plan(sizes, config.batch_size, owners.limiter.rate, replay.wanted(config.batch_size))
        check_numbers(self.plan)
        self.owners, self._agent = owners, agent
        self._key = jax.random.key(seed)

    def take(self) -> Loop:
        """Returns the state of the run as a Loop on the devices that learn.

        Raises UserError if the fused loop cannot continue the run.
        """
        owners, plan = self.owners, self.plan
        replay, collected = owners.replay, owners.collector.state()
        added = int(replay.counts[0])
        if (replay.counts != added).any():
            raise UserError("loop device: the streams of this run have different lengths; resume it with --loop host")
        columns: dict[str, Any] = dict(replay.columns)
        mesh = owners.learner.mesh
        ring = Ring(columns, jnp.int32(added), jnp.int32(taken_on(replay, plan.sizes, mesh.size)))
        carry = self._agent.initial_carry(owners.workers.streams)
        leaves = [collected[f"carry/{i:04d}"].astype(x.dtype) for i, x in enumerate(jax.tree.leaves(carry))]
        episodes = owners.tracker.state()
        started, owed = debt(replay.steps, owners.limiter.state(), plan.rate)
        loop = Loop(
            # Acting uses the same random numbers as `Collector`.
            keys=Keys(jax.random.fold_in(self._key, 1), jax.random.fold_in(self._key, 2)),
            train=owners.learner.state, ring=ring, envs=owners.workers.take(),
            carry=jax.tree.unflatten(jax.tree.structure(carry), leaves), acted=jnp.int32(collected["count"]),
            episodes=Episodes(jnp.float32(episodes["returns"]), jnp.int32(episodes["lengths"])),
            started=jnp.bool_(started), debt=jnp.int32(owed),
        )  # fmt: skip
        with owners.learner.as_user_errors("moving the replay to the device"):
            if mesh.size == 1:
                return placement.first_copy(loop, home(mesh))
            return jax.device_put(loop, meshes.shardings(mesh), may_alias=False)

    def receive(self, rows: Mapping[str, np.ndarray], report: Report, train: Callable[[], Any]) -> None:
        """Adds the rows {name: [S, n, ..]} and the metrics of the last turns to the run.

        report: with numpy arrays []. train() -> the train state after these turns
        Raises UserError if the parameters have diverged, or if a row is not finite. The run then cannot be saved.
        """
        owners, updates, episodes = self.owners, int(report.updates), int(report.episodes)
        if not report.finite:
            owners.learner.load(placement.first_copy(train(), home(owners.learner.mesh)), owners.learner.updates)
            raise UserError("the parameters have diverged: they are no longer finite")
        try:
            self._check_rows(rows)
            spans.append(owners.replay, dict(rows))
            owners.learner.updates += updates
            if updates:
                means = {name: float(total) / updates for name, total in report.metrics.items()}
                owners.logger.add(means, count=updates)
            if episodes:
                sums = {"return": report.returns, "length": report.lengths, **report.own}
                means = {f"episode/{name}": float(total) / episodes for name, total in sums.items()}
                owners.logger.add(means, count=episodes)
        except BaseException:
            owners.learner.forget()  # the parts of the run are of different steps
            raise

    def _check_rows(self, rows: Mapping[str, np.ndarray]) -> None:
        """Raises UserError if the rows break the contract of a JaxEnv."""
        workers = self.owners.workers
        # Any row may be a reset row after a resume, so the first one is not compared with the row before.
        first = [rows["is_first"][:, :1], resets_after(workers.spec, rows["is_last"][:, :-1])]
        check_rows(workers.spec, rows, np.concatenate(first, 1), workers.named)

    def settle(self, loop: Loop) -> None:
        """Copies the state in `loop` to the parts of the run, for a checkpoint or an evaluation."""
        owners = self.owners
        left: Any = dict.fromkeys(("keys", "train", "envs", "carry"))
        numbers = {**left, "ring": loop.ring._replace(columns={})}
        host: Any = placement.to_host(loop._replace(**numbers))
        owners.learner.load(placement.first_copy(loop.train, home(owners.learner.mesh)), owners.learner.updates)
        owners.workers.give_back(placement.first_copy(loop.envs))
        leaves = jax.tree.leaves(placement.to_host(loop.carry))
        owners.collector.load({**{f"carry/{i:04d}": x for i, x in enumerate(leaves)}, "count": host.acted})
        owners.tracker.load_state(
            {"returns": host.episodes.returns.astype(np.float64), "lengths": host.episodes.lengths.astype(np.int64)}
        )
        owners.limiter.load(credited(owners.replay.steps, host, self.plan.rate))
        latents = {name: column for name, column in loop.ring.columns.items() if name.startswith("latent/")}
        spans.put_held_latents(owners.replay, placement.to_host(latents))
        spans.put_queue(owners.replay, queue(host.ring, self.plan.sizes))


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
    taken = np.atleast_1d(ring.taken)
    own, queued = sizes.streams // len(taken), []
    for device, count in enumerate(taken.tolist()):
        new = range(max(count, own * oldest), own * whole)
        queued += [(j // own * sizes.sequence, device * own + j % own) for j in new]
    return [(stream, start) for start, stream in sorted(queued)]


def taken_on(replay: Replay, sizes: Sizes, devices: int) -> int | list[int]:
    """Returns `Ring.taken` for so many devices: a number for one, else one for the streams of each."""
    if devices == 1:
        return taken(replay, sizes)
    own = sizes._replace(streams=sizes.streams // devices)
    return [taken(replay, own, first) for first in range(0, sizes.streams, own.streams)]


def taken(replay: Replay, sizes: Sizes, first: int = 0) -> int:
    """Returns how many new sequences were trained on or dropped, from the queue of the replay.

    Counts the sequences of `sizes.streams` streams from `first` on. If they were not taken in the order of these
    streams, because the run had another number of devices, counts those before the first sequence that is left.
    """
    for stream, start in replay.queue:
        if first <= stream < first + sizes.streams:
            return start // sizes.sequence * sizes.streams + stream - first
    return sizes.streams * (int(replay.counts[0]) // sizes.sequence)


def credited(steps: int, loop: Any, rate: Fraction) -> str | None:
    """Returns `Limiter.state`: the step up to which all updates were made. loop: with numbers on the host."""
    return str(steps - Fraction(int(loop.debt), rate.numerator)) if rate and bool(loop.started) else None


def debt(steps: int, state: str | None, rate: Fraction) -> tuple[bool, int]:
    """Returns `started` and `debt` of a Loop from `Limiter.state`. Raises UserError if the debt is not whole."""
    if state is None:
        return False, 0
    owed = (steps - Fraction(state)) * rate.numerator
    if owed.denominator != 1 or not 0 <= owed < LARGEST:
        raise UserError("loop device: this checkpoint has another replay ratio; resume it with --loop host")
    return True, int(owed)
