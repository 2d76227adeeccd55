"""Draws the charts of a sweep as vector graphics, for the page and as files for papers.

This module imports matplotlib to draw, but no jax.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from dreamer.apps.report import palette
from dreamer.apps.report.plots import CARD, COMMON, INK, ON_PAGE, plain, saved, svg_element
from dreamer.apps.report.scores import text
from dreamer.apps.report.sweep_axes import Scale
from dreamer.apps.report.sweep_charts import SCORE, Chart, Heat, Parallel, Scatter, explanation

WHITE, BLACK = "#fffffe", "#141414"  # of text in a cell, in the light and in the dark scheme
SHOWN_IN_CELLS = 8  # columns of a heat map whose cells have room for numbers


def on_page(chart: Chart) -> str:
    """Draws a chart for the page: an SVG element without title. Its colours are CSS variables, but for the scale."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**COMMON, **ON_PAGE}):
        figure = Figure(figsize=_size(chart), layout="constrained", facecolor="none")
        _draw(figure, chart, INK, CARD)
        return svg_element(figure)


def for_papers(chart: Chart, formats: Sequence[str]) -> dict[str, bytes]:
    """Draws a chart with title and caption. Returns {format: contents of the file}. Text in a PDF stays text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(COMMON):
        width, height = _size(chart)
        figure = Figure(figsize=(width, height + 0.6), dpi=200, layout="constrained")
        _draw(figure, chart, "black", "white")
        figure.suptitle(plain(chart.title), x=0.02, ha="left", fontsize=11)
        figure.supxlabel("\n".join(textwrap.wrap(explanation(chart), 90)), x=0.02, ha="left", fontsize=7)
        return {kind: saved(figure, kind) for kind in formats}


def _size(chart: Chart) -> tuple[float, float]:
    """Returns the width and the height of a chart in inches."""
    if isinstance(chart, Heat):
        return max(4.8, 1.2 + 0.55 * len(chart.x)), max(2.9, 1.0 + 0.32 * len(chart.y))
    if isinstance(chart, Parallel):
        return max(4.8, 1.25 * len(chart.scales)), 3.3
    return 4.8, 2.9


def _draw(figure: Any, chart: Chart, ink: str, paper: str) -> None:
    """Draws a chart into `figure`. ink, paper: the colours of text and of the ground behind it."""
    if isinstance(chart, Heat):
        _heat(figure, chart, ink)
    elif isinstance(chart, Parallel):
        _parallel(figure, chart, ink, paper)
    else:
        _scatter(figure, chart)


def _heat(figure: Any, chart: Heat, ink: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    axis = figure.subplots()
    known = [mean for row in chart.means for mean in row if mean is not None]
    low, high = min(known), max(known)
    for row, means in enumerate(chart.means):
        for column, mean in enumerate(means):
            if mean is None:
                continue
            share = (mean - low) / (high - low) if high > low else 1.0
            color = palette.of_share(share)
            axis.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=color, lw=0)
            if len(chart.x) <= SHOWN_IN_CELLS:
                tone = BLACK if share > 0.6 else WHITE
                axis.text(column, row, text(mean), ha="center", va="center", color=tone, fontsize=8)
    axis.set_xlim(-0.5, len(chart.x) - 0.5)
    axis.set_ylim(-0.5, len(chart.y) - 0.5)
    axis.set_xticks(range(len(chart.x)), [plain(_short(one)) for one in chart.x])
    axis.set_yticks(range(len(chart.y)), [plain(_short(one)) for one in chart.y])
    axis.set_xlabel(plain(chart.x_label))
    axis.set_ylabel(plain(chart.y_label))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    if high > low:
        colors = LinearSegmentedColormap.from_list("scores", palette.SCALE)
        bar = figure.colorbar(ScalarMappable(Normalize(low, high), colors), ax=axis, fraction=0.05, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=ink, labelsize=8)


def _parallel(figure: Any, chart: Parallel, ink: str, paper: str) -> None:
    axis = figure.subplots()
    _, scores = chart.scales[-1]
    for number, share in enumerate(scores.at):
        at = [scale.at[number] for _, scale in chart.scales]
        best = number == len(scores.at) - 1
        axis.plot(range(len(at)), at, color=palette.of_share(share), lw=2.4 if best else 1.0, alpha=0.9, zorder=2)
    for place, (_, scale) in enumerate(chart.scales):
        axis.axvline(place, color=ink, lw=0.8, zorder=1)
        _ticks(axis, place, scale, ink, paper)
    axis.set_xlim(-0.15, len(chart.scales) - 0.7)
    axis.set_ylim(-0.05, 1.05)
    axis.set_xticks(range(len(chart.scales)), [plain(_broken(name)) for name, _ in chart.scales])
    axis.xaxis.tick_top()
    axis.set_yticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _ticks(axis: Any, place: int, scale: Scale, ink: str, paper: str) -> None:
    """Labels a vertical axis of parallel coordinates. The ground of each label hides the lines behind it."""
    ground = {"facecolor": paper, "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    for at, words in scale.ticks:
        axis.plot([place - 0.02, place + 0.02], [at, at], color=ink, lw=0.8, zorder=3)
        axis.text(place + 0.04, at, plain(_short(words)), va="center", fontsize=7.5, color=ink, bbox=ground, zorder=3)


def _scatter(figure: Any, chart: Scatter) -> None:
    axis = figure.subplots()
    axis.plot(chart.x, chart.y, "o", color=palette.LIGHT[0], ms=4.5, alpha=0.75, mew=0)
    axis.plot(chart.lost, [chart.y_bounds[0]] * len(chart.lost), "x", color=palette.LIGHT[1], ms=6, clip_on=False)
    if chart.log:
        axis.set_xscale("log")
    axis.set_ylim(*chart.y_bounds)
    axis.set_xlabel(plain(chart.x_label))
    axis.set_ylabel(SCORE)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _broken(name: str, width: int = 14) -> str:
    """Breaks a long name of a setting into lines, after its underscores."""
    return "\n".join(textwrap.wrap(name.replace("_", "_ "), width)).replace("_ ", "_")


def _short(words: str, most: int = 16) -> str:
    """Shortens a label to `most` characters."""
    return words if len(words) <= most else f"{words[: most - 3]}..."
