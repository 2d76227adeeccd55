"""Draws the returns of runs on the published seeds of the same task.

    python benchmarks/compare_curves.py cheetah_run=runs/cheetah finger_spin=runs/finger --out curves.png

Each run's training returns (`episode/return` in metrics.jsonl) are averaged in bins of 10k environment frames, like the
published ones. Prints a table with our mean and the published minimum, mean and maximum of each bin.
`--reference TASK=FILE` adds a run of the reference with our settings: a CSV with the columns frames and return, one
episode per line. `dreamer report` draws many runs and seeds; this script compares single runs with the reference.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from dreamer.apps.report import references
from dreamer.apps.report.curves import TRAINING, binned
from dreamer.apps.report.runs import Points, Run, read_run

REFERENCES = Path(__file__).parents[1] / "experiments" / "references"
SUITE = "dmc_proprio"
BIN = 10_000


def published(task: str) -> list[Points]:
    """The published seeds of a task such as "cheetah_run"."""
    name = f"dmc_{task}"
    for one in references.read(REFERENCES, lambda found: found == name).get(name, []):
        if one.suite == SUITE:
            return list(one.seeds.values())
    raise SystemExit(f"no published curve of {task!r} in {REFERENCES}")


def own(run: Run) -> Points:
    """Frames [N] and mean return [N] from the lines of metrics.jsonl in which episodes ended."""
    points = run.metrics[TRAINING]
    return Points(points.x * run.config.action_repeat, points.y)


def episodes(file: Path) -> Points:
    """Frames [N] and returns [N] from a CSV."""
    with open(file, newline="") as lines:
        points = [(int(row["frames"]), float(row["return"])) for row in csv.DictReader(lines)]
    return Points(*np.array(points).T)


def main() -> None:
    """Draws one panel per task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="TASK=RUN")
    parser.add_argument("--reference", action="append", default=[], metavar="TASK=FILE")
    parser.add_argument("--out", default="curves.png")
    args = parser.parse_args()
    pairs = [run.split("=", 1) for run in args.runs]
    beside = {task: Path(file) for task, file in (entry.split("=", 1) for entry in args.reference)}
    figure, axes = plt.subplots(1, len(pairs), figsize=(5.2 * len(pairs), 3.8), squeeze=False)
    for axis, (task, run) in zip(axes[0], pairs, strict=True):
        draw(axis, task, read_run(run), beside.get(task))
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)
    print(f"written: {args.out}")


def draw(axis: plt.Axes, task: str, run: Run, reference: Path | None) -> None:
    """Draws the published seeds as a shaded band, our run and the reference's run, and prints the same numbers."""
    seeds, points = published(task), own(run)
    ours = binned(points, BIN)
    last = ours.x[-1] + 2 * BIN
    grid = [edge for edge in np.unique(np.concatenate([seed.x for seed in seeds])) if edge <= last]
    rows = {edge: [seed.y[seed.x == edge][0] for seed in seeds if edge in seed.x] for edge in grid}
    for seed in seeds:
        axis.plot(seed.x[seed.x <= last], seed.y[seed.x <= last], color="0.6", lw=0.8)
    axis.fill_between(grid, [min(rows[e]) for e in grid], [max(rows[e]) for e in grid], color="0.85", label="published")
    axis.plot(*points, ".", color="tab:blue", ms=4, alpha=0.5, label="our episodes")
    axis.plot(*ours, "o-", color="tab:blue", label="ours, bins of 10k frames")
    beside: dict[float, float] = {}
    if reference:
        others = episodes(reference)
        axis.plot(*others, ".", color="tab:orange", ms=4, alpha=0.5)
        axis.plot(*binned(others, BIN), "s-", color="tab:orange", label="the reference, with our settings")
        beside = dict(zip(*binned(others, BIN), strict=True))
    # The plot names each setting that differs from the published runs.
    axis.set(title=f"{task}, our learning rate {run.config.agent.optimizer.learning_rate:g}", xlim=(0, last))
    axis.set(xlabel="environment frames", ylabel="return of training episodes")
    axis.legend(loc="upper left", fontsize=8)
    print(f"{task}\n  frames    ours reference   published min / mean / max")
    for edge, value in zip(*ours, strict=True):
        band = rows.get(edge, [float("nan")])
        other = beside.get(edge, float("nan"))
        print(f"{edge:8.0f} {value:7.1f} {other:9.1f}   {min(band):7.1f} {np.mean(band):7.1f} {max(band):7.1f}")


if __name__ == "__main__":
    main()
