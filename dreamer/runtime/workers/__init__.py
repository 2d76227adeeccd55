"""Many environments, in this process or in several, each stepping at its own pace. No jax.

interface   what the rest of the framework knows: Config, Workers, Ready, Incident
table       the rows of each environment, one for each of its agents, and whose turn it is
faults      incidents counted, seeds of replaced environments
inline      all in this process
remote      shared code of both sets outside this process
processes   in worker processes: process (one of them), child (its inside), messages and memory between
ray_cluster in Ray actors on any machines: actor (the inside of one)
own_thread  a thread for calls that may hang: the caller can stop waiting
screen      no window for environments that only draw images
guarded     one environment of a worker process or an actor, its errors returned as incidents
auto        inline or processes
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dreamer.errors import UserError, nearest
from dreamer.fields import check_bounds
from dreamer.plugins import EnvName
from dreamer.runtime.workers import auto
from dreamer.runtime.workers.inline import InlineWorkers
from dreamer.runtime.workers.interface import Config, Incident, Ready, WorkerPlan, Workers, WorkersState
from dreamer.runtime.workers.processes import ProcessWorkers

__all__ = ["Config", "Incident", "InlineWorkers", "ProcessWorkers", "Ready", "WorkersState", "Workers", "make_workers"]
BACKENDS = ("auto", "inline", "processes", "ray")


def make_workers(
    config: Config,
    env_name: EnvName,
    options: Mapping[str, Any] | None = None,
    *,
    action_repeat: int = 1,
    seed: int = 0,
    render_mode: str | None = None,
    folder: str = "",
) -> Workers:
    """`config.envs` copies of one environment; number i is seeded with seed + i. Raises UserError.

    folder: the folder in which they are made; "" = the current one.
    """
    check_bounds(config, "workers")
    if config.backend not in BACKENDS:
        raise UserError(f"workers.backend {config.backend!r} is unknown{nearest(config.backend, BACKENDS)}")
    folder = folder or os.getcwd()
    plan = WorkerPlan(env_name, dict(options or {}), action_repeat, seed, render_mode, config.envs, folder)
    backend, why = auto.choose(plan, config.timeout) if config.backend == "auto" else (config.backend, "")
    if backend == "inline":
        return InlineWorkers(plan, config.restarts, why)
    processes = min(config.processes or config.envs, config.envs)
    if backend == "ray":
        from dreamer.runtime.workers.ray_cluster import RayWorkers

        return RayWorkers(plan, processes, address=config.address, timeout=config.timeout, restarts=config.restarts)
    return ProcessWorkers(plan, processes, timeout=config.timeout, restarts=config.restarts, why=why)
