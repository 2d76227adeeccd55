"""The flags of `dreamer sweep`. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from dreamer.apps.sweep import ray_config, slurm
from dreamer.apps.sweep.packing import Pack
from dreamer.fields import at_least


@dataclasses.dataclass(frozen=True)
class SweepFlags:
    """The flags of `dreamer sweep`."""

    run_dir: str = ""
    """Directory of the sweep; empty: sweeps/<name of the file>."""
    print: bool = False
    """List all trials, their programs and the memory of each program, and exit."""
    status: bool = False
    """Show the status of all trials, and exit; SWEEP may be the directory of a sweep."""
    on: Literal["local", "slurm", "ray"] = "local"
    """Where the programs run: on this machine, as array jobs of SLURM (extra slurm), or on a Ray cluster, whose
    machines share the directory of the sweep (extra distributed)."""
    index: str = ""
    """Run one program, given by its number in --print or by its name: for tasks of an array job."""
    pack: Pack = "auto"
    """Trials that differ in seeds and in numbers of the agent share a program: auto, where that is faster; on; off."""
    jobs: Annotated[int, at_least(0)] = 0
    """Programs to run at the same time; 0 = one for each accelerator, or for each core of the CPU."""
    retry: bool = False
    """Run failed trials again, from their last checkpoints."""
    compilation_cache: str = ""
    """Folder of compiled programs that all trials share; empty: in the directory of the sweep; off: none."""
    device_gb: Annotated[float, at_least(0)] = 0.0
    """Memory of the accelerators on which the programs will run; 0 = they run on devices like those of this machine."""
    slurm: slurm.Config = slurm.Config()
    """Resources of a job."""
    ray: ray_config.Config = ray_config.Config()
    """The Ray cluster, and the scheduler of trials on it."""
    until: Annotated[int, at_least(0)] = 0
    """With --index: save and end at the first evaluation after so many env steps; --ray.scheduler pbt uses this."""
    trust: bool = False
    """The sweep and its presets may name code that is not dreamer's."""
