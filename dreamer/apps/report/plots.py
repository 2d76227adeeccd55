"""Draws panels as vector graphics, for the page and as files for papers. Imports matplotlib to draw, but no jax."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreamer.apps.report import palette
from dreamer.apps.report.axes import place_labels, short
from dreamer.apps.report.curves import EVALUATION, TRAINING, Curve, Line, Panel
from dreamer.apps.report.palette import Style

LABELS = {EVALUATION: "return of evaluation episodes", TRAINING: "return of training episodes"}
FORMATS = ("svg", "pdf", "png")
WRAP = 60  # the most characters in a line of the legend
# Colours that no line has; in the drawings of the page, CSS variables replace them.
INK, GRID, CARD = "#010203", "#040506", "#070809"
COMMON: Any = {"svg.hashsalt": "dreamer report", "pdf.fonttype": 42, "path.simplify": True}
ON_PAGE: Any = {
    "svg.fonttype": "none", "axes.facecolor": "none", "font.size": 9,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "grid.color": GRID,
}  # fmt: skip
NO_DATE = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}
BANDS = {"seeds": 0.22, "episodes": 0.10}  # opacity


def styles(groups: Sequence[str], panels: Sequence[Panel]) -> dict[str, Style]:
    """Returns {name of a line: its style} for the groups with these names and for the published curves in `panels`."""
    published = dict.fromkeys(line.name for panel in panels for line in panel.lines if line.published)
    return {name: palette.of_published(number) for number, name in enumerate(published)} | {
        name: palette.of_group(number) for number, name in enumerate(groups)
    }


def on_page(panel: Panel, looks: Mapping[str, Style]) -> str:
    """Draws a panel for the page: an SVG element without title and legend. Its colours are CSS variables."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**COMMON, **ON_PAGE}):
        figure = Figure(figsize=(4.8, 2.9), layout="constrained", facecolor="none")
        _axis(figure, panel, looks).set_ylabel("")  # the page has it as a title
        return svg_element(figure)


def svg_element(figure: Any) -> str:
    """Returns a matplotlib figure as an SVG element whose colours are CSS variables."""
    svg = saved(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = re.sub(r' id="(figure|axes|matplotlib|xtick|ytick|line2d|text|patch|Fill|Poly|Path)[^"]*"', "", svg)
    for name, color in {"ink": INK, "grid": GRID, "card": CARD, **palette.light()}.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.strip()


def for_papers(panel: Panel, looks: Mapping[str, Style], formats: Sequence[str]) -> dict[str, bytes]:
    """Draws a panel with title and legend. Returns {format: contents of the file}. Text in a PDF stays text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(COMMON):
        figure = Figure(dpi=200, layout="constrained")
        axis = _axis(figure, panel, looks)
        axis.set_title("\n".join(textwrap.wrap(panel.task, 60)), loc="left", fontsize=11)
        handles, labels = axis.get_legend_handles_labels()
        words = "\n".join(textwrap.wrap(caption(panel), 100))
        below = sum(label.count("\n") + 1 for label in (*labels, words))
        figure.set_size_inches(6.0, 3.3 + 0.18 * below)  # the axes keep their height
        legend = figure.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False, title=words)
        legend.set_alignment("left")
        legend.get_title().set_fontsize(7)
        return {kind: saved(figure, kind) for kind in formats}


def caption(panel: Panel) -> str:
    """Returns the caption of a panel, which explains its bins, lines and bands."""
    return " ".join(filter(None, [bins(panel), *explanation([panel])]))


def bins(panel: Panel) -> str:
    """Returns a sentence about the bins of a panel, or "" for a panel of evaluations, which has no bins."""
    return f"Means in bins of {panel.width:,.4g} {panel.counted}." if panel.width else ""


def explanation(panels: Sequence[Panel]) -> list[str]:
    """Returns sentences that explain the lines and the bands of panels."""
    parts = []
    lines = [line for panel in panels for line in panel.lines]
    if any(len(line.curve.seeds) > 1 for line in lines):
        one = panels[0].member
        parts.append(f"Thick: IQM of the {one}s, where all have a value; dark band: its 95 % bootstrap interval; "
                     f"faint: each {one}.")  # fmt: skip
    if any(differs(line.curve) for line in lines):
        parts.append("Dotted: the mean.")
    if any(line.curve.std is not None for line in lines):
        parts.append("Light band: one standard deviation over the episodes of an evaluation.")
    if any(panel.metric == EVALUATION and any(line.published for line in panel.lines) for panel in panels):
        parts.append("Published curves are of training episodes.")
    return parts


def label(panel: Panel) -> str:
    """Returns the label of the y axis."""
    return LABELS.get(panel.metric, panel.metric)


def x_label(panel: Panel) -> str:
    """Returns the label of the x axis, with its unit."""
    if panel.updates:
        return panel.counted
    return "environment frames (env steps x action repeat)" if panel.frames else "env steps"


def differs(curve: Curve) -> bool:
    """Whether the mean of a curve differs from its IQM. With fewer than four seeds, they are equal."""
    return len(curve.seeds) > 3 and not np.allclose(curve.mean, curve.iqm)


def saved(figure: Any, kind: str) -> bytes:
    """Returns the contents of a file with a matplotlib figure. kind: an entry of FORMATS."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=NO_DATE[kind])
    return buffer.getvalue()


def _axis(figure: Any, panel: Panel, looks: Mapping[str, Style]) -> Any:
    """Draws a panel into `figure`, and returns its matplotlib axes. looks: {name of a line: its style}."""
    axis = figure.subplots()
    for level, above in place_labels(panel.levels, panel.y_bounds):
        axis.axhline(level.value, color=palette.PUBLISHED_LIGHT[0], lw=0.8, ls=(0, (1, 2)), zorder=1)
        axis.annotate(
            plain(f"{level.name} {level.value:,.4g}"), (1, level.value), xycoords=axis.get_yaxis_transform(),
            xytext=(-2, 2 if above else -2), textcoords="offset points", ha="right", va="bottom" if above else "top",
            fontsize=7, color=palette.PUBLISHED_LIGHT[0],
        )  # fmt: skip
    for line in sorted(panel.lines, key=lambda line: not line.published):
        _line(axis, line, looks[line.name], 1 if line.published else 3, panel.member)
    axis.set_xlim(*panel.bounds)
    axis.set_ylim(*panel.y_bounds)
    axis.set_ylabel(plain(label(panel)))
    axis.set_xlabel(x_label(panel))
    axis.xaxis.set_major_formatter(lambda value, _: short(value))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return axis


def _line(axis: Any, line: Line, look: Style, order: int, member: str) -> None:
    """Draws one line with its bands. order: the zorder of matplotlib | member: as in Panel."""
    curve, color = line.curve, palette.light()[look.color]
    count = len(curve.seeds)
    dashes = {"solid": "-", "dash": (0, (5, 1.5)), "dot": (0, (1.5, 1))}[look.dash]
    words = f"{line.name}, {count} {member}{'s' if count > 1 else ''}"
    if count > 1 and not len(curve.at):
        words += " that share no bin"
    words = plain("\n".join(textwrap.wrap(words, WRAP)))
    if curve.std is not None:
        low, high = curve.iqm - curve.std, curve.iqm + curve.std
        axis.fill_between(curve.at, low, high, color=color, alpha=BANDS["episodes"], lw=0, zorder=order)
    if count == 1 or not len(curve.at):
        for number, values in enumerate(curve.seeds):
            own = ~np.isnan(values)
            style = {"lw": 1.2, "ls": dashes, "marker": "o" if own.sum() < 3 else None, "ms": 3, "zorder": order + 1}
            axis.plot(curve.x[own], values[own], color=color, label=words if not number else None, **style)
        return
    for values in curve.seeds:
        own = ~np.isnan(values)
        axis.plot(curve.x[own], values[own], color=color, lw=0.7, alpha=0.3, zorder=order)
    axis.fill_between(curve.at, curve.low, curve.high, color=color, alpha=BANDS["seeds"], lw=0, zorder=order)
    marker = "o" if len(curve.at) < 3 else None
    axis.plot(curve.at, curve.iqm, color=color, lw=2.0, ls=dashes, marker=marker, ms=4, label=words, zorder=order + 1)
    if differs(curve):
        axis.plot(curve.at, curve.mean, color=color, lw=1.2, ls=(0, (1, 1.5)), zorder=order + 1)


def plain(text: str) -> str:
    """Escapes text so that matplotlib does not read it as a formula."""
    return text.replace("$", r"\$")
