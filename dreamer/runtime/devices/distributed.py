"""Connects several processes that learn together, on one machine or on many, and exchanges numbers between them.

Every process provides its share of each batch, from its own environments and replay. An update is a collective
operation, so all processes must decide alike whether to make one. They exchange the numbers for this decision with
`gather`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.devices.mesh import Config


def start(config: Config) -> None:
    """Connects this process to the others, if the config has a coordinator. Call it before anything uses a device.

    Raises UserError if `check` finds a wrong field, or if the other processes cannot be reached.
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
        raise UserError(f"devices.coordinator {config.coordinator}: {who} cannot reach the others: {reason}") from error


def check(config: Config) -> None:
    """Checks the fields for several processes: `coordinator`, `processes` and `process_id`.

    Raises UserError naming the first field that is missing, out of range, or set without the address of a coordinator.
    """
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
    """Returns the number of processes that learn together."""
    return jax.process_count()


def refuse_several(config: Config) -> None:
    """Raises UserError if the config asks for several processes. Features that support only one process call this."""
    check(config)
    if config.coordinator:
        raise UserError(
            "devices.coordinator: dreamer train learns in one process, on all devices of its machine. The learner "
            "supports several (dreamer.runtime.devices.distributed), but a run does not yet share its environments, "
            "agree on when to save and stop, or restore the replays of other processes. Leave it empty"
        )


def share(name: str, whole: int) -> int:
    """Returns this process's share of `whole`, such as a batch size, which is divided evenly over the processes.

    name: the config field of `whole`. Raises UserError naming the field if the shares cannot be equal.
    """
    if whole % count():
        below = whole // count() * count()
        choices = " or ".join(str(n) for n in (below, below + count()) if n)
        raise UserError(f"{name} {whole} cannot be shared evenly by {count()} processes; give {choices}")
    return whole // count()


def gather(values: Sequence[int]) -> np.ndarray:
    """Gathers the values of all processes and returns them as int64 [processes, len(values)].

    This is a collective operation: all processes must call it, and in the same order as their other collectives.
    """
    if count() == 1:
        return np.array([values], np.int64)
    from jax.experimental import multihost_utils

    # As two int32 each: jax without 64-bit types would truncate them.
    halves = np.array(values, np.int64).view(np.int32)
    gathered = np.asarray(multihost_utils.process_allgather(halves))
    return np.ascontiguousarray(gathered.reshape(count(), -1), np.int32).view(np.int64)
