"""Draws what a controller reaches in its dreams beside what it reaches in the environment, for several temperatures.

    dreamer eval RUN --episodes 100 --json RUN/scores.json           for each RUN: real episodes
    python -m benchmarks.dreamed_return RUN RUN RUN --out FOLDER

Writes `temperatures.csv` (a line for each run), `generations.csv` (the fitness of the populations) and
`temperatures.png`. Each RUN has the behavior `controller`. Its dreamed return is that of the last generation.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from dreamer.apps.report.runs import read_run
from dreamer.errors import UserError

FITNESS = ("fitness", "fitness_best", "fitness_worst", "std")
Row = dict[str, Any]


def temperature_of(run: Path) -> float:
    """Returns the temperature of the run's dreams."""
    return float(read_run(run).config.agent.world_model.temperature)


def generations_of(run: Path) -> list[Row]:
    """Returns a row for each generation that the run has logged."""
    metrics = read_run(run).metrics
    if "evolution/generation" not in metrics or not metrics["evolution/generation"].y.any():
        raise UserError(f"{run} has logged no generation of the behavior controller")
    columns = [metrics[f"evolution/{name}"].y for name in ("generation", *FITNESS)]
    rows = zip(*columns, strict=True)  # a line that began before the first generation has a mean below 1
    found = {int(n): dict(zip(FITNESS, map(float, rest), strict=True)) for n, *rest in rows if n >= 1}
    return [{"generation": n, **found[n]} for n in sorted(found)]


def summary_of(run: Path) -> Row:
    """Returns dreamed and real returns of a run: see the module."""
    last = generations_of(run)[-1]
    scores = run / "scores.json"
    if not scores.exists():
        raise UserError(f"{scores} is missing; write it: dreamer eval {run} --episodes 100 --json {scores}")
    real = [episode["return"] for episode in json.loads(scores.read_text())["episodes"]]
    return {
        "temperature": temperature_of(run), "generations": last["generation"], "dreamed": last["fitness"],
        "dreamed_best": last["fitness_best"], "real": float(np.mean(real)), "real_std": float(np.std(real)),
        "real_median": float(np.median(real)), "episodes": len(real),
    }  # fmt: skip


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as a CSV with four significant digits."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def draw(path: Path, summaries: Sequence[Row], curves: Mapping[float, Sequence[Row]], random: float | None) -> None:
    """Draws the fitness of each generation on the left, and the returns of the controllers on the right."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), dpi=130, layout="constrained")
    for temperature, rows in curves.items():
        (line,) = left.plot([x["generation"] for x in rows], [x["fitness"] for x in rows], label=f"{temperature:g}")
        best = [x["fitness_best"] for x in rows]
        left.plot([x["generation"] for x in rows], best, color=line.get_color(), alpha=0.4, linewidth=1)
    left.set(xlabel="generation", ylabel="dreamed return, mean and best", ylim=(0, None))
    left.legend(title="temperature", frameon=False)
    at = np.arange(len(summaries))
    right.bar(at - 0.2, [x["dreamed"] for x in summaries], 0.4, label="dreamed", color="0.75")
    spread = [x["real_std"] for x in summaries]
    right.bar(at + 0.2, [x["real"] for x in summaries], 0.4, yerr=spread, capsize=3, label="real, with deviation")
    right.set_xticks(at, [f"{x['temperature']:g}" for x in summaries])
    if random is not None:
        right.axhline(random, color="0.3", linestyle=":", label="random actions")
    right.set(xlabel="temperature of the dreams", ylabel="return", ylim=(0, None))
    right.set_ylim(0, 1.35 * right.get_ylim()[1])  # room for the legend
    right.legend(frameon=False, loc="upper right")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    """Reads the runs, and writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--random", type=float, help="return of random actions, drawn as a line")
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    runs = sorted(args.runs, key=temperature_of)
    summaries = [summary_of(run) for run in runs]
    curves = {temperature_of(run): generations_of(run) for run in runs}
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "temperatures.csv", summaries)
    write(args.out / "generations.csv", [{"temperature": t, **row} for t, rows in curves.items() for row in rows])
    draw(args.out / "temperatures.png", summaries, curves, args.random)
    print((args.out / "temperatures.csv").read_text(), end="")


if __name__ == "__main__":
    main()
