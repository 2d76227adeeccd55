"""What the rest of the framework knows of workers: the Config, the face of a set, and what goes over it. No jax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np

from dreamer.fields import MAY_CHANGE, SAME_GROUP, at_least
from dreamer.plugins import EnvName
from dreamer.spaces import Spec
from dreamer.steps import Step


@dataclasses.dataclass(frozen=True)
class Config:
    """How many environments run, where, and what happens when one fails."""

    backend: Annotated[Literal["auto", "inline", "processes", "ray"], MAY_CHANGE, SAME_GROUP] = "auto"
    """Where environments run: inline in the main process, in worker processes, in actors of a Ray cluster (extra
    `distributed`), or inline or in processes as a measurement says."""
    envs: Annotated[int, at_least(1)] = 16
    """Number of environments, however many agents each has."""
    processes: Annotated[int, at_least(0), MAY_CHANGE, SAME_GROUP] = 0
    """Number of worker processes or Ray actors; 0 is one per environment. Never more than there are environments."""
    address: Annotated[str, MAY_CHANGE, SAME_GROUP] = ""
    """Of the Ray cluster to join; '' = RAY_ADDRESS, else the one that runs on this machine, else it is started here."""
    least: Annotated[int, at_least(0), MAY_CHANGE] = 0
    """Environments that must be ready before the policy is asked; 0 = half of them. All of them with `lockstep`."""
    patience: Annotated[float, at_least(0), MAY_CHANGE] = 0.005
    """Seconds after which fewer ready environments will do."""
    timeout: Annotated[float, at_least(0), MAY_CHANGE, SAME_GROUP] = 60.0
    """Seconds after which an environment that has not answered an action is replaced; 0 = never. Not inline."""
    restarts: Annotated[int, at_least(0), MAY_CHANGE, SAME_GROUP] = 3
    """How often in a row an environment that fails is made anew, before the run ends; 0 = it ends at once."""


class Ready(NamedTuple):
    """Rows that are there: step: Step of R rows, which owns its memory, actions zero.

    envs [R] int64, ascending: of which stream each is, which is the number of its environment where that has one
    agent; agent a of environment e is stream e * agents + a
    """

    envs: np.ndarray
    step: Step


Kind = Literal["raised", "exited", "killed", "hung", "broke its space", "not closed"]


class Incident(NamedTuple):
    """Environments that failed in one go and were made anew.

    envs: their numbers | kind: how | text: one line that names the cause | trace: of the worker, "" if there is none
    One that was "not closed" in time is not replaced: nobody needs it any more.
    """

    envs: tuple[int, ...]
    kind: Kind
    text: str
    trace: str

    @property
    def line(self) -> str:
        """The line for the user."""
        return self.text if self.kind == "not closed" else f"environment made anew: {self.text}"


class WorkersState(NamedTuple):
    """All that `Workers.restore` takes.

    states: of each environment, or why it cannot give any
    ready: the rows that nobody has received yet, of all that have a state
    resets [E] int64: how often each environment was made anew, so that the next seed is one never used before
    """

    states: Sequence[bytes | str]
    ready: Ready
    resets: np.ndarray


class Workers(Protocol):
    """A set of E environments; a row of each comes out, an action for each goes in, in whatever order they are done.

    The first row of an environment needs no action: it is that of its reset. The action after a row that is_last is
    ignored, its answer is a reset row. Of several agents in one environment the rows come together, and go on
    together: one of each that is in the game, so that of an agent whose row is_last the next comes with the next
    game. `streams` = E * spec.agents. A failed environment is made anew with a fresh seed and gives a reset row
    next, `incidents` tells; UserError when that happens too often, or before an environment's very first row.
    close() ends everything; it may be called twice. An environment whose close() hangs is left behind or killed, which
    `incidents` tells too.
    """

    spec: Spec
    envs: int
    streams: int
    backend: str  # inline, processes or ray
    folder: str  # the current folder when the set was made

    def receive(self, least: int | None = None, patience: float = 0.0) -> Ready:
        """Rows of all E environments (`least` None), else all that are there as soon as those of `least` are.

        After `patience` seconds fewer will do, but never none. RuntimeError when no action was sent to so many.
        """

    def send(self, envs: np.ndarray, actions: np.ndarray) -> None:
        """Answers the rows of streams `envs` [R] with `actions` [R, A] float32.

        RuntimeError for one that was not received since its last action, or for some agents of an environment only.
        """

    def incidents(self) -> list[Incident]:
        """What happened since the last call."""

    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """The environments' own numbers of the episodes that the rows received last have ended, by stream.

        By name as they are logged, see `own_numbers`. A stream that has none is missing.
        """

    def seed(self, number: int) -> int:
        """The seed of an environment as it is now; its replacement has another."""

    def render(self, number: int) -> np.ndarray | str | None:
        """A picture uint8 [H, W, 3] of an environment whose rows were received; None when it does not draw itself.

        Why not, in one line, when it fails. One that hangs is replaced without counting against workers.restarts.
        """

    def restart(self, number: int) -> None:
        """Makes an environment whose rows were received anew with a fresh seed; its next rows are of a reset."""

    def describe(self) -> str:
        """One line: where the environments run, and why."""

    def states(self) -> WorkersState:
        """Waits for all environments and gives where they are. RuntimeError when a received row is not answered."""

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Puts a WorkersState into fresh workers: the next rows are those of `ready`.

        Gives those that could not be restored, {number: why}: they begin a new episode with a fresh seed.
        RuntimeError when rows were received before, ValueError when it is of another number of environments.
        """

    def hurry(self) -> None:
        """The run is to end: whoever has not answered in seconds counts as hung. From any thread, not inline."""

    def close(self) -> None: ...
    def __enter__(self) -> Workers: ...
    def __exit__(self, *error: Any) -> None: ...


class WorkerPlan(NamedTuple):
    """Which environments a set runs: `envs` copies; number i starts with the seed seed + i.

    folder: the current one when the set was made. Every environment is made there, wherever another has gone since.
    """

    env_name: EnvName
    options: dict[str, Any]
    action_repeat: int
    seed: int
    render_mode: str | None
    envs: int
    folder: str = ""

    def named(self, number: int) -> str:
        """The name of one environment in messages."""
        return f"{self.env_name} #{number}"
