"""Metrics of a run and the files and services they go to: metrics.jsonl, TensorBoard, Weights & Biases. No jax.

The x-axis is env_steps in every sink. A line of metrics.jsonl is one strict JSON object:

    {"env_steps": 4096, "updates": 128, "time": 12.5, "loss/dyn": 1.7, "loss/rep": null, "nonfinite": ["loss/rep"]}

JSON has no nan and no inf: such a value is null, and its name stands in the list `nonfinite`, which is there only then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime import pictures
from dreamer.runtime.run_dir import METRICS, disk_error
from dreamer.runtime.steps import Step

RESERVED = ("env_steps", "updates", "time", "nonfinite")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is logged, how often, and to whom."""

    every: float = 10.0
    """Seconds between two lines of metrics."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run directory."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: off, offline (no account, no network), or online (needs a login)."""
    wandb_project: str = "dreamer"
    """Name of the Weights & Biases project."""


class Sink(Protocol):
    """Where metrics go. step: env_steps | picture [H, W, 3] uint8 | frames [T, H, W, 3] uint8."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, image: np.ndarray) -> None: ...
    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None: ...
    def close(self) -> None: ...


class Logger:
    """Gathers the metrics of one run between writes, and owns the files they are written to.

    add("loss/dyn", 1.7) many times, write(env_steps, updates) now and then. Use as a context manager, or close().
    Every write raises UserError when the disk is full; all earlier lines stay whole.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        run_config: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """run_config: plain values that Weights & Biases shows. Raises UserError when a sink cannot open."""
        self._clock = clock
        self._start = clock()
        self._sums: dict[str, tuple[float, int]] = {}
        with contextlib.ExitStack() as opened:
            self._lines = JsonLines(Path(run_dir) / METRICS)
            opened.callback(self._lines.close)
            self._sinks: list[Sink] = []
            if config.tensorboard:
                self._sinks.append(TensorBoard(Path(run_dir)))
                opened.callback(self._sinks[-1].close)
            if config.wandb != "off":
                self._sinks.append(WeightsAndBiases(Path(run_dir), config, run_config or {}))
                opened.callback(self._sinks[-1].close)
            self._opened = opened.pop_all()

    def add(self, values: Mapping[str, Any], latest: bool = False) -> None:
        """Adds scalars by name. `write` gives the mean of what was added since, or with `latest` the last one.

        values: host numbers or arrays of one element; a jax array is waited for. One nan makes the mean nan.
        """
        for name, value in values.items():
            if name in RESERVED:
                raise ValueError(f"a metric cannot be named {name!r}: metrics.jsonl uses that name itself")
            number = float(np.asarray(value).reshape(()))
            total, count = (0.0, 0) if latest else self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + number, count + 1)

    def write(self, env_steps: int, updates: int) -> dict[str, float]:
        """Writes what was added since the last write to every sink and returns it; writes nothing when nothing was."""
        values = {name: total / count for name, (total, count) in sorted(self._sums.items())}
        self._sums.clear()
        if values:
            seconds = round(self._clock() - self._start, 3)
            self._lines.write({"env_steps": int(env_steps), "updates": int(updates), "time": seconds}, values)
            for sink in self._sinks:
                sink.scalars(int(env_steps), values)
        return values

    def picture(self, env_steps: int, name: str, image: np.ndarray) -> None:
        """Shows image [H, W, 3] uint8 under `name` in the sinks that can show one."""
        for sink in self._sinks:
            sink.picture(int(env_steps), name, image)

    def video(self, env_steps: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Shows frames [T, H, W, 3] uint8 under `name` in the sinks that can show them, as a GIF."""
        for sink in self._sinks:
            sink.video(int(env_steps), name, frames, fps)

    def close(self) -> None:
        """Closes every sink. May be called again."""
        self._opened.close()

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """A TensorBoard event file, written at once in the calling thread.

    tensorboardX's SummaryWriter writes in a thread that dies on a full disk and then blocks the caller for ever,
    and its add_video drops the video unless moviepy is there; hence the events are made here.
    """

    def __init__(self, directory: Path):
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._path = directory / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        try:
            self._writer = RecordWriter(str(self._path))
        except OSError as error:
            raise disk_error(error, self._path) from error
        self._write(self._event(wall_time=time.time(), file_version="brain.Event:2"))

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

    def __init__(self, run_dir: Path, config: Config, run_config: Mapping[str, Any]):
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
            )  # fmt: skip
        except wandb.Error as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"log.wandb={config.wandb} could not start: {reason}") from error

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


class Episode(NamedTuple):
    """A finished episode: env index | sum of rewards | number of env steps taken (the reset row is none)."""

    env: int
    episode_return: float
    length: int


class EpisodeTracker:
    """Adds up the rewards of the running episode of each environment."""

    def __init__(self, envs: int):
        self._returns = np.zeros(envs, np.float64)
        self._lengths = np.zeros(envs, np.int64)

    def observe(self, step: Step) -> list[Episode]:
        """Takes the next row of every environment, gives the episodes that ended in it."""
        first, last = np.asarray(step.is_first, bool), np.asarray(step.is_last, bool)
        self._returns = np.where(first, 0.0, self._returns) + np.where(first, 0.0, np.asarray(step.reward))
        self._lengths = np.where(first, 0, self._lengths + 1)
        return [Episode(int(env), float(self._returns[env]), int(self._lengths[env])) for env in np.flatnonzero(last)]


def episode_metrics(episodes: list[Episode]) -> dict[str, float]:
    """Mean `episode/return` and `episode/length` of finished episodes; empty without any."""
    if not episodes:
        return {}
    return {
        "episode/return": float(np.mean([episode.episode_return for episode in episodes])),
        "episode/length": float(np.mean([episode.length for episode in episodes])),
    }
