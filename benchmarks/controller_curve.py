"""Draws the generations of a controller that learns in dreams beside a published search in the environment itself.

    python -m benchmarks.controller_curve RUN RUN --before 316000 --published PUBLISHED.csv --out FOLDER

RUNs are in the order in which they were made: each but the first went on with the search of the one before it
(`--init-from`). Their training episodes show the real return. `--before` counts the frames of the data that came first.
The published table has the columns generation, frames and mean_fitness. Writes `generations.csv` (from
dreams), `episodes.csv` (from the environment) and `controller.png`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.dreamed_return import Row, write
from dreamer.apps.report.runs import read_lines, read_run
from dreamer.errors import UserError
from dreamer.runtime.files.run_dir import METRICS

DREAMED = ("fitness", "fitness_best", "std")


def curves_of(runs: Sequence[Path], before: int) -> tuple[list[Row], list[Row]]:
    """Returns a row for each logged generation, and one for each logged real return, of runs in their order.

    before: frames that were made before the first run; a run makes `action_repeat` frames in an environment step
    """
    dreams, episodes = [], []
    for run in runs:
        repeat = read_run(run).config.action_repeat
        lines = [x for x in read_lines(run / METRICS)[0] if (x.get("evolution/generation") or 0) >= 1]
        if not lines:
            raise UserError(f"{run} has logged no generation of the behavior controller")
        for line in lines:
            at = {"generation": round(line["evolution/generation"]), "frames": before + repeat * line["env_steps"]}
            dreams.append(at | {name: float(line[f"evolution/{name}"]) for name in DREAMED})
            if line.get("episode/return") is not None:
                episodes.append(at | {"return": float(line["episode/return"])})
        before += repeat * lines[-1]["env_steps"]
    return dreams, episodes


def read_published(path: Path) -> list[Row]:
    """Reads a published table: generation, frames and mean_fitness."""
    with open(path, newline="") as file:
        return [{name: float(x) for name, x in row.items()} for row in csv.DictReader(file)]


def smooth(values: Sequence[float], width: int = 5) -> np.ndarray:
    """Returns the mean of each value and up to `width` - 1 values before it."""
    return np.array([np.mean(values[max(0, n - width + 1) : n + 1]) for n in range(len(values))])


def draw(path: Path, dreams: Sequence[Row], episodes: Sequence[Row], published: Sequence[Row]) -> None:
    """Draws returns by generation on the left, and by frames, on a logarithmic axis, on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), dpi=130, layout="constrained", sharey=True)
    real = smooth([x["return"] for x in episodes])
    for axis, name, label in zip(axes, ("generation", "frames"), ("generation", "frames of the game"), strict=True):
        if published:
            y = [x["mean_fitness"] for x in published]
            axis.plot([x[name] for x in published], y, color="0.6", label="published: in the game")
        axis.plot(
            [x[name] for x in episodes], [x["return"] for x in episodes], ".", color="C0", alpha=0.3, markersize=4
        )
        axis.plot([x[name] for x in episodes], real, color="C0", label="in dreams: return in the game")
        axis.set(xlabel=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="return", xlim=(0, 1.05 * max(x["generation"] for x in dreams)))
    axes[1].set_xscale("log")
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(path)


def main() -> None:
    """Reads the runs, and writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--before", type=int, default=0, help="frames made before the first run")
    parser.add_argument("--published", type=Path, help="a table to draw behind")
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    dreams, episodes = curves_of(args.runs, args.before)
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "generations.csv", dreams)
    write(args.out / "episodes.csv", episodes)
    draw(args.out / "controller.png", dreams, episodes, read_published(args.published) if args.published else [])
    print(f"{len(dreams)} lines of generations, {len(episodes)} of episodes: {args.out}")


if __name__ == "__main__":
    main()
