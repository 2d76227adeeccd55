"""The files and services to which metrics are written: metrics.jsonl, TensorBoard, Weights & Biases. No jax.

Each sink can be rewound to its position at a checkpoint, so that a resumed run continues it without gap or overlap.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from dreamer.errors import UserError
from dreamer.plugins import one_line
from dreamer.runtime.files.atomic import disk_error
from dreamer.runtime.files.safe_files import json_value, open_regular
from dreamer.runtime.log import images

STEP = "env_steps"  # the x-axis
LONGEST_LINE = 1 << 24  # bytes of a line of metrics


class Sink(Protocol):
    """A destination of metrics.

    step: the env_steps of the values | image [H, W, 3] uint8 | frames [T, H, W, 3] uint8
    """

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def image(self, step: int, name: str, image: np.ndarray) -> None: ...
    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None: ...
    def close(self) -> None: ...


class Guarded:
    """Wraps a sink of the caller, and reports an error of the sink in one line that names the sink."""

    def __init__(self, sink: Sink):
        self._sink = sink

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Calls `scalars` of the sink. Raises UserError if that fails, as all methods here do."""
        self._call("scalars", step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Calls `image` of the sink with image [H, W, 3]."""
        self._call("image", step, name, image)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Calls `video` of the sink with frames [T, H, W, 3]."""
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
        """Opens the file, or makes it if it is missing. `position` includes the existing contents of the file."""
        self._path = path
        try:
            self._file = open(path, "ab", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            self._crc = _crc_of(path, size) if size else 0
        except OSError as error:
            raise disk_error(error, path) from error

    def write(self, head: Mapping[str, float], values: Mapping[str, float]) -> None:
        """Appends {**head, **values}; a value that is not finite becomes null and is named in "nonfinite"."""
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
        """Waits until all lines are on the disk. Returns the number of bytes in the file, and their crc32."""
        try:
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size, self._crc
        except OSError as error:
            raise disk_error(error, self._path) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Tail(NamedTuple):
    """Where a file of lines is cut when a run is resumed.

    keep: the number of bytes kept | seconds: the `time` of the last line kept after the checkpoint, else 0
    note: a line on what could not be kept; "": everything was kept
    """

    keep: int
    seconds: float
    note: str


def lines_damage(path: Path, nbytes: int, crc: int | None) -> str:
    """Returns the damage to the first `nbytes` bytes of a file of lines, as a phrase; "" if they are unchanged.

    crc: the crc32 of these bytes; None: unknown. Raises UserError when the file cannot be read.
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
    """Returns where to cut a file of lines for a run that is resumed. Only reads.

    nbytes: the size of the file at the checkpoint.
    last_step: later lines of at most this many env_steps are kept; None: no later line is kept.
    A line that a kill has cut, or that is damaged, is cut off together with all later lines.
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
    """Owns a TensorBoard event file and writes to it at once, in the calling thread.

    tensorboardX's SummaryWriter is not used: it writes in a thread that dies on a full disk and then blocks the caller
    forever, and its add_video drops the video unless moviepy is installed.
    """

    def __init__(self, directory: Path, resumed_at: int | None = None):
        """resumed_at: the env_steps from which viewers discard the values of earlier files; None: a new run."""
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
        """Writes the settings {dotted key: value} of the run to the HParams page, and as a table to the Text page."""
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
        """Writes one curve per name. Viewers show nan as a mark."""
        self._add(step, [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Stores an image [H, W, 3] as PNG."""
        self._write_image(step, name, image.shape, images.encode_png(image))

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Stores frames [T, H, W, 3] as an animated GIF, which TensorBoard plays among the images."""
        self._write_image(step, name, frames.shape[1:], images.encode_gif(frames, fps))

    def close(self) -> None:
        """Closes the file. Every failed write has already raised its error."""
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
    """Yields (dotted key, value) for each of the nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


class WeightsAndBiases:
    """Owns one Weights & Biases run, with its files under run_dir/wandb. All curves and images are over env_steps.

    env_steps is logged as a value and not as wandb's own step, which may not go back: an evaluation may be logged after
    a line with more env_steps.
    """

    def __init__(
        self, run_dir: Path, config: Any, run_config: Mapping[str, Any], run_id: str | None = None
    ):
        """config: `logger.Config`. run_id: the run to continue; None: a new run."""
        self._wandb = wandb = wandb_ready(config.wandb)
        mode: Literal["online", "offline"] = "online" if config.wandb == "online" else "offline"
        try:
            self._run = wandb.init(
                project=config.wandb_project, name=config.wandb_name or run_dir.name,
                group=config.wandb_group or None, tags=list(config.wandb_tags) or None, dir=str(run_dir), mode=mode,
                config=dict(run_config), settings=wandb.Settings(silent=True, console="off"),
                id=run_id, resume="allow" if run_id and mode == "online" else None,
            )  # fmt: skip
        except wandb.Error as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"log.wandb={config.wandb} could not start: {reason}") from error
        self._remove_outward_links(run_dir)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    @property
    def run_id(self) -> str:
        """Returns the id of the run in Weights & Biases."""
        return self._run.id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs one curve per name."""
        self._run.log({**values, STEP: step})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs an image [H, W, 3] as PNG."""
        self._run.log({name: self._wandb.Image(image), STEP: step})

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Logs frames [T, H, W, 3] as a GIF that is encoded here, because wandb itself would need moviepy."""
        gif = io.BytesIO(images.encode_gif(frames, fps))
        self._run.log({name: self._wandb.Video(gif, format="gif"), STEP: step})

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()

    @staticmethod
    def _remove_outward_links(run_dir: Path) -> None:
        """Removes wandb's links to its log in the user's cache: a run directory with outward links is not resumed."""
        for link in (run_dir / "wandb").glob("*run-*/logs/debug-core.log"):
            if link.is_symlink():
                link.unlink()


def wandb_ready(mode: str) -> Any:
    """Returns the package wandb. Raises UserError if it is missing, or if it needs an account to log online."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"log.wandb={mode} needs the package wandb: python -m pip install wandb") from error
    # Checked before init, which on a terminal would stop and ask for an account.
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError(
            "log.wandb=online needs an account: run `wandb login`, or use --log.wandb offline and sync later"
        )
    return wandb
