"""Videos and plots of a run: what happened, and beside it what the world model dreamed. No jax.

matplotlib, Pillow and ffmpeg are imported where they are used: a run without pictures does not wait for them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.files.run_dir import PICTURES, disk_error
from dreamer.spaces import Space

OBSERVED = (40, 170, 80)  # border of a frame that the model saw
DREAMED = (215, 50, 50)  # border of a frame that it had to imagine
TRUE_LINE, DREAM_LINE, OBSERVED_SHADE = "#222222", "#d8432e", "#2fa65a"
SMALLEST_SIDE = 384  # pixels; smaller videos are enlarged to it
VIDEO_ROWS = 4  # sequences shown in an open-loop video
PLOT_PANELS = 12  # dimensions shown in an open-loop plot
REPORT_FPS = 10
TILE_GAP = 4  # pixels between films shown side by side


# Files ----------------------------------------------------------------------------------------------------------------


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> Path:
    """Writes frames [T, H, W], [T, H, W, 1] or [T, H, W, 3] uint8 as an mp4 that every player shows (H.264, yuv420p).

    Small frames are enlarged by a whole factor, odd sides get one black pixel. Raises UserError when it cannot be
    written, a full disk among the causes; no half video is left behind.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or 0 in frames.shape:
        raise ValueError(f"a video needs uint8 frames [T, H, W, 3], got {frames.dtype}{list(frames.shape)}")
    frames = np.ascontiguousarray(rgb(frames if frames.ndim == 4 else frames[..., None]))
    height, width = frames.shape[1:3]
    factor = max(1, -(-SMALLEST_SIDE // min(height, width)))
    enlarge = f"scale=iw*{factor}:ih*{factor}:flags=neighbor,pad=ceil(iw/2)*2:ceil(ih/2)*2"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    target = ["-vf", enlarge, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-f", "mp4"]

    def encode(partial: Path) -> None:
        # ffmpeg is called here because imageio's writer does not look at its exit code: a full disk went unseen.
        command = [get_ffmpeg_exe(), "-y", "-v", "error", *source, *target, str(partial)]
        done = subprocess.run(command, input=frames.data, capture_output=True)
        if done.returncode:
            text = done.stderr.decode(errors="replace")
            if os.strerror(errno.ENOSPC) in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise UserError(f"cannot write {path}: ffmpeg: {(text.strip().splitlines() or ['no message'])[-1]}")

    return write_whole(Path(path), encode)


def write_episode_video(path: str | Path, frames: list[np.ndarray] | np.ndarray, fps: float) -> Path:
    """Writes the rendered frames of an episode [H, W, 3] uint8, one after another. Raises ValueError without frames.

    UserError when they are not all of one size, and as `write_video`.
    """
    if len(frames) == 0:
        raise ValueError("an episode video needs at least one frame")
    sizes = dict.fromkeys(np.shape(frame) for frame in frames)
    if len(sizes) > 1:
        first, other = list(sizes)[:2]
        raise UserError(f"cannot write {path}: its frames change from {list(first)} to {list(other)}")
    return write_video(path, np.stack([np.asarray(frame) for frame in frames]), fps)


class Show(Protocol):
    """What shows pictures besides the files, `Logger` as a rule."""

    def picture(self, env_steps: int, name: str, image: np.ndarray) -> None: ...
    def video(self, env_steps: int, name: str, frames: np.ndarray, fps: float) -> None: ...


def write_report(
    run_dir: str | Path, env_steps: int, report: Mapping[str, np.ndarray], show: Show | None = None
) -> list[Path]:
    """Writes the open-loop pictures of `Agent.report` into run_dir/pictures, named by env_steps, and gives their paths.

    report: {"truth/k", "dream/k": [B, T, ..]} in the units of the observation, the first half of T observed.
    Image keys (uint8 truth [B, T, H, W, C]) become openloop_<steps>.mp4, one key above the other; all others share
    openloop_<steps>.png; `show` gets them as "openloop/video" and "openloop/plot". Raises UserError when a file
    cannot be written.
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
            show.picture(env_steps, "openloop/plot", read_png(paths[-1]))
    return paths


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` make the file under another name and renames it, so that a failure leaves no half file."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return path


# Frames ---------------------------------------------------------------------------------------------------------------


def open_loop_video(truth: np.ndarray, dream: np.ndarray, observed: int) -> np.ndarray:
    """Frames [T, H', W', 3] uint8: a column for each sequence; in it truth, dream and their difference, top to bottom.

    truth, dream: [B, T, H, W, C] with values 0 to 255, any C (see `rgb`); of B the first 4
    are shown. The border is green while t < observed and red from then on. Equal pictures have a black difference.
    """
    truth, dream = (rgb(_bytes(side[:VIDEO_ROWS])) for side in (truth, dream))
    if truth.shape != dream.shape:
        raise ValueError(f"truth {truth.shape} and dream {dream.shape} differ in shape")
    error = np.abs(truth.astype(np.int16) - dream.astype(np.int16)).astype(np.uint8)
    _, steps, height, width, _ = truth.shape
    border = max(2, min(height, width) // 24)
    color = np.where(np.arange(steps)[:, None] < observed, OBSERVED, DREAMED).astype(np.uint8)
    columns = [_labels(steps, ("true", "model", "error"), height, border)]
    for parts in zip(truth, dream, error, strict=True):
        tall = np.broadcast_to(
            color[:, None, None], (steps, 3 * height + 4 * border, width + 2 * border, 3)
        ).copy()
        for i, part in enumerate(parts):
            top = border + i * (height + border)
            tall[:, top : top + height, border : border + width] = part
        columns.append(tall)
        columns.append(np.zeros((steps, tall.shape[1], border, 3), np.uint8))
    return np.concatenate(columns[:-1], axis=2)


def stack_videos(videos: list[np.ndarray]) -> np.ndarray:
    """Puts videos [T, H, W, 3] of one length T above each other, the narrower ones filled with black on the right."""
    width = max(video.shape[2] for video in videos)
    wide = [np.pad(video, ((0, 0), (0, 0), (0, width - video.shape[2]), (0, 0))) for video in videos]
    return np.concatenate(wide, axis=1)


def tiled(films: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Films of frames [H, W, 3] uint8 side by side, as square as can be: [T, H', W', 3], T of the longest.

    A film that ends earlier holds its last frame at a third of its brightness; a smaller one has black beside it.
    """
    steps = max(len(film) for film in films)
    height, width = (max(film[0].shape[side] for film in films) for side in (0, 1))
    columns = math.ceil(math.sqrt(len(films)))
    rows = -(-len(films) // columns)
    gap = TILE_GAP if len(films) > 1 else 0
    shape = (steps, rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    out = np.zeros(shape, np.uint8)
    for number, film in enumerate(films):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        h, w = film[0].shape[:2]
        tile = out[:, top : top + h, left : left + w]
        for step, picture in enumerate(film):
            tile[step] = picture
        tile[len(film) :] = film[-1] // 3
    return out


def encode_png(image: np.ndarray) -> bytes:
    """PNG of image [H, W, 3] uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def read_png(path: str | Path) -> np.ndarray:
    """The picture of a PNG file, [H, W, 3] uint8."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """Animated GIF of frames [T, H, W, 3] uint8 that repeats for ever."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def to_bytes(space: Space, picture: np.ndarray) -> np.ndarray:
    """A picture [.., H, W, C] of an observation as uint8, its bounds as black and white."""
    if space.bounds is None:
        return picture
    low, high = space.bounds
    return _bytes((np.asarray(picture, np.float32) - low) * (255 / (high - low)))


def in_bytes(spaces: Mapping[str, Space], report: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A report {"truth/k", "dream/k"} with its pictures as uint8."""
    of = {name: spaces[name.partition("/")[2]] for name in report}
    return {name: to_bytes(of[name], value) if of[name].image else value for name, value in report.items()}


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(np.asarray(values, np.float32)), 0, 255).astype(np.uint8)


def _labels(steps: int, names: tuple[str, ...], height: int, border: int) -> np.ndarray:
    """A strip [T, H', 12, 3] with the name of each row, written upwards; empty where rows are too low for words."""
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


def rgb(frames: np.ndarray) -> np.ndarray:
    """Any number of channels as three: of stacked colors and of stacked greys the last, which is the newest."""
    if frames.shape[-1] % 3 == 0:
        return frames[..., -3:]
    return np.repeat(frames[..., -1:], 3, axis=-1)


# Plots ----------------------------------------------------------------------------------------------------------------


def open_loop_plot(
    path: str | Path, truth: Mapping[str, np.ndarray], dream: Mapping[str, np.ndarray], observed: int
) -> Path:
    """Writes a PNG with one panel a dimension: the true line, the dreamed line, the observed part shaded.

    truth, dream: {k: [B, T, ..]}, the first sequence is drawn; integer truth is a discrete value, drawn in steps.
    At most 12 panels, shared fairly between the keys; the title tells how many dimensions are left out.
    Raises UserError when the file cannot be written.
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
    """[B, T, ..] -> the first sequence, [T, dimensions]."""
    first = np.asarray(value)[0]
    return first.reshape(first.shape[0], -1).astype(np.float64)


def _share(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """How many panels each key gets of `total`: one each in turn, until all are drawn or the panels are spent."""
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
