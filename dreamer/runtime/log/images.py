"""Makes, combines, writes and reads images and videos. Imports no jax.

matplotlib, Pillow and ffmpeg are imported where they are used, so that a run without images does not wait for them.
"""

from __future__ import annotations

import errno
import io
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.files.atomic import write_whole
from dreamer.spaces import Space

LARGEST_GIF = (200, 240)  # frames, and pixels of the longer side, of a video for TensorBoard and Weights & Biases
SMALLEST_SIDE = 384  # pixels; smaller videos are enlarged to this size
TILE_GAP = 4  # pixels between videos shown side by side
DRAWN = ("seen", "mind")  # the parts of a report that a world model and a behavior have drawn


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> Path:
    """Writes frames [T, H, W], [T, H, W, 1] or [T, H, W, 3] uint8 as an mp4 for any player (H.264, yuv420p).

    Small frames are enlarged by an integer factor, and odd sides are padded with one black pixel. Returns `path`.
    Raises UserError if the video cannot be written, for example on a full disk, and leaves no incomplete file.
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
        # Calls ffmpeg itself, because imageio's writer ignores its exit code and so a full disk.
        command = [get_ffmpeg_exe(), "-y", "-v", "error", *source, *target, str(partial)]
        done = subprocess.run(command, input=frames.data, capture_output=True)
        if done.returncode:
            text = done.stderr.decode(errors="replace")
            if os.strerror(errno.ENOSPC) in text:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise UserError(f"cannot write {path}: ffmpeg: {(text.strip().splitlines() or ['no message'])[-1]}")

    return write_whole(Path(path), encode)


def write_episode_video(path: str | Path, frames: list[np.ndarray] | np.ndarray, fps: float) -> Path:
    """Writes the rendered frames of an episode, each [H, W, 3] uint8, as an mp4. Returns `path`.

    Raises ValueError if there are no frames. Raises UserError if the frames differ in size, or if `write_video` fails.
    """
    if len(frames) == 0:
        raise ValueError("an episode video needs at least one frame")
    sizes = dict.fromkeys(np.shape(frame) for frame in frames)
    if len(sizes) > 1:
        first, other = list(sizes)[:2]
        raise UserError(f"cannot write {path}: its frames change from {list(first)} to {list(other)}")
    return write_video(path, np.stack([np.asarray(frame) for frame in frames]), fps)


def tiled(videos: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Arranges videos of frames [H, W, 3] uint8 in a grid, as square as possible. Returns [T, H', W', 3].

    T is the length of the longest video. A video that ends earlier keeps its last frame at a third of the brightness. A
    smaller video is padded with black.
    """
    steps = max(len(video) for video in videos)
    height, width = (max(video[0].shape[side] for video in videos) for side in (0, 1))
    columns = math.ceil(math.sqrt(len(videos)))
    rows = -(-len(videos) // columns)
    gap = TILE_GAP if len(videos) > 1 else 0
    shape = (steps, rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    out = np.zeros(shape, np.uint8)
    for number, video in enumerate(videos):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        h, w = video[0].shape[:2]
        tile = out[:, top : top + h, left : left + w]
        for step, image in enumerate(video):
            tile[step] = image
        tile[len(video) :] = video[-1] // 3
    return out


def shortened(frames: Sequence[np.ndarray], fps: float) -> tuple[np.ndarray, float]:
    """Keeps every n-th frame and every m-th pixel of a video, so that it is small enough for an animated GIF.

    Returns the kept frames [T, H, W, 3] and a lower frame rate, with which the duration stays the same.
    """
    most, side = LARGEST_GIF
    every = -(-len(frames) // most)
    pixel = -(-max(frames[0].shape[:2]) // side)
    return np.stack([np.asarray(frame)[::pixel, ::pixel] for frame in frames[::every]]), fps / every


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an image [H, W, 3] uint8 as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def read_png(path: str | Path) -> np.ndarray:
    """Reads a PNG file as an image [H, W, 3] uint8."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """Encodes frames [T, H, W, 3] uint8 as an animated GIF that repeats forever."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def to_bytes(space: Space, image: np.ndarray) -> np.ndarray:
    """Converts an image observation [.., H, W, C] to uint8. The bounds of its space become 0 (black) and 255 (white).

    If the space has no bounds, the values are already 0 to 255; `image` is then returned unchanged.
    """
    if space.bounds is None:
        return image
    low, high = space.bounds
    return as_bytes((np.asarray(image, np.float32) - low) * (255 / (high - low)))


def in_bytes(spaces: Mapping[str, Space], report: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the images of a report {"truth/k", "dream/k": [B, T, ..]} with `to_bytes`; keeps all other arrays.

    spaces: the Space of each observation key k. {"seen/name", "mind/name"}, the pictures of model and behavior, are in
    bytes already.
    """

    def one(name: str, value: np.ndarray) -> np.ndarray:
        kind, _, key = name.partition("/")
        return to_bytes(spaces[key], value) if kind not in DRAWN and spaces[key].image else value

    return {name: one(name, value) for name, value in report.items()}


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Rounds values [..], clips them to the range 0 to 255, and returns them as uint8."""
    return np.clip(np.round(np.asarray(values, np.float32)), 0, 255).astype(np.uint8)


def rgb(frames: np.ndarray) -> np.ndarray:
    """Converts images [.., C] to RGB [.., 3]: the last 3 channels if 3 divides C, else the last channel as grey.

    If several frames are stacked along C, oldest first, this shows the newest frame.
    """
    if frames.shape[-1] % 3 == 0:
        return frames[..., -3:]
    return np.repeat(frames[..., -1:], 3, axis=-1)
