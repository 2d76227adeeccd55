"""The learner: owns the TrainState on the devices; takes batches and returns metrics and refreshed latents."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dreamer.interfaces import Agent, Array, Batch, TrainState, Update, Variables
from dreamer.runtime.devices import errors as device_errors
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.devices.mesh import Config, configured_mesh, home, mesh_of, own
from dreamer.runtime.devices.programs import PolicyPart, Updates
from dreamer.spaces import Spec, for_device
from dreamer.steps import Rows


class Pending(NamedTuple):
    """The result of one update that may still be in progress on the device.

    rows: the rows of the replay to which the latents belong | out: the result, see `interfaces.Update`
    sent: the time.monotonic() seconds at which the update was dispatched
    """

    rows: Rows
    out: Update
    sent: float


class PendingUpdates(NamedTuple):
    """The results of several updates in one call, like `Pending`. rows: those of each update."""

    rows: tuple[Rows, ...]
    out: Updates
    sent: float


class PolicyParams(NamedTuple):
    """The variables that acting reads, after `updates` updates. leaves: their arrays, which are never donated."""

    updates: int
    leaves: list[Array]


class Learner:
    """Owns the train state and the snapshots of the parameters used for acting.

    updates: the number of updates made | idle: the total seconds in which no update was in flight. Each pause begins
    when the host has fetched the result of an update, and ends when the next update is dispatched.
    With lockstep, acting waits for the update in flight and uses the newest parameters. Without lockstep, acting uses
    the newest parameters that are ready, which are at most one call of the device old.
    """

    def __init__(
        self, agent: Agent, spec: Spec, *, seed: int, batch_size: int, lockstep: bool, config: Config | None = None,
        mesh: Mesh | None = None, part: PolicyPart | None = None, sizes: Mapping[str, int] | None = None,
    ):  # fmt: skip
        """batch_size: the batch size of all processes together. config: the devices to use; None: all devices.

        mesh: the devices to use instead of those of the config
        part: that of another Learner with the same agent; None: finds it out.
        sizes: the config fields on which the memory of an update depends, with their values, for errors.
        Raises UserError if devices are missing, or if the batch or the state cannot be split over them.
        """
        self.mesh = mesh or configured_mesh(config or Config(), batch_size)
        # On the first device, for which all members of a population compile it once.
        init = programs.jit_init(agent, self.mesh if self.mesh.size > 1 else mesh_of(jax.local_devices()[0]))
        self.state: TrainState = placement.place_state(self.mesh, init(jax.random.key(seed)))
        self._agent = agent
        self.updates = 0
        self.idle = 0.0
        self._done: float | None = None  # time at which the last fetched update was done
        self._obs = spec.obs
        self.part = part or programs.policy_part(agent, spec)
        self._update: Any = programs.jit_update(agent, self.mesh)
        self._updates: Any = programs.jit_updates(agent, self.mesh)  # compiled only if it is used
        self._report = programs.jit_report(agent)
        self._sizes = sizes or {"replay.batch_size": batch_size}
        self._lockstep = lockstep
        self._snapshots = (self._copy(), self._copy())
        self._held: Callable[[], TrainState | None] | None = None

    def place(self, batch: Batch) -> Batch:
        """Places a batch [B, C+T, ..] on the devices for `step`. Do not change the batch afterwards.

        With several processes, the batch is the share of this process. Callable from any thread.
        """
        return placement.place_batch(self.mesh, self._cast(batch))

    def step(self, batch: Batch, rows: Rows) -> Pending:
        """Dispatches one update with a batch [B, C+T, ..] from `place`. Returns before the device is done.

        rows [B, T]: the rows of the replay in the batch.
        Raises UserError if the device has no memory left or fails, as `compile`, `fetch`, `sync` and `report` do.
        """
        sent = time.monotonic()
        with self.as_user_errors("an update"):
            self.state, out = self._update(self.state, batch)
            self.updates += 1
            self._snapshots = (self._snapshots[1], self._copy())
            placement.begin_to_host(out)
        return Pending(rows, out, sent)

    def step_several(self, batches: Sequence[Batch], rows: Sequence[Rows]) -> PendingUpdates:
        """Dispatches one update with each batch, in one call, with the same results as a `step` with each.

        batches, rows: as for `step`. Raises UserError as `step` does.
        """
        sent = time.monotonic()
        with self.as_user_errors(_several(batches)):
            self.state, out = self._updates(self.state, list(batches))
            self.updates += len(batches)
            self._snapshots = (self._snapshots[1], self._copy())
            placement.begin_to_host(out)
        return PendingUpdates(tuple(rows), out, sent)

    def compile_several(self, batches: Sequence[Batch]) -> None:
        """Compiles `step_several` for this number of batches of these shapes, without running it."""
        placed = [self.place(batch) for batch in batches]
        with self.as_user_errors(f"compiling {_several(batches)}"):
            self._updates = self._updates.lower(self.state, placed).compile()
            device_errors.check_fits(self._updates, own(self.mesh))

    def compile(self, batch: Batch) -> None:
        """Compiles the update for batches of this shape, without running it."""
        batch = self.place(batch)
        with self.as_user_errors("compiling the update"):
            self._update = self._update.lower(self.state, batch).compile()
            device_errors.check_fits(self._update, own(self.mesh))

    def fetch(self, update: Pending) -> Update:
        """Waits for an update and returns its result as numpy arrays.

        Fetch every update, in the order of the `step` calls. With several processes, the result is the share of this
        process.
        """
        with self.as_user_errors("an update"):
            out = placement.to_host(update.out)
        self.worked(update.sent, time.monotonic())
        return out

    def fetch_several(self, updates: PendingUpdates) -> list[Update]:
        """Waits for the updates of one call and returns the result of each, as `fetch` does. Fetch calls in order."""
        with self.as_user_errors(_several(updates.rows)):
            out = placement.to_host(updates.out)
        self.worked(updates.sent, time.monotonic())
        surprises = out.surprise or [None] * len(updates.rows)
        each = [{name: x[n] for name, x in out.metrics.items()} for n in range(len(updates.rows))]
        return [Update(*one) for one in zip(out.latent, each, surprises, strict=True)]

    def worked(self, begun: float, done: float) -> None:
        """Records that the device made updates between two time.monotonic() seconds, so that only pauses are `idle`."""
        if self._done is not None:
            self.idle += max(0.0, begun - self._done)
        self._done = done

    def variables(self) -> dict[str, Variables]:
        """Returns the newest variables for acting and dreaming, as a copy on the first device."""
        return placement.first_copy(self._agent.variables(self.state))

    def snapshot(self) -> PolicyParams:
        """Returns the parameters to act with at this moment. Callable from any thread."""
        previous, newest = self._snapshots
        leaves: list[Any] = newest.leaves
        ready = self._lockstep or all(leaf.is_ready() for leaf in leaves)
        return newest if ready else previous

    def sync(self) -> None:
        """Waits for the updates in flight. Acting then uses the newest parameters.

        The pause before the next update does not count as `idle`.
        """
        with self.as_user_errors("an update"):
            jax.block_until_ready((self.state, self._snapshots))
        self._done = None

    def hold(self, state: Callable[[], TrainState | None]) -> None:
        """Makes `settle` copy the train state that `state` returns; None: the state here is the newest."""
        self._held = state

    def settle(self) -> None:
        """Copies a train state that is held elsewhere, see `hold`, for a checkpoint or an evaluation."""
        state = self._held() if self._held else None
        if state is not None:
            self.load(state, self.updates)

    def follow(self, leaves: list[Array]) -> None:
        """Makes acting use `leaves`, which `PolicyPart.take` returned for a train state that is held elsewhere."""
        newest = PolicyParams(self.updates, leaves)
        self._snapshots = (newest, newest)

    def lost(self) -> bool:
        """Whether the state was lost with a failed device, so that it cannot be saved."""
        return device_errors.lost(self.state)

    def forget(self) -> None:
        """Drops the state, so that `lost` is True: its owner has failed, and what is left here is out of date."""
        for leaf in jax.tree.leaves(self.state):
            leaf.delete()

    def diverged(self) -> bool:
        """Whether a parameter is nan or infinite, so that the state must not be saved."""
        leaves = [leaf for leaf in jax.tree.leaves(self.state.params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)

    def load(self, state: TrainState, updates: int) -> None:
        """Continues from a state saved after `updates` updates. The next update donates the buffers of this state."""
        self.state = placement.place_state(self.mesh, state)
        self.updates = updates
        self._snapshots = (self._copy(), self._copy())

    def report(self, batch: Batch) -> dict[str, Any]:
        """Calls `Agent.report` with a batch [B, C+T, ..] of this process only, and returns numpy arrays."""
        with self.as_user_errors("the images of the world model"):
            return placement.to_host(self._report(placement.local_copy(self.state), self._cast(batch)))

    def as_user_errors(self, doing: str) -> AbstractContextManager[None]:
        """A context that turns device errors into a UserError that names what to change. Can be used in any thread.

        doing: what happens in the context, in the words of the error, such as "an update".
        """
        return device_errors.as_user_errors(
            doing, sizes=self._sizes, fsdp=self.mesh.shape["fsdp"], state=self.state, program=self._update,
            devices=own(self.mesh),
        )  # fmt: skip

    def _cast(self, batch: Batch) -> Batch:
        return batch._replace(obs=for_device(self._obs, batch.obs))

    def _copy(self) -> PolicyParams:
        leaves = self.part.take(self._agent.variables(self.state))
        return PolicyParams(self.updates, placement.first_copy(leaves, home(self.mesh)))


def _several(updates: Sequence[Any]) -> str:
    return f"{len(updates)} updates in one call (updates_per_call)"
