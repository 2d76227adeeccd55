"""Rates of the replay: inserting rows, drawing batches and writing back, compared with plain copies of the same bytes.

    python benchmarks/replay_rate.py --rows 40000 --folder /tmp

Uses 16 environments with 64x64x3 images, batches of 16 sequences of 64 + 1 rows, and latents of the given sizes. Prints
median milliseconds after a warm-up; `put` is the transfer of a batch to the device, `copy` is a numpy copy of the same
number of bytes into a new array.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dreamer.config
from dreamer.runtime.replay.replay import Config, Replay
from dreamer.spaces import Action, Space, Spec
from dreamer.steps import Step

SPAWN = multiprocessing.get_context("spawn")
ENVS, BATCH, LENGTH = 16, 16, 64
SPEC = Spec({"image": Space((64, 64, 3), "uint8")}, Action((18,)))
SAMPLERS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "priority": {"uniform": 0, "priority": 1},
    "recency": {"uniform": 0, "recency": 1},
    "mixture": {"uniform": 0.4, "priority": 0.3, "recency": 0.3},
}
COLUMNS = ("rows/s in", "draw ms", "put ms", "back ms", "prio ms", "copy ms", "draw/copy", "GB/s", "overhead")


def main() -> None:
    """Prints one line for each size of the latents, tier and sampler."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", default=("size1m", "size12m"))
    parser.add_argument("--tiers", nargs="+", default=("memory", "disk"))
    parser.add_argument("--samplers", nargs="+", default=tuple(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="folder for the files of the disk tier")
    args = parser.parse_args()
    print(f"{args.rows:,} rows, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, numpy {np.__version__}")
    print(f"{'size':8} {'tier':7} {'sampler':9}" + "".join(f"{name:>11}" for name in COLUMNS), flush=True)
    for size in args.sizes:
        for tier in args.tiers:
            for name in args.samplers:
                config = Config(capacity_steps=args.rows, batch_size=BATCH, batch_length=LENGTH, tier=tier,
                                online=False, **SAMPLERS[name])  # fmt: skip
                # Each runs in a new process, so that memory freed by the previous one is not reused.
                with tempfile.TemporaryDirectory(dir=args.folder) as folder, ProcessPoolExecutor(1, SPAWN) as pool:
                    values = pool.submit(measure, config, storage(size), folder, args.calls).result()
                print(f"{size:8} {tier:7} {name:9}" + "".join(f"{value:>11}" for value in values), flush=True)


def storage(size: str) -> dict[str, Space]:
    """The packed latents of a preset's world model in float32."""
    preset = Path(__file__).parents[1] / "experiments" / f"{size}.yaml"
    model = dreamer.config.load(preset).agent.world_model
    return {"deter": Space((model.deter,), "float32"), "stoch": Space((model.stoch,), "uint8")}


def measure(config: Config, latents: dict[str, Space], folder: str, calls: int) -> list[str]:
    """The values of COLUMNS. overhead: resident memory beyond the planned size, without the file cache."""
    before = resident()
    replay = Replay(SPEC, latents, config, streams=ENVS, seed=0, env_steps=10**9, run_dir=folder)
    step, latent = rows(latents)
    inserts = times(lambda: replay.add(step, latent), 2 * replay.size.rows_per_stream)
    taken = resident() - before
    rng = np.random.default_rng(0)
    back = {n: np.zeros((BATCH, LENGTH, *s.shape), s.dtype) for n, s in latents.items()}
    priority = rng.random((BATCH, LENGTH)).astype(np.float32)
    for _ in range(replay.size.rows_per_stream if config.priority else 0):
        replay.prioritise(replay.sample(BATCH)[1], priority)  # until few rows are new
        if np.isfinite(replay.sampler.state()["priority/rows"]).all():
            break
    draws, backs, priorities = [], [], []
    for _ in range(calls + 5):
        start = time.perf_counter()
        batch, where = replay.sample(BATCH)
        drawn = time.perf_counter()
        replay.refresh(where, back)
        written = time.perf_counter()
        replay.prioritise(where, priority)
        priorities.append(time.perf_counter() - written)
        backs.append(written - drawn)
        draws.append(drawn - start)
    values = [*batch.obs.values(), *batch.latent.values(), *batch[1:6]]
    copy = times(lambda: copies(replay, rng), calls + 5)
    put = times(lambda: jax.block_until_ready(jax.device_put(values)), calls + 5)
    nbytes = sum(value.nbytes for value in values)
    draw, plain = (statistics.median(each[5:]) for each in (draws, copy))
    result = [
        f"{ENVS / statistics.median(inserts):,.0f}", f"{1e3 * draw:.2f}", f"{1e3 * statistics.median(put[5:]):.2f}",
        f"{1e3 * statistics.median(backs[5:]):.2f}", f"{1e3 * statistics.median(priorities[5:]):.2f}",
        f"{1e3 * plain:.2f}", f"{draw / plain:.2f}",
        f"{nbytes / draw / 1e9:.1f}", f"{100 * (taken / replay.size.nbytes - 1):.2f} %",
    ]  # fmt: skip
    replay.close()
    return result


def rows(latents: dict[str, Space]) -> tuple[Step, dict[str, np.ndarray]]:
    """A random row of every environment."""
    rng = np.random.default_rng(0)
    flags = np.zeros((3, ENVS), bool)
    image = rng.integers(0, 256, (ENVS, 64, 64, 3), np.uint8)
    latent = {name: rng.integers(0, 9, (ENVS, *space.shape)).astype(space.dtype) for name, space in latents.items()}
    return Step({"image": image}, np.zeros((ENVS, 18), np.float32), np.zeros(ENVS, np.float32), *flags), latent


def copies(replay: Replay, rng: np.random.Generator) -> None:
    """Copies the bytes of one batch, large arrays as single slices: the least work that drawing a batch needs."""
    ring = int(rng.integers(ENVS))
    for name, column in replay.columns.items():
        length = BATCH * (1 if name.startswith("latent/") else LENGTH + 1)
        begin = int(rng.integers(max(1, column.shape[1] - length)))
        column[ring, begin : begin + length].copy()


def times(call: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of `count` calls."""
    result = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        result.append(time.perf_counter() - start)
    return result


def resident() -> int:
    """Bytes of anonymous resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
