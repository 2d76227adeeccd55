"""Draws the first updates of runs side by side: the entropy of the actions and the spread of the advantages.

    python benchmarks/first_updates.py experiments/results/first_updates/cheetah_run.csv --out first_updates.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {"action_entropy": "entropy of the dreamed actions", "adv_std": "standard deviation of the advantages"}


def read(path: Path) -> dict[str, dict[str, list[float]]]:
    """{run: {column: values}} of a CSV with the columns run, updates and any metrics."""
    runs: dict[str, dict[str, list[float]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            columns = runs.setdefault(row.pop("run"), {name: [] for name in row})
            for name, value in row.items():
                columns[name].append(float(value))
    return runs


def main() -> None:
    """Draws one panel per metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(5 * len(PANELS), 3.6), layout="constrained")
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        for run, columns in read(args.csv).items():
            axis.plot(columns["updates"], columns[name], label=run)
        axis.set(title=title, xlabel="updates")
        axis.legend(frameon=False)
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
