"""Several processes that learn together, on one machine or on many: how they meet, and what they agree on.

Every process feeds its share of each batch, from environments and a replay of its own. The update is a collective, so
whatever decides whether one is made must be the same number in every process: `gather` makes it so.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.devices.mesh import Config


def start(config: Config) -> None:
    """Meets the other processes, if the config tells of any; before anything touches a device.

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
    """UserError naming the field that is missing or out of range, of those that tell of other processes."""
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
    """How many processes learn together."""
    return jax.process_count()


def refuse_several(config: Config) -> None:
    """UserError when a config tells of other processes: for what does not work in several yet."""
    check(config)
    if config.coordinator:
        raise UserError(
            "devices.coordinator: dreamer train learns in one process, on all devices of its machine. The learner can "
            "learn in several (dreamer.runtime.devices.distributed); a run does not yet share out its environments, "
            "agree on when to save and stop, and bring back the replays of other processes. Leave it empty"
        )


def share(name: str, whole: int) -> int:
    """What of `whole` belongs to each process. Raises UserError naming the field when it cannot be shared evenly."""
    if whole % count():
        below = whole // count() * count()
        choices = " or ".join(str(n) for n in (below, below + count()) if n)
        raise UserError(f"{name} {whole} cannot be shared evenly by {count()} processes; give {choices}")
    return whole // count()


def gather(values: Sequence[int]) -> np.ndarray:
    """[processes, len(values)] int64: what each process says. All must call it, in the same order as all else."""
    if count() == 1:
        return np.array([values], np.int64)
    from jax.experimental import multihost_utils

    # In halves: without 64 bits jax would cut them.
    halves = np.array(values, np.int64).view(np.int32)
    said = np.asarray(multihost_utils.process_allgather(halves))
    return np.ascontiguousarray(said.reshape(count(), -1), np.int32).view(np.int64)
