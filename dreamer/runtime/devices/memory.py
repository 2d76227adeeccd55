"""Measures the memory of a device."""

from __future__ import annotations

import jax
import psutil
from jax.sharding import Mesh


def free_memory(device: jax.Device | None = None) -> int:
    """Returns the bytes that are free on a device; None: the first one of this process.

    All CPU devices of a process use the memory of the machine, so each of them returns the same number.
    """
    device = device or jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available


def share(mesh: Mesh, nbytes: int) -> int:
    """Returns the bytes that arrays of `nbytes` bytes, split over a mesh, take of the memory of one device.

    All CPU devices of a process use the same memory, so it has to hold all of them.
    """
    return nbytes if mesh.devices.flat[0].platform == "cpu" else nbytes // mesh.size
