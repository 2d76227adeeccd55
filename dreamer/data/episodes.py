"""The nouns of datasets: `Data`, `Episode` and `Fault`. Imports no jax.

An episode has the rows of `dreamer/steps.py`: the reward and the flags arrived with the observation of their row, the
action was chosen after it, and the last row has the true last observation and an action of zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from dreamer.errors import UserError
from dreamer.spaces import Spec

FORMATS = ("minari", "hdf5", "npz", "lerobot", "run")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read what a file does not say. Formats that describe their spaces ignore `actions` and `action_range`."""

    actions: Literal["auto", "discrete", "numbers"] = "auto"
    """Kind of the actions, if the file does not say; auto: integers and exact one-hots are discrete."""
    action_range: tuple[float, float] = (-1.0, 1.0)
    """Bounds of the numbers of an action, if the file does not say."""
    missing_last: Literal["refuse", "drop"] = "refuse"
    """Episodes without their true last observation: refuse them, or leave out the last transition of each."""
    missing_reward: Literal["refuse", "zeros"] = "refuse"
    """Datasets of LeRobot without rewards: refuse them, or read zeros."""
    action_row: Literal["auto", "before", "after"] = "auto"
    """Whether an action in npz led to the observation of its row or was chosen after it; auto: find out from zeros."""

    def __post_init__(self) -> None:
        low, high = self.action_range
        if not low < high:
            raise UserError(f"action_range must be two numbers, the lower one first: {low:g} is not below {high:g}")


class Episode(NamedTuple):
    """Successive rows of one episode, most often all of them.

    name: where the rows come from, for messages | obs {k: [T, ..]} in the dtypes of the spec | action [T, A] float32
    reward [T] float32 | is_first, is_last, is_terminal [T] bool: only row 0 can be first, only row T - 1 can be last
    """

    name: str
    obs: Mapping[str, np.ndarray]
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray

    @property
    def rows(self) -> int:
        """T, the number of rows."""
        return len(self.reward)

    @property
    def whole(self) -> bool:
        """Whether the episode has its first and its last row."""
        return bool(self.is_first[0] and self.is_last[-1])

    @property
    def score(self) -> float:
        """The return: the sum of all rewards."""
        return float(self.reward.sum(dtype=np.float64))


class Fault(NamedTuple):
    """What is wrong, and where.

    where: the file or the episode | row: the row in the episode, or None | key: the array, or ""
    """

    where: str
    what: str
    row: int | None = None
    key: str = ""

    def __str__(self) -> str:
        row = f", row {self.row}" if self.row is not None else ""
        return f"{self.where}{row}{f', {self.key}' if self.key else ''}: {self.what}"


class Found(NamedTuple):
    """One episode of a dataset, or None if it cannot be read, and what is wrong with it.

    notes: facts that are not faults, such as a dtype that was converted
    """

    episode: Episode | None
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()


class Data(NamedTuple):
    """An opened dataset.

    format: one of FORMATS | path: as it was named | spec: the agent's observations and action
    episodes, rows: how many there are; None: unknown until all of it is read
    faults: what is wrong with the dataset as a whole | notes: what was inferred, left out or is worth knowing
    scan: yields everything in order with its faults; the arrays of one episode at a time are in memory
    """

    format: str
    path: str
    spec: Spec
    episodes: int | None
    rows: int | None
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    scan: Callable[[], Iterator[Found]]

    def read(self) -> Iterator[Episode]:
        """Yields the episodes in order. Raises UserError at the first fault, before its episode is yielded."""
        for fault in self.faults:
            raise UserError(f"{self.path}: {fault}")
        for found in self.scan():
            for fault in found.faults:
                raise UserError(f"{self.path}: {fault}")
            if found.episode is not None:
                yield found.episode
