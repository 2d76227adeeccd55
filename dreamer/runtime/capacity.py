"""How many rows the replay may hold: plain arithmetic, done and printed before any memory is taken. No jax."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import ml_dtypes
import numpy as np

from dreamer.errors import UserError
from dreamer.spaces import Space, Spec

GB = 10**9


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The size of a replay.

    envs: rings. rows_per_env: rows of each. row_bytes: bytes of one row, all columns.
    free_bytes: host memory that is free, None if unknown. bound: the setting that keeps it from being larger.
    """

    envs: int
    rows_per_env: int
    row_bytes: int
    free_bytes: int | None
    bound: str

    @property
    def steps(self) -> int:
        """Rows of all rings."""
        return self.envs * self.rows_per_env

    @property
    def nbytes(self) -> int:
        """Bytes that the full replay takes."""
        return self.steps * self.row_bytes

    def describe(self) -> str:
        """The line that is printed before the memory is taken."""
        free = "" if self.free_bytes is None else f" (of {_size(self.free_bytes)} free)"
        size = f"{self.steps:,} steps x {_size(self.row_bytes)} = {_size(self.nbytes)}"
        return f"replay: {size}{free}, bounded by {self.bound}"


def dtype_of(space: Space) -> np.dtype:
    """The numpy dtype of a space; "bfloat16" is not among numpy's own names."""
    return np.dtype(ml_dtypes.bfloat16) if space.dtype == "bfloat16" else np.dtype(space.dtype)


def columns_of(spec: Spec, storage: Mapping[str, Space]) -> dict[str, Space]:
    """All that one row holds, by name: "obs/<key>", "action", "reward", the three flags, "latent/<name>"."""
    return {
        **{f"obs/{key}": space for key, space in spec.obs.items()},
        "action": Space((spec.action_width,), "float32"),
        "reward": Space((), "float32"),
        "is_first": Space((), "bool"),
        "is_last": Space((), "bool"),
        "is_terminal": Space((), "bool"),
        **{f"latent/{name}": space for name, space in storage.items()},
    }


def row_bytes(columns: Mapping[str, Space]) -> int:
    """Bytes of one row."""
    return sum(math.prod(space.shape) * dtype_of(space).itemsize for space in columns.values())


def fit(
    bytes_per_row: int,
    *,
    envs: int,
    sequence: int,
    env_steps: int,
    capacity_steps: int,
    capacity_gb: float,
    free_bytes: int | None,
) -> Capacity:
    """The largest replay that every limit allows.

    sequence: rows of one sampled sequence. env_steps: rows that the run makes; more are never needed.
    capacity_gb: 0 means half of `free_bytes`. free_bytes: None when the system does not tell.
    Raises UserError when no sequence fits in a ring, or when the memory asked for is not there.
    """
    if capacity_gb:
        memory, memory_bound = capacity_gb * GB, "replay.capacity_gb"
    elif free_bytes is not None:
        memory, memory_bound = free_bytes / 2, "half of the free memory (replay.capacity_gb)"
    else:
        raise UserError("replay.capacity_gb is 0 (half of the free memory), but this system does not tell what is free")
    limits = {
        "env_steps": -(-env_steps // envs),
        "replay.capacity_steps": capacity_steps // envs,
        memory_bound: int(memory / (bytes_per_row * envs)),
    }
    bound = min(limits, key=lambda name: limits[name])
    capacity = Capacity(envs, limits[bound], bytes_per_row, free_bytes, bound)
    if capacity.rows_per_env < sequence:
        raise UserError(
            f"replay: {bound} leaves {capacity.rows_per_env} rows for each of {envs} environments, "
            f"but one sequence (replay.batch_length + replay.context) needs {sequence}"
        )
    if free_bytes is not None and capacity.nbytes > free_bytes:
        raise UserError(
            f"replay.capacity_gb: {capacity.steps:,} steps x {_size(bytes_per_row)} = {_size(capacity.nbytes)}, "
            f"but only {_size(free_bytes)} are free"
        )
    return capacity


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


def _size(count: float) -> str:
    """Bytes for people, in the decimal units of `capacity_gb`."""
    for unit, scale in (("GB", GB), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
