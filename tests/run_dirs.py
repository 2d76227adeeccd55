"""Writes run directories like those of a training, for the tests of the report. No agent, no jax."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer.runtime.log import images


def write_run(path: Path, lines: Sequence[Mapping[str, Any]] | None = None, **settings: Any) -> Path:
    """Writes a run directory with settings (dotted keys) and lines of metrics (None: those of `climbing`)."""
    path.mkdir(parents=True)
    nested: dict[str, Any] = {"env": "CartPole-v1", "env_steps": 1000, "eval": {"every": 100, "episodes": 5}}
    for key, value in settings.items():
        inner = nested
        *parents, last = key.split(".")
        for part in parents:
            inner = inner.setdefault(part, {})
        inner[last] = value
    (path / "config.yaml").write_text(json.dumps({**nested, "run_dir": str(path)}))  # JSON is YAML
    lines = climbing(settings.get("seed", 0)) if lines is None else lines
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def climbing(seed: int, steps: int = 1000, slope: float = 0.1) -> list[dict[str, Any]]:
    """Returns lines every 50 steps with return slope * step + seed, and evaluations 3 steps after every 100."""
    lines: list[dict[str, Any]] = []
    for step in range(50, steps + 1, 50):
        row = {"env_steps": step, "updates": step // 2, "time": step / 10, "loss/dyn": 10 - step * 0.001}
        lines.append(row | {"episode/return": step * slope + seed})
        if step % 100 == 0:
            late = step if step == steps else step + 3
            number = {"env_steps": late, "updates": step // 2, "time": step / 10}
            lines.append(number | {"eval/return": 2 * step * slope + seed, "eval/return_std": 1.0})
    return lines


def add_pictures(run: Path, steps: int) -> None:
    """Adds the images that an evaluation writes."""
    frames = np.full((3, 48, 64, 3), steps % 256, np.uint8)
    images.write_episode_video(run / "pictures" / f"episode_{steps:09d}.mp4", frames, 30)
    (run / "pictures" / f"openloop_{steps:09d}.png").write_bytes(images.encode_png(frames[0]))


def write_curves(folder: Path, task: str, suite: str, ends: float, seeds: int = 3) -> None:
    """Writes published curves of a task in ten bins up to `ends`; seed s scores s in every bin."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{suite},{task},theirs,{seed},{ends * bin / 10:.0f},{seed}" for seed in range(seeds) for bin in range(1, 11)
    ]
    (folder / f"{suite}.csv").write_text("\n".join(["suite,task,method,seed,env_steps,score", *rows]) + "\n")
