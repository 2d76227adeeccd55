"""Measures the seconds to save and to restore a run with a replay of some GB, and to flush its rows.

    python benchmarks/save_restore.py --gb 1 --folder /tmp

Fills the replay of a size1m agent with random 64x64x3 pictures (which do not compress), saves as the loop does, and
restores into a fresh run. `save` is the time for which collecting and training pause; `on disk` is the time until
everything is on the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import dreamer.config
from dreamer.runtime.run.build import open_run
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.parts import Parts
from dreamer.runtime.run.start import decide
from dreamer.steps import Step

ENVS = 16


def main() -> None:
    """Prints one line of seconds for each repeat."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="folder for the run directory")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; seconds")
    print(f"{'GB':>6}{'flush':>9}{'save':>9}{'on disk':>9}{'restore':>9}", flush=True)
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            print("".join(f"{value:>9.2f}" for value in measure(Path(folder) / "run", args.gb))[3:], flush=True)


def measure(run_dir: Path, gigabytes: float) -> list[float]:
    """[GB of replay, seconds to flush its rows, to save, until everything is on the disk, to restore]."""
    config = dreamer.config.load(
        overrides={
            "env": "probes:pixel", "run_dir": str(run_dir), "env_steps": 10**9, "eval.video": "off",
            "workers.backend": "inline", "workers.envs": ENVS, "replay.capacity_gb": gigabytes,
            "log.tensorboard": False,
        }
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        run = Run(open_run(decide(config), stack))
        run.start()
        parts = run.parts
        fill(parts)
        start = time.perf_counter()
        parts.store.flush(parts.replay)
        parts.store.wait()
        flushed = time.perf_counter()
        run.save()
        saved = time.perf_counter()
        parts.checkpoints.wait()
        safe = time.perf_counter()
        held, rows = parts.replay.nbytes / 1e9, parts.replay.rows
    with contextlib.ExitStack() as stack:
        begin = time.perf_counter()
        run = Run(open_run(decide(config, resume_="yes"), stack))
        run.start()
        parts = run.parts
        assert parts.replay.rows == rows
        return [held, flushed - start, saved - flushed, safe - flushed, time.perf_counter() - begin]


def fill(parts: Parts) -> None:
    """Adds random rows until the rings are full."""
    rng = np.random.default_rng(0)
    ((key, space),) = parts.workers.spec.obs.items()
    latent = {n: rng.integers(0, 4, (ENVS, *s.shape)).astype(s.dtype) for n, s in parts.agent.storage.items()}
    flags, action = np.zeros((3, ENVS), bool), np.zeros((ENVS, parts.workers.spec.action_width), np.float32)
    for _ in range(parts.replay.size.rows_per_stream):
        obs = {key: rng.integers(0, 256, (ENVS, *space.shape), np.uint8)}
        parts.replay.add(Step(obs, action, np.zeros(ENVS, np.float32), *flags), latent)


if __name__ == "__main__":
    main()
