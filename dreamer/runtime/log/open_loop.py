"""Open-loop images: true observations next to the dreams of the world model. Imports no jax."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.files.run_dir import PICTURES
from dreamer.runtime.log.images import DRAWN, as_bytes, encode_png, read_png, rgb, write_video

OBSERVED = (40, 170, 80)  # border color of a frame that the model observed

DREAMED = (215, 50, 50)  # border color of a frame that the model imagined

TRUE_LINE, DREAM_LINE, OBSERVED_SHADE = "#222222", "#d8432e", "#2fa65a"

VIDEO_ROWS = 4  # sequences shown in an open-loop video

PLOT_PANELS = 12  # dimensions shown in an open-loop plot

REPORT_FPS = 10

SEEN_HEIGHT = 100  # least pixels of a row of a model's own picture


class Show(Protocol):
    """An object that also shows the images written to files, usually a `Logger`.

    image [H, W, 3] uint8 | frames [T, H, W, 3] uint8
    """

    def image(self, env_steps: int, name: str, image: np.ndarray) -> None: ...
    def video(self, env_steps: int, name: str, frames: np.ndarray, fps: float) -> None: ...


def write_report(
    run_dir: str | Path, env_steps: int, report: Mapping[str, np.ndarray], show: Show | None = None
) -> list[Path]:
    """Writes an open-loop report as a video and a plot into run_dir/pictures. Returns the paths of the files.

    report: {"truth/k", "dream/k": [B, T, ..]}, the true and the dreamed values of each observation key k, as from
    `Agent.report`. Images have values from 0 to 255. The world model has observed the first half of the T steps.
    The video openloop_<env_steps>.mp4 stacks all image keys, those with arrays [B, T, H, W, C]. The plot
    openloop_<env_steps>.png shows all other keys. `show` also receives them, as "openloop/video" and "openloop/plot".
    {"seen/name", "mind/name": [B, T, h, w, 1 or 3]}, the pictures of the model and of the behavior, become
    seen_name_<env_steps>.png and "seen/name", and likewise for "mind".
    Raises UserError if a file cannot be written.
    """
    folder = Path(run_dir) / PICTURES
    truth = {name.removeprefix("truth/"): np.asarray(v) for name, v in report.items() if name.startswith("truth/")}
    dream = {key: np.asarray(report[f"dream/{key}"]) for key in truth}
    images = sorted(key for key, value in truth.items() if value.ndim == 5)
    vectors = sorted(key for key in truth if key not in images)
    paths = []
    if images:
        frames = stack_videos([open_loop_video(truth[k], dream[k], truth[k].shape[1] // 2) for k in images])
        paths.append(write_video(folder / f"openloop_{env_steps:09d}.mp4", frames, REPORT_FPS))
        if show:
            show.video(env_steps, "openloop/video", frames, REPORT_FPS)
    if vectors:
        observed = truth[vectors[0]].shape[1] // 2
        true_lines, dream_lines = ({key: side[key] for key in vectors} for side in (truth, dream))
        paths.append(open_loop_plot(folder / f"openloop_{env_steps:09d}.png", true_lines, dream_lines, observed))
        if show:
            show.image(env_steps, "openloop/plot", read_png(paths[-1]))
    for name in (name for name in sorted(report) if name.partition("/")[0] in DRAWN):
        picture, file = seen_picture(report[name]), f"{name.replace('/', '_')}_{env_steps:09d}.png"
        paths.append(write_whole(folder / file, functools.partial(_write_png, encode_png(picture))))
        if show:
            show.image(env_steps, name, picture)
    return paths


def _write_png(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def seen_picture(seen: np.ndarray) -> np.ndarray:
    """Stacks the last row of each sequence [B, T, h, w, 1 or 3] vertically, enlarged: uint8 [H, W, 3]."""
    last = rgb(as_bytes(np.asarray(seen)[:, -1]))
    times = max(1, -(-SEEN_HEIGHT // last.shape[1]))
    framed = np.pad(last.repeat(times, 1).repeat(times, 2), ((0, 0), (0, 4), (0, 0), (0, 0)))
    return framed.reshape(-1, *framed.shape[2:])


def open_loop_video(truth: np.ndarray, dream: np.ndarray, observed: int) -> np.ndarray:
    """Returns video frames [T, H', W', 3] uint8 with one column per sequence: truth above dream above difference.

    truth, dream: [B, T, H, W, C] with values from 0 to 255 and any C (see `rgb`); the first 4 sequences are shown. The
    border is green in the first `observed` frames and then red. The difference of equal images is black.
    """
    truth, dream = (rgb(as_bytes(side[:VIDEO_ROWS])) for side in (truth, dream))
    if truth.shape != dream.shape:
        raise ValueError(f"truth {truth.shape} and dream {dream.shape} differ in shape")
    return film({"true": truth, "model": dream, "error": difference(truth, dream)}, observed)


def difference(truth: np.ndarray, dream: np.ndarray) -> np.ndarray:
    """Returns the absolute differences of two arrays of uint8."""
    return np.abs(truth.astype(np.int16) - dream.astype(np.int16)).astype(np.uint8)


def film(parts: Mapping[str, np.ndarray], observed: int) -> np.ndarray:
    """Returns video frames [T, H', W', 3] uint8: a column for each sequence, in it the parts from top to bottom.

    parts: {label: [B, T, H, W, 3] uint8}, all of one shape | observed: as in `open_loop_video`
    """
    _, steps, height, width, _ = next(iter(parts.values())).shape
    border = max(2, min(height, width) // 24)
    color = np.where(np.arange(steps)[:, None] < observed, OBSERVED, DREAMED).astype(np.uint8)
    columns = [_labels(steps, tuple(parts), height, border)]
    for column in zip(*parts.values(), strict=True):
        shape = (steps, len(parts) * height + (len(parts) + 1) * border, width + 2 * border, 3)
        tall = np.broadcast_to(color[:, None, None], shape).copy()
        for i, part in enumerate(column):
            top = border + i * (height + border)
            tall[:, top : top + height, border : border + width] = part
        columns.append(tall)
        columns.append(np.zeros((steps, tall.shape[1], border, 3), np.uint8))
    return np.concatenate(columns[:-1], axis=2)


def stack_videos(videos: list[np.ndarray]) -> np.ndarray:
    """Stacks videos [T, H, W, 3] of equal length T vertically. Narrower videos are padded with black on the right."""
    width = max(video.shape[2] for video in videos)
    wide = [np.pad(video, ((0, 0), (0, 0), (0, width - video.shape[2]), (0, 0))) for video in videos]
    return np.concatenate(wide, axis=1)


def _labels(steps: int, names: tuple[str, ...], height: int, border: int) -> np.ndarray:
    """Returns a strip [T, H', 12, 3] uint8 with the names of the rows of images, written upwards.

    height: pixels of a row; below 32, there is no room for text and the strip is black. border: pixels between rows.
    """
    from PIL import Image, ImageDraw

    strip = np.zeros((len(names) * height + (len(names) + 1) * border, 12, 3), np.uint8)
    for i, name in enumerate(names):
        if height < 32:
            break
        word = Image.new("RGB", (height, 12))
        ImageDraw.Draw(word).text((height // 2, 5), name, fill=(235, 235, 235), anchor="mm", font_size=11)
        top = border + i * (height + border)
        strip[top : top + height] = np.rot90(np.asarray(word))
    return np.broadcast_to(strip, (steps, *strip.shape))


def open_loop_plot(
    path: str | Path, truth: Mapping[str, np.ndarray], dream: Mapping[str, np.ndarray], observed: int
) -> Path:
    """Writes a PNG with one panel per dimension. A panel shows the true and the dreamed curve. Returns `path`.

    truth, dream: {k: [B, T, ..]}; the first sequence is drawn. A truth of integers or bools is drawn as a step curve.
    observed: the number of time steps that the world model has observed; they are shaded.
    There are at most 12 panels, shared evenly between the keys; the title says how many dimensions are left out. Raises
    UserError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    lines = {key: _lines(value) for key, value in truth.items()}
    dreamed = {key: _lines(dream[key]) for key in truth}
    shown = _share({key: value.shape[1] for key, value in lines.items()}, PLOT_PANELS)
    panels = [(key, i) for key, count in shown.items() for i in range(count)]
    left_out = sum(value.shape[1] for value in lines.values()) - len(panels)
    columns = min(len(panels), 1 if len(panels) <= 2 else 2 if len(panels) <= 6 else 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(7.0, 4.6 * columns), 2.1 * rows + 1.1), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axis, (key, i) in zip(axes, panels, strict=False):
        name = key if lines[key].shape[1] == 1 else f"{key}[{i}]"
        discrete = np.asarray(truth[key]).dtype.kind in "biu"
        _panel(axis, name, lines[key][:, i], dreamed[key][:, i], observed, discrete)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[: len(panels)][-columns:]:
        axis.set_xlabel("time step in the sequence")
        axis.tick_params(labelbottom=True)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    title = f"Open-loop prediction: {observed} steps observed, then dreamed"
    if left_out:
        title += f"\n{left_out} of {left_out + len(panels)} dimensions are not shown"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return write_whole(Path(path), lambda partial: figure.savefig(partial, format="png"))


def _lines(value: np.ndarray) -> np.ndarray:
    """Returns the first sequence of an array [B, T, ..] as [T, dimensions] float64."""
    first = np.asarray(value)[0]
    return first.reshape(first.shape[0], -1).astype(np.float64)


def _share(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Distributes at most `total` panels over the keys, as evenly as possible. Returns {key: number of panels}.

    sizes: {key: number of dimensions}, the most panels that a key can have.
    """
    shown = dict.fromkeys(sizes, 0)
    while total > 0 and any(shown[key] < size for key, size in sizes.items()):
        for key, size in sizes.items():
            if total > 0 and shown[key] < size:
                shown[key] += 1
                total -= 1
    return shown


def _panel(axis, name: str, true: np.ndarray, dreamed: np.ndarray, observed: int, discrete: bool) -> None:
    steps = np.arange(len(true))
    style = {"drawstyle": "steps-mid"} if discrete else {}
    axis.axvspan(-0.5, observed - 0.5, color=OBSERVED_SHADE, alpha=0.15, lw=0, label="observed")
    axis.plot(steps, true, color=TRUE_LINE, lw=1.6, label="true", **style)
    axis.plot(steps, dreamed, color=DREAM_LINE, lw=1.4, ls=(0, (4, 1.5)), label="model", **style)
    axis.set_xlim(-0.5, len(true) - 0.5)
    axis.set_ylabel(name)
    axis.locator_params(axis="x", integer=True)
    if discrete:
        axis.locator_params(axis="y", integer=True)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
