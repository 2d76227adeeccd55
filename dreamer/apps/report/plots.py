"""Draws panels as pictures. matplotlib is imported where it is used. No jax."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np

from dreamer.apps.report.curves import EVALUATION, TRAINING, Curve, Line, Panel

# Okabe and Ito's colours, which colour-blind readers can distinguish, without the yellow, too pale on white paper.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))
PUBLISHED = ("0.45", "0.62", "0.75")
LABELS = {EVALUATION: "return of evaluation episodes", TRAINING: "return of training episodes"}
WRAP = 46  # characters of a line of the legend


def draw(panel: Panel, colors: dict[str, int], dpi: int = 130) -> bytes:
    """A PNG: lines of groups over published curves. colors: {name of a group: its number}, the same in all panels.

    Several seeds: the IQM with its 95 % interval, the mean dotted where it differs, seeds faint. One seed: a thin line.
    """
    from matplotlib.figure import Figure

    figure = Figure(dpi=dpi, layout="constrained")
    axis = figure.subplots()
    published = 0
    for line in sorted(panel.lines, key=lambda line: not line.published):
        if line.published:
            of = ", training episodes" if panel.metric == EVALUATION else ""
            _line(axis, line, PUBLISHED[published % len(PUBLISHED)], "-", 1, of)
            published += 1
        else:
            number = colors[line.name]
            _line(axis, line, COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)], 3)
    axis.set_xlim(*panel.bounds)
    axis.set_title("\n".join(textwrap.wrap(panel.task, 60)), loc="left", fontsize=11)
    axis.set_ylabel(LABELS.get(panel.metric, panel.metric))
    axis.set_xlabel("environment frames (env steps x action repeat)" if panel.frames else "env steps")
    axis.xaxis.set_major_formatter(_thousands)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    words = "\n".join(textwrap.wrap(caption(panel), 105))
    below = sum(text.count("\n") + 1 for text in (*labels, words))
    figure.set_size_inches(6.4, 3.5 + 0.18 * below)  # the axes keep their height
    legend = figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False, title=words)
    legend.set_alignment("left")
    legend.get_title().set_fontsize(7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def caption(panel: Panel) -> str:
    """A description of the lines of a panel."""
    unit = "frames" if panel.frames else "env steps"
    of_bins = f"Means in bins of {panel.width:,.0f} {unit}." if panel.width else ""
    several = any(len(line.curve.seeds) > 1 for line in panel.lines)
    means = "Solid: IQM of the seeds, where all have a value; shaded: its 95 % bootstrap interval; faint: each seed."
    dotted = "Dotted: the mean." if any(differs(line.curve) for line in panel.lines) else ""
    return " ".join(filter(None, [of_bins, means if several else "", dotted]))


def differs(curve: Curve) -> bool:
    """Whether mean and IQM are different lines; with fewer than four seeds they are equal."""
    return len(curve.seeds) > 3 and not np.allclose(curve.mean, curve.iqm)


def _line(axis: Any, line: Line, color: str, dashes: Any, order: int, of: str = "") -> None:
    """Draws one line; `of` is appended to its text in the legend."""
    curve = line.curve
    count = len(curve.seeds)
    label = f"{line.name}, {count} seed{'s' if count > 1 else ''}{of}"
    if line.mean_only:
        label = f"{line.name}, mean at {curve.x[-1]:,.0f} frames"
        axis.axhline(curve.seeds[0, -1], color=color, lw=1.2, ls=(0, (1, 2)), label=label, zorder=order)
        return
    if count > 1 and not len(curve.at):
        label += " that share no bin"
    label = "\n".join(textwrap.wrap(label, WRAP))
    if count == 1 or not len(curve.at):
        for number, values in enumerate(curve.seeds):
            own = ~np.isnan(values)
            marker = "o" if own.sum() < 3 else None
            style = {"lw": 1.0, "ls": dashes, "marker": marker, "ms": 3, "zorder": order}
            axis.plot(curve.x[own], values[own], color=color, label=label if not number else None, **style)
        return
    for values in curve.seeds:
        own = ~np.isnan(values)
        axis.plot(curve.x[own], values[own], color=color, lw=0.7, alpha=0.3, zorder=order)
    axis.fill_between(curve.at, curve.low, curve.high, color=color, alpha=0.18, lw=0, zorder=order)
    marker = "o" if len(curve.at) < 3 else None
    axis.plot(curve.at, curve.iqm, color=color, lw=2.0, ls=dashes, marker=marker, ms=4, label=label, zorder=order + 1)
    if differs(curve):
        axis.plot(curve.at, curve.mean, color=color, lw=1.2, ls=(0, (1, 1.5)), zorder=order + 1)


def _thousands(value: float, _: float) -> str:
    """12k, 1.5M: the numbers below an axis."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
