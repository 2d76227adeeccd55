"""A copy of the replay's observations on the devices: each row is sent once, and the device gathers the batches.

Without this copy every batch is sent: with a replay ratio of 128 each row is sent 128 times. The rings on the host are
still the ones that are saved and resumed. The devices hold only copies of their observations, in the dtypes that the
agent takes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dreamer.errors import UserError
from dreamer.interfaces import Array
from dreamer.runtime.devices import errors as device_errors
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.devices.mesh import own
from dreamer.runtime.replay import memory
from dreamer.runtime.replay.replay import Replay
from dreamer.spaces import Spec, for_device
from dreamer.steps import Batch, Rows

MOST_BYTES = 2**26  # sent at a time, so that a resumed replay is not sent in one piece


def describe_observations(spec: Spec, steps: int) -> str:
    """Returns a line that says how much memory the observations of `steps` rows need on each device."""
    return f"observations on each device that learns: {steps:,} steps x {_row_bytes(spec):,} B = {_gb(spec, steps)}"


def _row_bytes(spec: Spec) -> int:
    return sum(math.prod(space.shape) * np.dtype(space.device_dtype).itemsize for space in spec.obs.values())


def _gb(spec: Spec, steps: int) -> str:
    return f"{_row_bytes(spec) * steps / 1e9:.3g} GB"


class DeviceRows:
    """Owns a copy of a replay's observations on each device of a mesh. For use by one thread at a time."""

    def __init__(self, mesh: Mesh, spec: Spec, replay: Replay):
        """Allocates the memory for the full replay. Raises UserError if a device has too little memory."""
        self._spaces, self._replay = spec.obs, replay
        self._rows = replay.size.rows_per_stream
        self._seen = np.zeros_like(replay.counts)
        self._most = 1 << (max(1, MOST_BYTES // _row_bytes(spec)).bit_length() - 1)
        self._write = programs.jit_write_rows(mesh)
        self._gather = programs.jit_gather_rows(mesh, {name: space.shape for name, space in spec.obs.items()})
        steps, place = replay.size.steps, placement.replicated(mesh)
        refused = (
            f"replay.on_device: no device memory left for the observations of {steps:,} steps ({_gb(spec, steps)} on "
            "each device): lower replay.capacity_steps, or leave replay.on_device off"
        )
        free = memory.free_memory() if mesh.devices.flat[0].platform == "cpu" else None
        # On a CPU the system grants more memory than there is, and kills the program when it is used.
        if free is not None and replay.size.nbytes + len(own(mesh)) * steps * _row_bytes(spec) > free:
            raise UserError(refused)
        try:
            # Rows are flat, because a TPU would pad separate image axes to many times their size.
            self._rings: dict[str, Array] = {
                name: jnp.zeros((steps, math.prod(space.shape)), space.device_dtype, device=place)
                for name, space in spec.obs.items()
            }
            jax.block_until_ready(self._rings)
        except jax.errors.JaxRuntimeError as error:
            if not device_errors.full(error):
                raise
            raise UserError(refused) from error

    def sample(self, batch_size: int) -> tuple[Batch, Rows]:
        """Draws a batch as `Replay.sample` does, but with its observations {k: [B, C+T, ..]} on the devices."""
        while self._behind() > self._most:
            self._send(*self._replay.rows_since(self._seen, self._most))
            jax.block_until_ready(self._rings)  # rows in transit take extra memory
        batch, rows, fresh = self._replay.sample_beside(batch_size, self._seen)
        self._send(*fresh)
        context = batch.reward.shape[1] - rows.number.shape[1]
        number = rows.number[:, :1] - context + np.arange(batch.reward.shape[1])
        obs = self._gather(self._rings, self._index(rows.stream[:, None], number))
        return batch._replace(obs=obs), rows

    def _behind(self) -> int:
        return int(np.minimum(self._replay.counts - self._seen, self._rows).sum())

    def _send(self, stream: np.ndarray, number: np.ndarray, obs: dict[str, np.ndarray]) -> None:
        """Sends n rows to the devices: row number[i] of stream[i], with its observations obs {k: [n, ..]}."""
        np.maximum.at(self._seen, stream, number + 1)
        # Padded to a power of two, so that few shapes are compiled; rows beyond the rings are dropped.
        count, room = len(stream), 1 << max(0, len(stream) - 1).bit_length()
        if not count:
            return
        index = np.full(room, self._replay.size.steps, np.int32)
        index[:count] = self._index(stream, number)
        rows = {}
        for name, x in for_device(self._spaces, obs).items():
            rows[name] = np.zeros((room, x[0].size), x.dtype)
            rows[name][:count] = x.reshape(count, -1)
        self._rings = self._write(self._rings, index, rows)

    def _index(self, stream: np.ndarray, number: np.ndarray) -> np.ndarray:
        return (stream * self._rows + number % self._rows).astype(np.int32)
