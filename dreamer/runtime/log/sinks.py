"""The files and services to which metrics are written: metrics.jsonl, TensorBoard, Weights & Biases. Imports no jax.

A resumed run continues metrics.jsonl and TensorBoard at the restored env_steps, without a gap or an overlap. Weights &
Biases keeps the values that were logged after the checkpoint, and adds those of the resumed run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dreamer.errors import UserError, one_line
from dreamer.runtime.files.atomic import disk_error
from dreamer.runtime.files.safe_files import json_value, open_regular
from dreamer.runtime.log import images

LONGEST_LINE = 1 << 24  # bytes of a line of metrics


class Sink(Protocol):
    """A destination of metrics.

    step: the env_steps of the values | values {name: value} | image [H, W, 3] uint8 | frames [T, H, W, 3] uint8
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def image(self, step: int, name: str, image: np.ndarray) -> None: ...
    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None: ...
    def close(self) -> None: ...


class Guarded:
    """Wraps a sink of the caller. If the sink raises an error, raises a UserError that names the sink."""

    def __init__(self, sink: Sink):
        self._sink = sink

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Calls `scalars` of the sink. Raises UserError if the sink fails."""
        self._call("scalars", step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Calls `image` of the sink with image [H, W, 3] uint8. Raises UserError if the sink fails."""
        self._call("image", step, name, image)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Calls `video` of the sink with frames [T, H, W, 3] uint8. Raises UserError if the sink fails."""
        self._call("video", step, name, frames, fps)

    def close(self) -> None:
        """Leaves the sink open, because it belongs to the caller."""

    def _call(self, method: str, *args: Any) -> None:
        try:
            getattr(self._sink, method)(*args)
        except Exception as error:
            raise UserError(f"sink {type(self._sink).__name__} failed in {method}: {one_line(error)}") from error


class JsonLines:
    """A file with one JSON object per line. A line is written whole or not at all."""

    def __init__(self, path: Path):
        """Opens the file for appending, or creates it if it is missing. Raises UserError on a disk error."""
        self._path = path
        try:
            self._file = open(path, "ab", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            self._crc = _crc_of(path, size) if size else 0
        except OSError as error:
            raise disk_error(error, path) from error

    def write(self, head: Mapping[str, float], values: Mapping[str, float]) -> None:
        """Appends one line with the JSON object {**head, **values}. Raises UserError if the disk is full.

        If some of `values` are nan or infinite, they are written as null, and "nonfinite" lists their names.
        """
        row: dict[str, Any] = {**head, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        nonfinite = [name for name, value in values.items() if not math.isfinite(value)]
        if nonfinite:
            row["nonfinite"] = nonfinite
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(line):  # a nearly full disk takes a part of the line, and the next call fails
                written += self._file.write(line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise disk_error(error, self._path) from error
        self._crc = zlib.crc32(line, self._crc)

    def position(self) -> tuple[int, int]:
        """Waits until all lines are on the disk. Returns the size of the file in bytes, and the crc32 of its bytes."""
        try:
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size, self._crc
        except OSError as error:
            raise disk_error(error, self._path) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Tail(NamedTuple):
    """Where metrics.jsonl is cut when a run is resumed.

    keep: the number of bytes kept | seconds: the `time` in the last line kept after the checkpoint; 0 if none is kept
    note: a message if a damaged line is cut off, else ""
    """

    keep: int
    seconds: float
    note: str


def lines_damage(path: Path, nbytes: int, crc: int | None) -> str:
    """Describes the damage to the first `nbytes` bytes of a metrics.jsonl, or returns "" if they are undamaged.

    A description is a phrase such as "is missing".
    crc: the correct crc32 of these bytes; None: only the size is checked. Raises UserError if the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size < nbytes:
            return f"is cut short: it had {nbytes} bytes at the checkpoint, it has {size}"
        if crc is not None and _crc_of(path, nbytes) != crc:
            return f"is damaged: the checksum of its first {nbytes} bytes differs"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return ""


def tail_of(path: Path, nbytes: int, last_step: int | None) -> Tail:
    """Returns where to cut the metrics.jsonl of a run that is resumed. Only reads the file.

    nbytes: the size of the file at the checkpoint; all lines within it are kept.
    last_step: later lines are kept up to this env_steps; None: no later line is kept.
    The first later line that is above last_step, incomplete or damaged is cut off together with all lines after it.
    """
    seconds, note = 0.0, ""
    with contextlib.suppress(FileNotFoundError), open_regular(path) as file:
        file.seek(nbytes)
        while last_step is not None and (line := file.readline(LONGEST_LINE)):
            try:
                values = json_value(line)
                if not line.endswith(b"\n") or values["env_steps"] > last_step:
                    break
                seconds = float(values["time"])
            except (ValueError, KeyError, TypeError, OverflowError):
                if line.endswith(b"\n"):
                    note = f"{path} is damaged after byte {nbytes}: the lines from there on are set aside"
                break
            nbytes += len(line)
    return Tail(nbytes, seconds, note)


def _crc_of(path: Path, nbytes: int) -> int:
    """Returns the crc32 of the first `nbytes` bytes of a file."""
    crc = 0
    with open_regular(path) as file:
        while nbytes > 0 and (piece := file.read(min(nbytes, 1 << 22))):
            crc = zlib.crc32(piece, crc)
            nbytes -= len(piece)
    return crc


class TensorBoard:
    """Owns a TensorBoard event file. Each method writes at once, in the calling thread.

    tensorboardX's SummaryWriter is not used: it writes in a thread that dies on a full disk and then blocks the caller
    forever, and its add_video drops the video unless moviepy is installed.
    """

    def __init__(self, directory: Path, resumed_at: int | None = None):
        """resumed_at: the env_steps from which TensorBoard discards values of earlier files; None: a new run."""
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._path = directory / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        try:
            self._writer = RecordWriter(str(self._path))
        except OSError as error:
            raise disk_error(error, self._path) from error
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        if resumed_at is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(self._event(wall_time=time.time(), step=resumed_at, session_log=start))

    def hyperparameters(self, run_config: Mapping[str, Any]) -> None:
        """Writes the settings of a run, which may be nested, to the HParams page and as a table to the Text page."""
        from tensorboardX import summary

        flat = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in _flat(run_config)}
        if not flat:
            return
        for one in summary.hparams(flat, {"eval/return": 0.0})[:2]:  # the third would mark the run as ended
            self._write(self._event(wall_time=time.time(), step=0, summary=one))
        rows = "\n".join(f"| {key} | {value} |" for key, value in flat.items())
        table = summary.text("config", f"| setting | value |\n| --- | --- |\n{rows}")
        self._write(self._event(wall_time=time.time(), step=0, summary=table))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to the curve of each name. TensorBoard shows nan as a special symbol."""
        self._add(step, [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Stores an image [H, W, 3] uint8 as PNG."""
        self._write_image(step, name, image.shape, images.encode_png(image))

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Stores frames [T, H, W, 3] uint8 as an animated GIF, which TensorBoard plays among the images."""
        self._write_image(step, name, frames.shape[1:], images.encode_gif(frames, fps))

    def close(self) -> None:
        """Closes the file. Raises nothing: every failed write has already raised its error."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write_image(self, step: int, name: str, shape: tuple[int, ...], encoded: bytes) -> None:
        image = self._summary.Image(height=shape[0], width=shape[1], colorspace=3, encoded_image_string=encoded)
        self._add(step, [self._summary.Value(tag=name, image=image)])

    def _add(self, step: int, values: list[Any]) -> None:
        self._write(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def _write(self, event: Any) -> None:
        try:
            self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise disk_error(error, self._path) from error


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for each setting in nested mappings. path: the prefix of the keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
