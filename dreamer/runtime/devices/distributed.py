"""Several processes that learn together, on one machine or on many: connecting them, and sharing numbers.

Every process feeds its share of each batch, from its own environments and replay. The update is a collective, so the
numbers that decide whether to make one must be equal in every process: `gather` shares them.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.devices.mesh import Config


def start(config: Config) -> None:
    """Connects to the other processes, if the config names any; call it before anything uses a device.

    Raises UserError naming the field that is missing or out of range, or when the others cannot be reached.
    """
    check(config)
    if not config.coordinator or jax.distributed.is_initialized():
        return
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        if config.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(config.coordinator, config.processes, config.process_id)
    except (RuntimeError, ValueError) as error:
        who = f"process {config.process_id} of {config.processes}" if config.processes else "this process"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"devices.coordinator {config.coordinator}: {who} cannot meet the others: {reason}") from error


def check(config: Config) -> None:
    """Raises UserError naming the first multi-process field that is missing or out of range."""
    if config.coordinator in ("", "auto"):
        for name in ("processes", "process_id"):
            if getattr(config, name) != getattr(Config, name):
                given = f"devices.coordinator is {config.coordinator!r}"
                raise UserError(f"devices.{name} is set, but {given}; give the host:port of process 0")
        return
    host, _, port = config.coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"devices.coordinator must be host:port of process 0, or auto, not {config.coordinator!r}")
    if config.processes < 1:
        raise UserError("devices.processes must be given with devices.coordinator, at least 1")
    if not 0 <= config.process_id < config.processes:
        most = config.processes - 1
        raise UserError(f"devices.process_id must be from 0 to {most} (devices.processes - 1), not {config.process_id}")


def count() -> int:
    """The number of processes that learn together."""
    return jax.process_count()


def refuse_several(config: Config) -> None:
    """Raises UserError when a config names other processes; for features that do not support several yet."""
    check(config)
    if config.coordinator:
        raise UserError(
            "devices.coordinator: dreamer train learns in one process, on all devices of its machine. The learner can "
            "learn in several (dreamer.runtime.devices.distributed); a run does not yet share out its environments, "
            "agree on when to save and stop, and bring back the replays of other processes. Leave it empty"
        )


def share(name: str, whole: int) -> int:
    """The share of `whole` for each process. Raises UserError naming the field when it cannot be split evenly."""
    if whole % count():
        below = whole // count() * count()
        choices = " or ".join(str(n) for n in (below, below + count()) if n)
        raise UserError(f"{name} {whole} cannot be shared evenly by {count()} processes; give {choices}")
    return whole // count()


def gather(values: Sequence[int]) -> np.ndarray:
    """The values of all processes, int64 of shape [processes, len(values)].

    A collective: all processes must call it, in the same order relative to other collectives.
    """
    if count() == 1:
        return np.array([values], np.int64)
    from jax.experimental import multihost_utils

    # As two int32 each: jax without 64-bit types would truncate them.
    halves = np.array(values, np.int64).view(np.int32)
    said = np.asarray(multihost_utils.process_allgather(halves))
    return np.ascontiguousarray(said.reshape(count(), -1), np.int32).view(np.int64)
