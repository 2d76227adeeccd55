"""Chooses the metrics that a report draws. Imports no jax."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from dreamer.apps.report.curves import EVALUATION, TRAINING
from dreamer.apps.report.runs import Run
from dreamer.errors import UserError, nearest

FALLBACK = ("loss/*", "train/loss", "*")  # drawn if no run has returns: all metrics that fit the first pattern
MOST_FALLBACK = 12


def chosen_metrics(wanted: Sequence[str], runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Returns the metrics to draw, and notes. They are the episode returns, if any run has them, then those wanted.

    A * in `wanted` stands for any text. Without returns and with empty `wanted`, the function chooses losses or other
    metrics, so that a new run can be seen. Raises UserError for a name in `wanted` that no run has.
    """
    known = sorted({name for run in runs for name in run.metrics})
    chosen = [name for name in (EVALUATION, TRAINING) if name in known]
    notes = [] if chosen or not known else [f"no run has {EVALUATION} or {TRAINING} yet"]
    for name in wanted:
        found = fnmatch.filter(known, name)
        if not found and not known:
            raise UserError(f"--metrics {name}: no run has any metrics yet")
        if not found:
            hint = nearest(name, known)
            hint = hint if hint.startswith("; did") else f"; they have {len(known)} others, such as {known[0]}"
            raise UserError(f"--metrics: no run has {name!r}{hint}")
        chosen += found
    if not chosen:
        chosen = next((found for one in FALLBACK if (found := fnmatch.filter(known, one))), [])[:MOST_FALLBACK]
    return list(dict.fromkeys(chosen)), notes
