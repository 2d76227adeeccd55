"""Runs many environments in this process, in worker processes or in Ray actors. Imports no jax.

interface   what other packages use: Config, Workers, Ready, Incident (a failure of environments)
table       the rows of each environment, one per agent, and its phase: busy, ready or waiting for actions
faults      counts of incidents, and the seeds of the environments that replace failed ones
inline      all environments in this process
remote      code shared by processes and ray_cluster
processes   worker processes: process (the parent's side), child (the worker's side), messages, memory
ray_cluster Ray actors on any machines: actor (the code inside an actor)
own_thread  a thread for calls that may hang, so that the caller can stop waiting
screen      keeps environments from opening windows
guarded     one environment of a worker process or actor, with errors returned as incidents
auto        chooses inline or processes
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
    first: int = 0,
    total: int = 0,
) -> Workers:
    """Makes `config.envs` copies of one environment; copy i has the seed `seed + i`. Raises UserError if this fails.

    env_name, options, render_mode: as in `plugins.make_env` | action_repeat: how often each action is repeated
    folder: the working directory in which the environments are made; "": the current one
    first, total: as in `WorkerPlan`
    """
    check_bounds(config, "workers")
    if config.backend not in BACKENDS:
        raise UserError(f"workers.backend {config.backend!r} is unknown{nearest(config.backend, BACKENDS)}")
    folder = folder or os.getcwd()
    plan = WorkerPlan(
        env_name, dict(options or {}), action_repeat, seed, render_mode, config.envs, folder, first, total
    )
    backend, why = auto.choose(plan, config.timeout) if config.backend == "auto" else (config.backend, "")
    if backend == "inline":
        return InlineWorkers(plan, config.restarts, why)
    processes = min(config.processes or config.envs, config.envs)
    if backend == "ray":
        from dreamer.runtime.workers.ray_cluster import RayWorkers

        return RayWorkers(plan, processes, address=config.address, timeout=config.timeout, restarts=config.restarts)
    return ProcessWorkers(plan, processes, timeout=config.timeout, restarts=config.restarts, why=why)
