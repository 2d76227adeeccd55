"""Connects several processes that learn together, on one machine or on many, and exchanges numbers between them.

Every process provides its share of each batch, from its own environments and replay. An update is a collective
operation, so all processes must decide alike whether to make one. They exchange the numbers for this decision with
`gather`.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.devices.link import Link, Meeting, Server
from dreamer.runtime.devices.mesh import Config

HEARTBEAT = 60  # seconds after which jax ends the processes if one of them no longer answers; `Link` is faster
NO_CLUSTER = "coordinator_address should be defined"


def start(config: Config) -> None:
    """Connects this process to the others, if the config has a coordinator. Call it before anything uses a device.

    Raises UserError if `check` finds a wrong field, or if the other processes cannot be reached.
    """
    check(config)
    if not config.coordinator or jax.distributed.is_initialized():
        return
    found = config.coordinator == "auto"  # by jax
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `stopping`
        jax.distributed.initialize(
            None if found else config.coordinator, None if found else config.processes,
            None if found else config.process_id, heartbeat_timeout_seconds=HEARTBEAT,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        who = f"process {config.process_id} of {config.processes}" if config.processes else "this process"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if config.coordinator == "auto" and reason.startswith(NO_CLUSTER):
            raise UserError(
                "devices.coordinator auto: jax finds no cluster of SLURM, MPI or TPUs here; give the host:port of "
                "process 0, with devices.processes and devices.process_id"
            ) from error
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


def link(name: str, lost: Callable[[str], None]) -> Link:
    """Connects the processes that learn together for decisions on the host. A collective operation.

    name, lost: as in `Link`. Raises UserError if not all processes connect.
    """
    index, server = jax.process_index(), None
    if index == 0:
        server = Server([host for host in (_coordinator_host(), socket.gethostname(), socket.getfqdn()) if host])
    told: Any = _from_first(list(server.meeting) if server else None)
    return Link(index, name, server or Meeting(tuple(told[0]), *told[1:]), count(), lost)


def abandon(code: int) -> None:
    """Makes this process end with the exit code `code`, without waiting for processes that have failed or are gone."""
    atexit.register(_leave, code)  # runs before the handler of jax, which waits for the others


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _coordinator_host() -> str:
    """Returns the host under which the others have reached process 0; "" if jax does not tell."""
    from jax._src import distributed

    address = getattr(distributed.global_state, "coordinator_address", None) or ""
    return address.rpartition(":")[0].strip("[]")


def _from_first(value: Any) -> Any:
    """Returns the JSON value of process 0 in all processes. A collective operation."""
    data = json.dumps(value).encode()
    size = int(gather([len(data)])[0, 0])
    padded = (data + bytes(size))[: -(-size // 8) * 8].ljust(-(-size // 8) * 8, b"\0")
    numbers = gather(np.frombuffer(padded, np.int64).tolist())[0]
    return json.loads(numbers.tobytes()[:size])
