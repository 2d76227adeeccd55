"""Measures the memory of a device."""

from __future__ import annotations

import jax
import psutil


def free_memory(device: jax.Device | None = None) -> int:
    """Returns the bytes that are free on a device; None: the first one of this process.

    All CPU devices of a process use the memory of the machine, so each of them returns the same number.
    """
    device = device or jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available
