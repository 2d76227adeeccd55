"""Draws the returns of runs on the published seeds of the same task.

    python benchmarks/compare_curves.py cheetah_run=runs/cheetah finger_spin=runs/finger --out curves.png

Each run's training returns (`episode/return` of metrics.jsonl) are averaged in bins of 10k environment frames like the
published ones. Prints a table: our mean, the published minimum, mean and maximum in each bin. `--reference TASK=FILE`
adds a run of the reference with the settings of ours, a CSV of the columns frames and return, one episode a line.
"""

from __future__ import annotations

import argparse
import collections
import csv
import gzip
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from dreamer.config import load

REFERENCE = Path(__file__).parents[1] / "experiments" / "references" / "dreamerv3_dmc_proprio.csv.gz"
BIN = 10_000

Curve = dict[int, float]


def published(task: str) -> dict[str, Curve]:
    """{seed: {frames: score}} of the published seeds of a task such as "cheetah_run"."""
    curves: dict[str, Curve] = collections.defaultdict(dict)
    with gzip.open(REFERENCE, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["task"] == f"dmc_{task}":
                curves[row["seed"]][int(row["env_steps"])] = float(row["score"])
    if not curves:
        raise SystemExit(f"no published curve of {task!r} in {REFERENCE.name}")
    return curves


def own(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames [N] and mean return [N] of the lines of metrics.jsonl in which episodes ended."""
    repeat = load(run / "config.yaml").action_repeat
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = [(line["env_steps"] * repeat, line["episode/return"]) for line in lines if "episode/return" in line]
    return tuple(np.array(points).T)


def binned(frames: np.ndarray, returns: np.ndarray) -> Curve:
    """Means in bins of 10k frames, named by their right edge."""
    edges = (np.ceil(frames / BIN) * BIN).astype(int)
    return {int(edge): float(returns[edges == edge].mean()) for edge in np.unique(edges)}


def episodes(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames [N] and returns [N] of a CSV."""
    with open(file, newline="") as lines:
        points = [(int(row["frames"]), float(row["return"])) for row in csv.DictReader(lines)]
    return tuple(np.array(points).T)


def main() -> None:
    """One panel a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="TASK=RUN")
    parser.add_argument("--reference", action="append", default=[], metavar="TASK=FILE")
    parser.add_argument("--out", default="curves.png")
    args = parser.parse_args()
    pairs = [run.split("=", 1) for run in args.runs]
    references = {task: Path(file) for task, file in (entry.split("=", 1) for entry in args.reference)}
    figure, axes = plt.subplots(1, len(pairs), figsize=(5.2 * len(pairs), 3.8), squeeze=False)
    for axis, (task, run) in zip(axes[0], pairs, strict=True):
        draw(axis, task, Path(run), references.get(task))
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)
    print(f"written: {args.out}")


def draw(axis: plt.Axes, task: str, run: Path, reference: Path | None) -> None:
    """Published seeds thin, their band shaded, our run on top, the reference's beside it; the same numbers printed."""
    curves, (frames, returns) = published(task), own(run)
    ours = binned(frames, returns)
    last = max(ours) + 2 * BIN
    grid = [edge for edge in sorted({e for c in curves.values() for e in c}) if edge <= last]
    rows = {edge: [c[edge] for c in curves.values() if edge in c] for edge in grid}
    for curve in curves.values():
        xs = [edge for edge in grid if edge in curve]
        axis.plot(xs, [curve[x] for x in xs], color="0.6", lw=0.8)
    axis.fill_between(grid, [min(rows[e]) for e in grid], [max(rows[e]) for e in grid], color="0.85", label="published")
    axis.plot(frames, returns, ".", color="tab:blue", ms=4, alpha=0.5, label="our episodes")
    axis.plot(list(ours), list(ours.values()), "o-", color="tab:blue", label="ours, bins of 10k frames")
    beside: Curve = {}
    if reference:
        others = episodes(reference)
        beside = binned(*others)
        axis.plot(*others, ".", color="tab:orange", ms=4, alpha=0.5)
        label = "the reference, with the settings of ours"
        axis.plot(list(beside), list(beside.values()), "s-", color="tab:orange", label=label)
    # Settings that the published runs did not have belong in the picture.
    rate = load(run / "config.yaml").agent.optimizer.learning_rate
    axis.set(title=f"{task}, our learning rate {rate:g}", xlim=(0, last))
    axis.set(xlabel="environment frames", ylabel="return of training episodes")
    axis.legend(loc="upper left", fontsize=8)
    print(f"{task}\n  frames    ours reference   published min / mean / max")
    for edge, value in ours.items():
        seeds = rows.get(edge, [float("nan")])
        other = beside.get(edge, float("nan"))
        print(f"{edge:8d} {value:7.1f} {other:9.1f}   {min(seeds):7.1f} {np.mean(seeds):7.1f} {max(seeds):7.1f}")


if __name__ == "__main__":
    main()
