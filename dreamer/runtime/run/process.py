"""One process of a run: its share of the work, what it does together with the others, and the parts that differ.

Usually a run has one process, `Alone`. The others are in runtime/hosts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from dreamer.config import Config
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.log.terminal import Display
from dreamer.runtime.replay.replay import Replay

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Place:
    """The share of a process. index, count: of the processes | neighbours: how many of them are on its machine"""

    index: int
    count: int
    neighbours: int = 1

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes for all."""
        return self.index == 0

    def envs(self, envs: int) -> range:
        """Returns the numbers of the environments of this process, of `envs` in all processes."""
        each = envs // self.count
        return range(self.index * each, (self.index + 1) * each)

    def config(self, config: Config) -> Config:
        """Returns the config of this process's share of the environments, of the replay and of each batch."""
        workers, replay = config.workers, config.replay
        return dataclasses.replace(
            config, env_steps=-(-config.env_steps // self.count),
            workers=dataclasses.replace(
                workers, envs=workers.envs // self.count, processes=-(-workers.processes // self.count)
            ),
            replay=dataclasses.replace(
                replay, batch_size=replay.batch_size // self.count,
                capacity_steps=-(-replay.capacity_steps // self.count),
                capacity_gb=replay.capacity_gb / self.count, disk_gb=replay.disk_gb / self.count,
            ),
        )  # fmt: skip


class Process(Protocol):
    """This process of a run, and what it does together with the others. Each method is a collective operation."""

    @property
    def place(self) -> Place:
        """Returns the share of this process."""

    def from_first(self, value: Any) -> Any:
        """Returns the JSON value that process 0 gives."""

    def together(self, do: Callable[[], T], tell: Callable[[T], Any] = ...) -> tuple[T, list[Any]]:
        """Calls `do` in all processes. Returns its result, and in a list `tell` of each result, JSON values.

        If `do` raises an error or Stopped in one process, then all raise.
        """

    def only_first(self, do: Callable[[], object]) -> None:
        """Calls `do` in process 0, and waits for its end in all processes. Raises as `together` does."""

    def on_end(self, do: Callable[[], object]) -> None:
        """Registers `do`, which is called before this process ends because another one has failed or is gone."""


class Alone:
    """The only process of a run."""

    place = Place(0, 1)

    def from_first(self, value: Any) -> Any:
        """Returns `value`."""
        return value

    def together(self, do: Callable[[], T], tell: Callable[[T], Any] = lambda result: None) -> tuple[T, list[Any]]:
        """Calls `do`. Returns its result, and in a list `tell` of it."""
        result = do()
        return result, [tell(result)]

    def only_first(self, do: Callable[[], object]) -> None:
        """Calls `do`."""
        do()

    def on_end(self, do: Callable[[], object]) -> None:
        """Does nothing: there is no other process whose end could matter."""


ALONE = Alone()


def display_of(config: Config) -> Display:
    """Returns the display of a run, which is not open yet."""
    trains = config.replay_ratio > 0 or config.updates > 0
    return Display(config.length, every=config.log.every, trains=trains, counted=config.counted)


class Kinds(NamedTuple):
    """Makes the parts that differ between the processes of a run.

    display: from the config of the run | replay, logger: with the arguments of `Replay` and `Logger`
    """

    display: Callable[[Config], Display] = display_of
    replay: Callable[..., Replay] = Replay
    logger: Callable[..., Logger] = Logger


USUAL = Kinds()
