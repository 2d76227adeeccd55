"""Owns the TrainState on the devices: batches in, metrics and refreshed latents out."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.interfaces import Agent, Array, Batch, TrainState, Update, Variables
from dreamer.runtime.devices import errors as device_errors
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.devices.mesh import Config, configured_mesh, own
from dreamer.spaces import Spec, for_device
from dreamer.steps import Rows


class Pending(NamedTuple):
    """What one update gives, still on its way from the device.

    rows: where the latents belong | out: the update's, see `interfaces.Update`
    sent: the monotonic second at which its sending began
    """

    rows: Rows
    out: Update
    sent: float


class PolicyParams(NamedTuple):
    """The variables that acting reads, as they were after `updates` updates; never a buffer that is donated."""

    updates: int
    leaves: list[Array]


class Learner:
    """Owns the train state and the snapshots of the parameters that act.

    idle: seconds so far in which the devices had no update under way, as far as the host can tell: from the moment at
    which the end of one was noticed until the sending of the next began. Only grows.
    With lockstep the newest parameters act, and acting waits for the update under way; without, the newest that are
    ready, which are one update old at most.
    """

    def __init__(
        self, agent: Agent, spec: Spec, *, seed: int, batch_size: int, lockstep: bool, config: Config | None = None
    ):
        """batch_size: of all processes together. config: None takes all devices of each.

        Raises UserError when devices are missing, or when the batch or the state cannot be split over them.
        """
        self.mesh = configured_mesh(config or Config(), batch_size)
        self.state: TrainState = programs.jit_init(agent, self.mesh)(jax.random.key(seed))
        self._agent = agent
        self.updates = 0
        self.idle = 0.0
        self._done: float | None = None  # the second at which the last update was done that was fetched
        self._obs = spec.obs
        self.part = programs.policy_part(agent, spec)
        self._update: Any = programs.jit_update(agent, self.mesh)
        self._report = programs.jit_report(agent)
        self._batch_size, self._batch_length = batch_size, 0
        self._lockstep = lockstep
        self._snapshots = (self._copy(), self._copy())

    def place(self, batch: Batch) -> Batch:
        """A batch on the devices, as `step` takes it; from any thread. Its memory must not be written any more.

        With several processes: the share of this one.
        """
        return placement.place_batch(self.mesh, self._cast(batch))

    def step(self, batch: Batch, rows: Rows) -> Pending:
        """One update with a batch that `place` gave. Returns before the device is done.

        Raises UserError when the device has no memory left or fails, as do the methods below.
        """
        sent = time.monotonic()
        with self.as_user_errors("an update"):
            self.state, out = self._update(self.state, batch)
            self.updates += 1
            self._snapshots = (self._snapshots[1], self._copy())
            placement.begin_to_host(out)
        return Pending(rows, out, sent)

    def compile(self, batch: Batch) -> None:
        """Compiles the update for batches of this shape, without making one."""
        batch = self.place(batch)
        self._batch_length = batch.reward.shape[1] - bool(batch.latent)
        with self.as_user_errors("compiling the update"):
            self._update = self._update.lower(self.state, batch).compile()

    def fetch(self, update: Pending) -> Update:
        """What an update gives as numpy arrays, of this process; waits for the device.

        One update after the other, in the order in which they were made.
        """
        with self.as_user_errors("an update"):
            out = placement.to_host(update.out)
        if self._done is not None:
            self.idle += max(0.0, update.sent - self._done)
        self._done = time.monotonic()
        return out

    def variables(self) -> dict[str, Variables]:
        """What acting and dreaming take, on the first device: a copy of the newest."""
        return placement.first_copy(self._agent.variables(self.state))

    def snapshot(self) -> PolicyParams:
        """The parameters that act now; from any thread."""
        previous, newest = self._snapshots
        leaves: list[Any] = newest.leaves
        ready = self._lockstep or all(leaf.is_ready() for leaf in leaves)
        return newest if ready else previous

    def sync(self) -> None:
        """Waits for the updates under way; the newest parameters act afterwards, and idling is counted anew."""
        with self.as_user_errors("an update"):
            jax.block_until_ready((self.state, self._snapshots))
        self._done = None

    def lost(self) -> bool:
        """Whether the state went down with a device that failed: nothing of it can be saved."""
        return device_errors.lost(self.state)

    def diverged(self) -> bool:
        """Whether a parameter is no longer finite: such a state is of no use to anyone."""
        leaves = [leaf for leaf in jax.tree.leaves(self.state.params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)

    def load(self, state: TrainState, updates: int) -> None:
        """Goes on from a state that was saved after so many updates; it is donated by the next one."""
        self.state = placement.place_state(self.mesh, state)
        self.updates = updates
        self._snapshots = (self._copy(), self._copy())

    def report(self, batch: Batch) -> dict[str, Any]:
        """`Agent.report` as numpy arrays; of a batch that this process alone has."""
        with self.as_user_errors("the pictures of the world model"):
            return placement.to_host(self._report(placement.local_copy(self.state), self._cast(batch)))

    def as_user_errors(self, doing: str) -> AbstractContextManager[None]:
        """Turns what a device raises meanwhile into a UserError that says what to change; for any thread."""
        return device_errors.as_user_errors(
            doing, batch=(self._batch_size, self._batch_length), fsdp=self.mesh.shape["fsdp"], state=self.state,
            program=self._update, devices=own(self.mesh),
        )  # fmt: skip

    def _cast(self, batch: Batch) -> Batch:
        return batch._replace(obs=for_device(self._obs, batch.obs))

    def _copy(self) -> PolicyParams:
        return PolicyParams(self.updates, placement.first_copy(self.part.take(self._agent.variables(self.state))))
