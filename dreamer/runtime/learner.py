"""Owns the TrainState on the devices: batches in, metrics and refreshed latents out."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from dreamer.interfaces import PRIORITY, Agent, Batch, Params, TrainState
from dreamer.runtime import devices
from dreamer.runtime.steps import Rows


class Update(NamedTuple):
    """What one update gives, still on its way from the device.

    rows: where the latents belong | latent {name: [B, T, ..]} | metrics {name: []}
    priority [B, T] float32: of these rows, None unless the agent gives priorities
    """

    rows: Rows
    latent: Any
    metrics: Any
    priority: Any = None


class Learner:
    """Owns the train state and the acting copy of its parameters.

    With lockstep, `acting` always holds the newest parameters and acting waits for the update under way; without, it
    may be one update old, so that acting and updating overlap.
    """

    def __init__(self, agent: Agent, *, seed: int, batch_size: int, lockstep: bool):
        """Raises UserError when the batch cannot be split over the devices."""
        self.mesh = devices.make_mesh()
        devices.check_batch_size(self.mesh, batch_size)
        whole = devices.replicated(self.mesh)
        self.state: TrainState = jax.jit(agent.init, out_shardings=whole)(jax.random.key(seed))
        self.updates = 0
        self._update: Any = devices.jit_update(agent, self.mesh)
        self._report = jax.jit(agent.report)
        self._lockstep = lockstep
        self.acting: Params = devices.first_copy(self.state.params)
        self._newest: Params = self.acting

    def place(self, batch: Batch) -> Batch:
        """A batch on the devices, as `step` takes it; from any thread. Its memory must not be written any more."""
        return jax.device_put(batch, devices.split(self.mesh))

    def step(self, batch: Batch, rows: Rows) -> Update:
        """One update with a batch that `place` gave. Returns before the device is done."""
        self.state, latent, metrics = self._update(self.state, batch)
        self.updates += 1
        previous, self._newest = self._newest, devices.first_copy(self.state.params)
        self.acting = self._newest if self._lockstep else previous
        priority = latent.get(PRIORITY)
        return Update(rows, {name: x for name, x in latent.items() if name != PRIORITY}, metrics, priority)

    def compile(self, batch: Batch) -> None:
        """Compiles the update for batches of this shape, without making one."""
        batch = self.place(batch)
        self._update = self._update.lower(self.state, batch).compile()

    def sync(self) -> None:
        """Waits for the updates under way; `acting` is the newest parameters afterwards."""
        jax.block_until_ready(self.state)
        self.acting = self._newest

    def report(self, batch: Batch) -> dict[str, Any]:
        """`Agent.report` as numpy arrays."""
        return devices.to_host(self._report(self.state, batch))
