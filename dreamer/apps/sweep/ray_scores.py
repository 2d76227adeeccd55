"""The scores of a trial over its steps, as tpe and schedulers compare them. Imports no jax."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamer.runtime.files.run_dir import METRICS

TRAINING = "episode/return"  # noisy: its mean over the last tenth of the steps counts
SHARE = 0.1


class Score(NamedTuple):
    """The score of a trial at a step."""

    env_steps: int
    value: float


def of_run(run_dir: Path, metric: str) -> list[Score]:
    """Returns the scores in the metrics of a run, oldest first; [] if there are none. Skips damaged lines.

    A metric is its own score, except for the return of training episodes: there, the mean of the last tenth counts, as
    in a report.
    """
    found: list[Score] = []
    try:
        lines = (run_dir / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for text in lines:
        if f'"{metric}"' not in text:
            continue
        try:
            line = json.loads(text)
            steps, value = int(line["env_steps"]), line[metric]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(value, int | float) and np.isfinite(value):
            found.append(Score(steps, float(value)))
    return _smoothed(found) if metric == TRAINING else found


def _smoothed(scores: list[Score]) -> list[Score]:
    steps, values = np.array([one.env_steps for one in scores]), np.array([one.value for one in scores])
    found = []
    for n, at in enumerate(steps):
        newest = steps[: n + 1] >= at * (1 - SHARE)
        found.append(Score(int(at), float(values[: n + 1][newest].mean())))
    return found


def of_program(run_dirs: list[Path], metric: str) -> list[Score]:
    """Returns the scores of a program: means over its trials, at the steps that all of them have reached."""
    each = [of_run(run_dir, metric) for run_dir in run_dirs]
    return [Score(row[0].env_steps, float(np.mean([one.value for one in row]))) for row in zip(*each, strict=False)]
