"""The parts of a run that differ if several processes train together: the replay, the logger and the display."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamer.config import Config
from dreamer.runtime.log.logger import Logger, Resumed
from dreamer.runtime.log.sinks import Sink
from dreamer.runtime.log.terminal import Display
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.run.process import Kinds, Place

ADDED = ("episode/", "collect/")  # the metrics in which the processes differ


def kinds(place: Place) -> Kinds:
    """Returns what makes the parts of a process at `place`."""
    share = functools.partial(ShareOfReplay, place=place)
    if place.first:
        return Kinds(replay=share)

    def display(config: Config) -> QuietDisplay:
        return QuietDisplay(place, config.env_steps)

    def logger(*files: Any, resumed: Resumed | None, sinks: Sequence[Sink]) -> Collected:
        return Collected(resumed)

    return Kinds(display, share, logger)


class ShareOfReplay(Replay):
    """The replay of one process, which knows how many rows the other processes have.

    others, others_held: the rows that the other processes have added and hold, as of the last exchange
    everyone_ready: whether training may start in all processes, as of the last exchange
    """

    def __init__(self, *args: Any, place: Place, seed: int, **options: Any):
        """place: of this process. The other arguments are those of `Replay`."""
        super().__init__(*args, seed=seed, **options)
        if not place.first:  # each process draws other sequences
            self.rng = np.random.default_rng((seed, 2, place.index))
            self.report_rng = np.random.default_rng((seed, 3, place.index))
        self.others = self.others_held = 0
        self.everyone_ready = False

    @property
    def steps(self) -> int:
        """Returns the number of rows ever added by the environments of all processes."""
        return self.own_steps + self.others

    @property
    def own_steps(self) -> int:
        """Returns the number of rows ever added by the environments of this process."""
        return int(self.counts.sum())

    @property
    def rows(self) -> int:
        """Returns the number of rows that the rings of all processes hold."""
        return self.own_rows + self.others_held

    @property
    def own_rows(self) -> int:
        """Returns the number of rows that the rings of this process hold."""
        return int(np.minimum(self.counts, self.size.rows_per_stream).sum())

    @property
    def own_ready(self) -> bool:
        """Whether training may start as far as this process knows."""
        return super().ready(self.config.batch_size)

    def ready(self, batch_size: int) -> bool:
        """Whether training may start in all processes. batch_size: has no effect, each process knows its share."""
        return self.everyone_ready


class Collected(Logger):
    """The logger of a process other than the first: it collects metrics for process 0 and writes nothing."""

    def __init__(self, resumed: Resumed | None = None):
        """resumed: where the log of a resumed run continues; None: a new run"""
        self._clock, self._lock = time.monotonic, threading.Lock()
        self._start = self._clock()
        sums = resumed.position["sums"] if resumed else {}
        self._sums = {name: (total, count) for name, (total, count) in sums.items()}
        self._sinks = []

    def position(self) -> dict[str, Any]:
        """Returns the values that process 0 has not received yet, as JSON values for `Resumed`."""
        sums = {name: list(value) for name, value in self._sums.items()}
        return {"bytes": 0, "crc": None, "seconds": self._clock() - self._start, "sums": sums, "wandb": None}

    def write(self, env_steps: int, updates: int) -> dict[str, float]:
        """Drops the values added since the last call, because process 0 has them now, and returns {}."""
        with self._lock:
            self._sums.clear()
        return {}

    def close(self) -> None:
        """Does nothing: there are no files."""


def for_first(logger: Logger) -> dict[str, list[float]]:
    """Returns the sums {name: [total, count]} in which the processes differ, for `add_others` in process 0."""
    return {name: sums for name, sums in logger.position()["sums"].items() if name.startswith(ADDED)}


def add_others(logger: Logger, every: Iterable[Mapping[str, tuple[float, int]]]) -> None:
    """Adds the metrics of the other processes to those of process 0. every: `for_first` of each."""
    for sums in every:
        for name, (total, count) in sums.items():
            logger.add({name: total / count}, count=count)


class QuietDisplay(Display):
    """The display of a process other than the first: it prints only messages, with the number of the process."""

    def __init__(self, place: Place, env_steps: int):
        super().__init__(env_steps, every=float("inf"))
        self._place = place

    def header(self, lines: Iterable[str]) -> None:
        """Prints nothing: process 0 introduces the run."""

    def message(self, text: str) -> None:
        """Prints a line of text after the number of this process."""
        print(f"process {self._place.index}: {text}", flush=True)

    def phase(self, name: str) -> None:
        """Prints nothing: process 0 shows the phase."""

    def update(self, env_steps: int, updates: int, metrics: Mapping[str, float] | None = None) -> None:
        """Prints nothing: process 0 shows the progress."""

    def end(self, phase: str, lines: Iterable[str]) -> None:
        """Prints nothing: process 0 ends the display."""

    def close(self) -> None:
        """Does nothing."""

    def _open_live(self):
        return None, None
