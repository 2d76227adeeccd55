"""Prepares the data for the page's script: panels and charts as JSON, and plotly.js, so that it needs no network.

Imports no jax.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dreamer.apps.report import palette
from dreamer.apps.report.axes import place_labels
from dreamer.apps.report.curves import Line, Panel
from dreamer.apps.report.palette import Style
from dreamer.apps.report.plots import differs, x_label
from dreamer.apps.report.scores import text
from dreamer.apps.report.sweep_charts import Chart, Heat, Parallel
from dreamer.errors import UserError

DIGITS = 6  # significant digits of a number on the page


def library() -> str:
    """Returns the source of plotly.js, compressed, as base64 text of about 2 MB. Raises UserError if it is missing."""
    try:
        from plotly import offline
    except ImportError as error:
        raise UserError(
            'dreamer report needs plotly for its page: pip install "dreamer-jax[report]", in the checkout '
            'pip install ".[report]"; --static makes a page without it'
        ) from error
    return base64.b64encode(gzip.compress(offline.get_plotlyjs().encode(), mtime=0)).decode()


def to_json(panels: Sequence[Panel | Chart], looks: Mapping[str, Style]) -> str:
    """Returns panels and charts as JSON that is safe inside a script element. looks: {name of a line: its style}."""
    data = [_panel(one, looks) if isinstance(one, Panel) else _chart(one) for one in panels]
    written = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return written.replace("<", "\\u003c").replace("&", "\\u0026")


def _chart(chart: Chart) -> dict[str, Any]:
    """Returns a chart as a dict for the page's script. "kind" says which of its functions draws it."""
    if isinstance(chart, Heat):
        cells = [[None if mean is None else text(mean) for mean in row] for row in chart.means]
        return {"kind": "heat", "scale": palette.SCALE, "cells": cells, **chart._asdict()}
    if isinstance(chart, Parallel):
        shares = chart.scales[-1][1].at
        scales = [{"name": name, "ticks": scale.ticks} for name, scale in chart.scales]
        lines = [
            {"name": name, "at": [scale.at[number] for _, scale in chart.scales], "color": palette.of_share(share)}
            for number, (name, share) in enumerate(zip(chart.names, shares, strict=True))
        ]
        return {"kind": "parallel", "title": chart.title, "scales": scales, "lines": lines}
    return {"kind": "scatter", **chart._asdict()}


def _panel(panel: Panel, looks: Mapping[str, Style]) -> dict[str, Any]:
    return {
        "task": panel.task, "metric": panel.metric, "xLabel": x_label(panel),
        "x": panel.bounds, "y": panel.y_bounds, "lines": [_line(line, looks[line.name]) for line in panel.lines],
        "levels": [
            {"text": f"{level.name} {level.value:,.4g}", "value": level.value, "above": above}
            for level, above in place_labels(panel.levels, panel.y_bounds)
        ],
    }  # fmt: skip


def _line(line: Line, look: Style) -> dict[str, Any]:
    """Returns a line of a panel as a dict for the page's script.

    "main": the points of the thick line, or None if the seeds share no bin
    "seeds": the points of the thin lines, or [] if there is only one seed
    """
    curve = line.curve
    seeds = [_points(curve.x[own], values[own]) for values in curve.seeds for own in [~np.isnan(values)]]
    main = _points(curve.at, curve.iqm) if len(curve.at) else None
    if len(seeds) == 1:
        seeds = []
    bands = {"low": curve.low, "high": curve.high, "std": curve.std}
    return {
        "name": line.name, "color": look.color, "dash": look.dash, "published": line.published, "main": main,
        "seeds": seeds, "mean": _numbers(curve.mean) if differs(curve) else None,
        **{name: None if band is None or main is None else _numbers(band) for name, band in bands.items()},
    }  # fmt: skip


def _points(x: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    return {"x": _numbers(x), "y": _numbers(y)}


def _numbers(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
