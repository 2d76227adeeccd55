"""Collects the metrics of a run, and writes their means to the sinks: files and services such as TensorBoard.

This module imports no jax.

The x-axis is env_steps in every sink. A line of metrics.jsonl is one strict JSON object:

    {"env_steps": 4096, "updates": 128, "time": 12.5, "loss/dyn": 1.7, "loss/rep": null, "nonfinite": ["loss/rep"]}

JSON has no nan and no inf. Such a value is written as null, and its name is added to the list `nonfinite`. A line
without such values has no `nonfinite`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from dreamer.fields import at_least
from dreamer.runtime.files.run_dir import METRICS
from dreamer.runtime.log.sinks import Guarded, JsonLines, Sink, TensorBoard
from dreamer.runtime.log.wandb_runs import WeightsAndBiases

RESERVED = ("env_steps", "updates", "time", "nonfinite")


@dataclasses.dataclass(frozen=True)
class Config:
    """How often metrics are logged, and to which sinks."""

    every: Annotated[float, at_least(0)] = 10.0
    """Seconds between two writes of the metrics."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run directory."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: off, offline (no account, no network), or online (needs a login)."""
    wandb_project: str = "dreamer"
    """Name of the Weights & Biases project."""
    wandb_name: str = ""
    """Name of the run in Weights & Biases; empty: the name of the run directory. Members of a population and trials of
    a sweep append their own names."""
    wandb_group: str = ""
    """Group of the run in Weights & Biases, for example one group for all seeds of an experiment; empty: none, but the
    name of its directory for a population or a sweep."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run in Weights & Biases."""


class Resumed(NamedTuple):
    """Where the log of a resumed run continues. The caller has already cut metrics.jsonl there.

    position: what `Logger.position()` returned at the checkpoint | env_steps: the env_steps of the restored replay
    later: whether the run keeps the rows collected after the checkpoint, and so the lines of metrics.jsonl about them
    seconds: the `time` in the last of these lines; 0 if there are none
    rewound: whether the user asked for a checkpoint before the newest one, so that the run is another one from there
    """

    position: Mapping[str, Any]
    env_steps: int
    later: bool
    seconds: float = 0.0
    rewound: bool = False


class Logger:
    """Collects the metrics of one run between writes, and owns the files that they are written to.

    Call add({"loss/dyn": 1.7}) often, and write(env_steps, updates) now and then. Use as a context manager, or call
    close(). All methods that write raise UserError if the disk is full; all earlier lines stay whole.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        run_config: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        resumed: Resumed | None = None,
        sinks: Sequence[Sink] = (),
    ):
        """run_config: the settings of the run, which TensorBoard and Weights & Biases show as hyperparameters.

        resumed: where a resumed run continues; None: a new run
        sinks: additional sinks of the caller, which `close` leaves open

        Raises UserError if a sink cannot be opened.
        """
        self._clock = clock
        position = resumed.position if resumed else {}
        seconds = position.get("seconds", 0.0)
        self._sums: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()  # guards the sums: collector and learner add to them
        if resumed:
            seconds = max(seconds, resumed.seconds)
            # The later lines already contain the sums since the checkpoint.
            self._sums = {} if resumed.later else {name: (total, n) for name, (total, n) in position["sums"].items()}
        self._start = clock() - seconds
        with contextlib.ExitStack() as opened:
            self._lines = JsonLines(Path(run_dir) / METRICS)
            opened.callback(self._lines.close)
            self._sinks: list[Sink] = []
            if config.tensorboard:
                board = TensorBoard(Path(run_dir), resumed.env_steps + 1 if resumed else None)
                self._sinks.append(board)
                opened.callback(board.close)
                board.hyperparameters(run_config or {})
            self._wandb_id: str | None = position.get("wandb")
            if config.wandb != "off":
                rewound = resumed is not None and resumed.rewound
                wandb = WeightsAndBiases(Path(run_dir), config, run_config or {}, self._wandb_id, anew=rewound)
                self._sinks.append(wandb)
                self._wandb_id = wandb.run_id
                opened.callback(wandb.close)
            self._sinks += map(Guarded, sinks)
            self._opened = opened.pop_all()

    def position(self) -> dict[str, Any]:
        """Returns the positions of the sinks and the values that are not yet written, as JSON values for `Resumed`."""
        seconds = self._clock() - self._start
        sums = {name: list(value) for name, value in self._sums.items()}
        nbytes, crc = self._lines.position()
        return {"bytes": nbytes, "crc": crc, "seconds": seconds, "sums": sums, "wandb": self._wandb_id}

    def add(self, values: Mapping[str, Any], latest: bool = False, count: int = 1) -> None:
        """Adds values by name. The next `write` logs the mean of the values added under each name.

        values: numbers or arrays of one element; the call waits for jax arrays. One nan makes the mean nan.
        count: each value is the mean of this many values
        latest: whether each value replaces the earlier values of its name, instead of being averaged with them.
        Raises ValueError for the names env_steps, updates, time and nonfinite.
        """
        for name, value in values.items():
            if name in RESERVED:
                raise ValueError(f"a metric cannot be named {name!r}: metrics.jsonl uses that name itself")
            number = float(np.asarray(value).reshape(()))
            with self._lock:
                total, before = (0.0, 0) if latest else self._sums.get(name, (0.0, 0))
                self._sums[name] = (total + count * number, before + count)

    def write(self, env_steps: int, updates: int) -> dict[str, float]:
        """Writes the means of the values added since the last write to every sink, and returns {name: mean}.

        Writes nothing and returns {} if no values were added.
        """
        with self._lock:
            values = {name: total / count for name, (total, count) in sorted(self._sums.items())}
            self._sums.clear()
        if values:
            seconds = round(self._clock() - self._start, 3)
            self._lines.write({"env_steps": int(env_steps), "updates": int(updates), "time": seconds}, values)
            for sink in self._sinks:
                sink.scalars(int(env_steps), values)
        return values

    def image(self, env_steps: int, name: str, image: np.ndarray) -> None:
        """Shows image [H, W, 3] uint8 under `name` in the sinks that can show images."""
        for sink in self._sinks:
            sink.image(int(env_steps), name, image)

    def video(self, env_steps: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Shows frames [T, H, W, 3] uint8 as a GIF under `name`, in the sinks that can show videos."""
        for sink in self._sinks:
            sink.video(int(env_steps), name, frames, fps)

    def close(self) -> None:
        """Closes all sinks except those of the caller. May be called again."""
        self._opened.close()

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


