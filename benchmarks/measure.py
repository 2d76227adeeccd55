"""Measures one combination of size, observation and dtype: times, operations and memory."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dreamer.config
from benchmarks import operations
from benchmarks.peers.protocol import time_steps
from benchmarks.rounds import summary
from dreamer import agent as agents
from dreamer.interfaces import Agent, Batch
from dreamer.ops import trees
from dreamer.runtime.devices import mesh as meshes
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.env.actions import random_actions
from dreamer.spaces import Action, Space, Spec

ROOT = Path(__file__).parents[1]
SPECS = {
    "proprio": Spec({"vector": Space((24,), "float32")}, Action(continuous=6)),
    "image": Spec({"image": Space((64, 64, 3), "uint8")}, Action((18,))),
    "shapes": Spec({"image": Space((50, 50, 3), "uint8")}, Action((20,))),
}


@dataclasses.dataclass
class Subject:
    """A compiled update with its state and a batch on the device. `step` runs the update once and waits for it."""

    agent: Agent
    spec: Spec
    dtype: str
    update: Any
    state: Any
    batch: Batch
    facts: dict[str, Any]

    def step(self) -> None:
        """Runs one update, which replaces the state, and waits for it."""
        jax.block_until_ready(self.start())

    def start(self) -> Any:
        """Dispatches one update without waiting for it."""
        self.state, out = self.update(self.state, self.batch)
        return self.state, out


def load(size: str, dtype: str, overrides: Mapping[str, Any]) -> agents.Config:
    """The agent's configuration: a preset of experiments/ by name, a dtype, and dotted overrides."""
    overrides = {"agent.compute_dtype": dtype, **overrides}
    return dreamer.config.load(ROOT / "experiments" / f"{size}.yaml", overrides=overrides).agent


def build(config: agents.Config, spec: Spec, batch: tuple[int, int]) -> Subject:
    """Traces and compiles the update for one device, timing both separately, and counts its operations."""
    agent, mesh = agents.make(config, spec), meshes.make_mesh(jax.devices()[:1])
    state = programs.jit_init(agent, mesh)(jax.random.key(0))
    data = jax.device_put(make_batch(spec, agent, *batch), placement.split(mesh))
    clock = [time.perf_counter()]
    traced = programs.jit_update(agent, mesh).trace(state, data)
    lowered = traced.lower()
    clock.append(time.perf_counter())
    update = lowered.compile()
    clock.append(time.perf_counter())
    counted = operations.of_closed(traced.jaxpr)
    facts = {
        "params": trees.count(state.params), "trace_s": round(clock[1] - clock[0], 2),
        "compile_s": round(clock[2] - clock[1], 2), "flops": counted.total, "operations": counted._asdict(),
        "temp_mb": getattr(update.memory_analysis(), "temp_size_in_bytes", 0) // 2**20,
    }  # fmt: skip
    return Subject(agent, spec, agents.compute_dtype(config.compute_dtype).name, update, state, data, facts)


def make_batch(spec: Spec, agent: Agent | None, batch_size: int, length: int) -> Batch:
    """A random batch with one context row, and with latents of 0 if there is an agent, which stores them."""
    rng, shape = np.random.default_rng(0), (batch_size, length + 1)

    def draw(space: Space) -> np.ndarray:
        if space.dtype == "uint8" and len(space.shape) == 3:
            return rng.integers(0, 256, (*shape, *space.shape), np.uint8)
        return rng.normal(size=(*shape, *space.shape)).astype(np.float32)

    action = random_actions(spec.action, rng, math.prod(shape)).reshape(*shape, -1)
    first = np.zeros(shape, bool)
    first[:, 0] = True
    latent = {}
    for name, space in agent.storage.items() if agent else ():
        rows = length + 1 if name in agent.reads else 1
        latent[name] = np.zeros((batch_size, rows, *space.shape), jnp.dtype(space.dtype))
    obs = {k: draw(space) for k, space in spec.obs.items()}
    reward = rng.normal(size=shape).astype(np.float32)
    return Batch(obs, action, reward, first, np.zeros(shape, bool), np.zeros(shape, bool), latent)


def update_times(subject: Subject, steps: int, warmup: int) -> dict[str, Any]:
    """Milliseconds of updates, waiting for each; ms_pipelined: per update, if only the last is waited for."""
    time_steps(subject.step, warmup)
    row: dict[str, Any] = summary(time_steps(subject.step, steps))
    count = min(steps, 20)
    start = time.perf_counter()
    for _ in range(count):
        out = subject.start()
    jax.block_until_ready(out)
    return row | {"ms_pipelined": round(1e3 * (time.perf_counter() - start) / count, 3), "steps": steps}


def policy_times(subject: Subject, envs: int, steps: int = 50) -> dict[str, float]:
    """Milliseconds of one policy step with numpy in and out."""
    act, key = jax.jit(subject.agent.act), jax.random.key(0)
    variables = subject.agent.variables(subject.state)
    obs = {k: v[:, 0] for k, v in make_batch(subject.spec, None, envs, 1).obs.items()}
    carry, first = subject.agent.initial_carry(envs), np.zeros(envs, bool)

    def step() -> None:
        nonlocal carry
        carry, action = act(variables, key, carry, obs, first)
        np.asarray(action)

    time_steps(step, 10)
    times = time_steps(step, steps)
    return {f"policy{envs}_ms_median": round(statistics.median(times), 3), f"policy{envs}_ms_min": round(min(times), 3)}


def matmul_peak(dtype: str, repeats: int = 8) -> float:
    """GFLOP/s of the best of several square matrix products: the machine's current peak. Float32 on a CPU."""
    on_cpu = jax.default_backend() == "cpu"
    n, kind = (2048, "float32") if on_cpu else (8192, dtype)
    a, b = (jax.random.normal(jax.random.key(i), (n, n), kind) for i in range(2))
    product: Callable = jax.jit(jnp.matmul)
    best = min(time_steps(lambda: jax.block_until_ready(product(a, b)), repeats + 2)[2:])
    return 2 * n**3 / best / 1e6


def device_peak_mb() -> int | None:
    """Peak megabytes in use on the device; None if the device does not report it, as on a CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] // 2**20 if "peak_bytes_in_use" in stats else None


def machine() -> dict[str, Any]:
    """The machine and the versions with which a row is measured."""
    device = jax.devices()[0]
    names = ("jax", "jaxlib", "numpy", "flax", "optax")
    return {
        "platform": device.platform, "device": device.device_kind, "cpu": cpu_name(), "cores": os.cpu_count(),
        "python": platform.python_version(), "date": datetime.date.today().isoformat(), "commit": commit(),
        **{name: importlib.metadata.version(name) for name in names},
    }  # fmt: skip


def cpu_name() -> str:
    """The model of the processor, as reported by the kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def commit() -> str | None:
    """The commit of this checkout, with a + if files differ from it; None without git."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
