"""The files and services that metrics go to: metrics.jsonl, TensorBoard, Weights & Biases. No jax.

Each can be rewound to where it stood at a checkpoint, so that a resumed run continues it without gap or overlap.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime import pictures
from dreamer.runtime.run_dir import disk_error


class Sink(Protocol):
    """Where metrics go. step: env_steps | picture [H, W, 3] uint8 | frames [T, H, W, 3] uint8."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, image: np.ndarray) -> None: ...
    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """A file of one JSON object a line. A line is written whole or not at all."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = open(path, "ab", buffering=0)
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
            while written < len(line):  # a nearly full disk takes a part first, and refuses the next call
                written += self._file.write(line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise disk_error(error, self._path) from error

    def position(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def rewind_lines(path: Path, nbytes: int, last_step: int | None) -> float:
    """Cuts a file of lines back to what a resumed run continues; the `time` of the last later line kept, else 0.

    nbytes: its size at the checkpoint. last_step: keep later lines of at most this many env_steps; None = none.
    A line that a kill has cut goes too. Raises UserError when the file is shorter than it was, or cannot be written.
    """
    try:
        with open(path, "rb+") as file:
            size = os.fstat(file.fileno()).st_size
            if size < nbytes:
                raise UserError(f"{path} is cut short: it had {nbytes} bytes at the checkpoint, it has {size}")
            file.seek(nbytes)
            seconds = 0.0
            for line in file.readlines() if last_step is not None else ():
                if not line.endswith(b"\n") or (values := json.loads(line))["env_steps"] > last_step:
                    break
                nbytes += len(line)
                seconds = float(values["time"])
            file.truncate(nbytes)
            return seconds
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged after byte {nbytes}: {error}") from error
    except OSError as error:
        raise disk_error(error, path) from error


class TensorBoard:
    """A TensorBoard event file, written at once in the calling thread.

    tensorboardX's SummaryWriter writes in a thread that dies on a full disk and then blocks the caller for ever,
    and its add_video drops the video unless moviepy is there; hence the events are made here.
    """

    def __init__(self, directory: Path, resumed_at: int | None = None):
        """resumed_at: the env_steps from which viewers shall forget what earlier files say; None = a new run."""
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

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One curve a name; nan is shown as a mark."""
        self._add(step, [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Stored as PNG."""
        self._write_image(step, name, image.shape, pictures.encode_png(image))

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Stored as an animated GIF, which TensorBoard plays among the images."""
        self._write_image(step, name, frames.shape[1:], pictures.encode_gif(frames, fps))

    def close(self) -> None:
        """Closes the file. What could not be written has been told by the write that failed."""
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


class WeightsAndBiases:
    """One Weights & Biases run, its files under run_dir/wandb."""

    def __init__(
        self, run_dir: Path, config: Any, run_config: Mapping[str, Any], run_id: str | None = None
    ):
        """config: `metrics.Config`. run_id: the run to continue, None = a new one."""
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"log.wandb={config.wandb} needs the package wandb: python -m pip install wandb"
            ) from error
        self._wandb = wandb
        mode: Literal["online", "offline"] = "online" if config.wandb == "online" else "offline"
        try:
            # Asked before init, which on a terminal would stop and ask for an account.
            if mode == "online" and not wandb.login(prompt=False, verify=False):
                raise UserError(
                    "log.wandb=online needs an account: run `wandb login`, or use --log.wandb offline and sync later"
                )
            self._run = wandb.init(
                project=config.wandb_project, name=run_dir.name, dir=str(run_dir), mode=mode,
                config=dict(run_config), settings=wandb.Settings(silent=True, console="off"),
                id=run_id, resume="allow" if run_id and mode == "online" else None,
            )  # fmt: skip
        except wandb.Error as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"log.wandb={config.wandb} could not start: {reason}") from error

    @property
    def run_id(self) -> str:
        """What names the run there."""
        return self._run.id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One curve a name."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Stored as PNG."""
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Stored as GIF, encoded here: wandb itself would need moviepy."""
        gif = io.BytesIO(pictures.encode_gif(frames, fps))
        self._run.log({name: self._wandb.Video(gif, format="gif")}, step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()
