"""How much host memory is free. No jax."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of host memory that this process may still take, None when the system does not tell.

    The least of what the machine has and what each control group (a container, a Slurm job) leaves.
    `root` is the file system to read, another one in tests.
    """
    available = _meminfo(root)
    if available is None:
        return None
    return max(0, min([available, *_cgroup_rooms(root)]))


def _meminfo(root: Path) -> int | None:
    """MemAvailable of Linux; elsewhere free pages, or all pages where free ones are not counted."""
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = getattr(os, "sysconf_names", {})
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        if name in names and "SC_PAGE_SIZE" in names:
            return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    return None


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """What each control group above this process leaves: its limit less what it cannot reclaim."""
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
    """One number of a control group's memory.stat; 0 when it is not listed."""
    if not path.exists():
        return 0
    return next((int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name), 0)
