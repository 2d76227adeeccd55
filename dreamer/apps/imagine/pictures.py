"""Draws what was dreamed: a film, a strip of frames, and the scores by horizon."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer.apps.imagine.scores import Score
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.log import images, open_loop

STRIP = (0, 1, 2, 3, 5, 10, 15, 20, 30, 50, 100, 200, 500)  # steps after the start
MODEL, COPY = "#d8432e", "#7a7a7a"


def rows_of(dreamed: np.ndarray, start: np.ndarray, true: Sequence[np.ndarray] | None) -> dict[str, np.ndarray]:
    """Returns the rows of a film by their labels, each [N, T, H, W, 3] uint8; the first frame is the start.

    dreamed [N, T, H, W, C] | start [N, H, W, C]: the true first frames | true: N arrays [S, H, W, C], or None if the
    future is unknown: only the dream is shown then. Where a true future has ended, it and the error are black.
    """
    shown = images.rgb(dreamed[: open_loop.VIDEO_ROWS])
    if true is None:
        return {"model": shown}
    truth, error = np.zeros_like(shown), np.zeros_like(shown)
    for n in range(len(shown)):
        frames = images.rgb(np.concatenate([start[n][None], true[n]]))
        truth[n, : len(frames)] = frames
        error[n, : len(frames)] = open_loop.difference(frames, shown[n, : len(frames)])
    return {"true": truth, "model": shown, "error": error}


def write_film(path: Path, rows: dict[str, np.ndarray], fps: float) -> None:
    """Writes a film with a column for each dream. The border of the first frame is green, that of later ones red."""
    images.write_video(path, open_loop.film(rows, observed=1), fps)


def write_strip(path: Path, rows: dict[str, np.ndarray]) -> None:
    """Writes frames of the first dream side by side, from the start to the last one, as a PNG."""
    from matplotlib.figure import Figure

    steps = len(rows["model"][0]) - 1
    chosen = [step for step in STRIP if step < steps] + [steps]
    figure = Figure(figsize=(1.1 * len(chosen) + 0.6, 1.15 * len(rows) + 0.3), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), len(chosen), squeeze=False)
    for (label, frames), line in zip(rows.items(), axes, strict=True):
        for step, axis in zip(chosen, line, strict=True):
            axis.imshow(frames[0][step], interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label)
    for step, axis in zip(chosen, axes[0], strict=True):
        axis.set_title("start" if step == 0 else f"+{step}", fontsize=9)
    _save(figure, path)


def write_curves(path: Path, found: Sequence[Score]) -> None:
    """Draws PSNR, and SSIM if it is known, by horizon, for the model and for copies of the start, as a PNG."""
    from matplotlib.figure import Figure

    panels = ["psnr"] + ["ssim"] * (found[0].ssim is not None)
    figure = Figure(figsize=(4.6 * len(panels), 3.4), dpi=110, layout="constrained")
    horizons = [score.horizon for score in found]
    for name, axis in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        for field, label, color in ((name, "model", MODEL), (f"{name}_copy", "copy of the last true frame", COPY)):
            values = [getattr(score, field) for score in found]
            axis.plot(horizons, values, color=color, label=label, lw=1.6, marker="o" if len(found) == 1 else None)
        axis.set_xlabel("steps after the start")
        axis.set_ylabel("PSNR in dB" if name == "psnr" else "SSIM")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    write_whole(path, functools.partial(figure.savefig, format="png"))
