"""Milliseconds of one train step and one policy step, compile time and peak memory apart.

    python benchmarks/train_step.py --size size1m --kind proprio

Synthetic data, batch 16 x 64 with one context row, float32 unless --dtype says otherwise. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dreamer.config
from dreamer import agent as agents
from dreamer.interfaces import Batch
from dreamer.runtime.actions import random_actions
from dreamer.spaces import Action, Space, Spec
from dreamer.world_models.rssm import parameter_count

SPECS = {
    "proprio": Spec({"vector": Space((24,), "float32")}, Action(continuous=6)),
    "image": Spec({"image": Space((64, 64, 3), "uint8")}, Action((18,))),
}


def main() -> None:
    """Times one combination of size and observation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="size1m")
    parser.add_argument("--kind", choices=SPECS, default="proprio")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 64))
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    spec = SPECS[args.kind]
    preset = Path(__file__).parents[1] / "experiments" / f"{args.size}.yaml"
    config = dreamer.config.load(preset, overrides={"agent.compute_dtype": args.dtype})
    agent = agents.make(config.agent, spec)
    state = jax.jit(agent.init)(jax.random.key(0))
    batch = jax.device_put(make_batch(spec, agent.storage, *args.batch))
    row = {"size": args.size, "kind": args.kind, "dtype": args.dtype, "batch": list(args.batch)}
    row |= {"params": parameter_count(state.params), "device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    row |= time_update(agent, state, batch, args.steps)
    for envs in (1, 16):
        row |= time_policy(agent, spec, envs)
    row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(row), flush=True)


def make_batch(spec: Spec, storage: dict, batch_size: int, length: int) -> Batch:
    """A random batch with one context row."""
    rng, shape = np.random.default_rng(0), (batch_size, length + 1)

    def draw(space: Space, lead: tuple[int, ...]) -> np.ndarray:
        if space.dtype == "uint8" and len(space.shape) == 3:
            return rng.integers(0, 256, (*lead, *space.shape), np.uint8)
        return rng.normal(size=(*lead, *space.shape)).astype(np.float32)

    action = random_actions(spec.action, rng, math.prod(shape)).reshape(*shape, -1)
    first = np.zeros(shape, bool)
    first[:, 0] = True
    latent = {k: np.zeros((batch_size, 1, *s.shape), jnp.dtype(s.dtype)) for k, s in storage.items()}
    obs = {k: draw(space, shape) for k, space in spec.obs.items()}
    reward = rng.normal(size=shape).astype(np.float32)
    return Batch(obs, action, reward, first, np.zeros(shape, bool), np.zeros(shape, bool), latent)


def time_update(agent, state, batch, steps: int) -> dict:
    """Compile seconds, then minimum and median milliseconds of `steps` updates after three to warm up."""
    start = time.perf_counter()
    update = jax.jit(agent.update, donate_argnums=0).lower(state, batch).compile()
    compile_s, times = time.perf_counter() - start, []
    for _ in range(steps + 3):
        start = time.perf_counter()
        state, _, metrics = update(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(1e3 * (time.perf_counter() - start))
    times = times[3:]
    temp = update.memory_analysis()
    return {
        "compile_s": round(compile_s, 1), "update_ms_min": round(min(times), 2),
        "update_ms_median": round(statistics.median(times), 2), "steps": steps,
        "temp_mb": getattr(temp, "temp_size_in_bytes", 0) // 2**20,
    }  # fmt: skip


def time_policy(agent, spec: Spec, envs: int) -> dict:
    """Milliseconds of one policy step with numpy in and out."""
    params = jax.jit(agent.init)(jax.random.key(0)).params
    act, carry, key = jax.jit(agent.act), agent.initial_carry(envs), jax.random.key(0)
    batch = make_batch(spec, {}, envs, 1)
    obs, first, times = {k: v[:, 0] for k, v in batch.obs.items()}, np.zeros(envs, bool), []
    for i in range(60):
        start = time.perf_counter()
        carry, action = act(params, key, carry, obs, first)
        np.asarray(action)
        if i >= 10:
            times.append(1e3 * (time.perf_counter() - start))
    return {f"policy{envs}_ms_min": round(min(times), 2), f"policy{envs}_ms_median": round(statistics.median(times), 2)}


if __name__ == "__main__":
    main()
