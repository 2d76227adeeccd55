"""Measures the free host memory. Imports no jax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil


def free_memory(root: Path = Path("/")) -> int:
    """Returns the bytes of host memory that this process can still allocate.

    This is the minimum of the machine's free memory and the free memory of each control group (a container, a Slurm
    job); psutil ignores control groups. root: the folder with `proc` and `sys`; tests pass another one.
    """
    return max(0, min([psutil.virtual_memory().available, *_cgroup_rooms(root)]))


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Yields the free bytes of each control group of this process: its limit minus its unreclaimable memory."""
    listing = root / "proc/self/cgroup"
    if not listing.exists():
        return
    for line in listing.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            mount, limit, usage, cache = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, cache = "sys/fs/cgroup/memory", "total_inactive_file"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Inside a container the listed path may be the host's; its own group is then mounted at the top.
        for path in (PurePosixPath(group), *PurePosixPath(group).parents):
            folder = root / mount / str(path).lstrip("/")
            if (folder / limit).exists() and (value := (folder / limit).read_text().strip()) != "max":
                used = int((folder / usage).read_text()) if (folder / usage).exists() else 0
                yield int(value) - used + _statistic(folder / "memory.stat", cache)


def _statistic(path: Path, name: str) -> int:
    """Returns one number of a control group's memory.stat, or 0 if the file does not list it."""
    if not path.exists():
        return 0
    return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name), 0)
