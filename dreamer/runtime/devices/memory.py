"""Measures the memory of a device."""

from __future__ import annotations

import jax
import psutil


def free_memory() -> int:
    """Returns the bytes that are free on the first device of this process. A CPU uses the memory of the machine."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available
