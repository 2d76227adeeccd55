"""The interface of workers: the Config, the methods of a set, and the records they exchange. No jax."""

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
    `distributed`), or auto: inline or in processes, chosen by a measurement."""
    envs: Annotated[int, at_least(1)] = 16
    """Number of environments, however many agents each has."""
    processes: Annotated[int, at_least(0), MAY_CHANGE, SAME_GROUP] = 0
    """Number of worker processes or Ray actors; 0 is one per environment. Never more than there are environments."""
    address: Annotated[str, MAY_CHANGE, SAME_GROUP] = ""
    """Address of the Ray cluster to join. '' tries RAY_ADDRESS, then a cluster running on this machine, then starts
    one."""
    min_ready: Annotated[int, at_least(0), MAY_CHANGE] = 0
    """Environments that must be ready before the policy acts; 0 = half of them. All of them with `lockstep`."""
    max_wait: Annotated[float, at_least(0), MAY_CHANGE] = 0.005
    """Longest wait, in seconds, for `min_ready` environments; after it, any ready one is enough."""
    timeout: Annotated[float, at_least(0), MAY_CHANGE, SAME_GROUP] = 60.0
    """Seconds after which an environment that has not answered an action is replaced; 0 = never. Not inline."""
    restarts: Annotated[int, at_least(0), MAY_CHANGE, SAME_GROUP] = 3
    """How many times in a row a failing environment is replaced before the run ends; 0 = the first failure ends it."""


class Ready(NamedTuple):
    """Rows ready for an action. step: a copy of R rows, their actions zero.

    streams [R] int64, ascending: the stream of each row; agent a of environment e is stream e * agents + a, so with one
    agent the stream is the environment's number
    """

    streams: np.ndarray
    step: Step


Kind = Literal["raised", "exited", "killed", "hung", "broke its space", "not closed"]


class Incident(NamedTuple):
    """Environments that failed together and were replaced.

    envs: their numbers | kind: of failure | text: one line that names the cause | trace: the worker's traceback or ""
    An environment "not closed" in time is not replaced: it is no longer needed.
    """

    envs: tuple[int, ...]
    kind: Kind
    text: str
    trace: str

    @property
    def line(self) -> str:
        """The line for the user."""
        return self.text if self.kind == "not closed" else f"environment restarted: {self.text}"


class WorkersState(NamedTuple):
    """All that `Workers.restore` needs.

    states: of each environment its state, or the reason why it has none
    ready: the rows not received yet, of all environments that have a state
    resets [E] int64: how often each environment was replaced, so that the next seed is one never used before
    """

    states: Sequence[bytes | str]
    ready: Ready
    resets: np.ndarray


class Workers(Protocol):
    """A set of E environments that return rows and take actions, in the order in which they finish their steps.

    The first row of an environment needs no action: its reset returns it. The action after a row that is_last is
    ignored, its answer is a reset row. With several agents, an environment returns one row for each agent still
    playing, and expects all their actions at once. An agent whose row is_last has no row again until the next game
    begins. `streams` = E * spec.agents. A failed environment is replaced by one with a fresh seed, whose next row is a
    reset row; `incidents` reports it. UserError when that happens too often, or before an environment's first row.
    close() ends everything; it may be called twice. An environment whose close() hangs is abandoned or killed, which
    `incidents` reports too.
    """

    spec: Spec
    envs: int
    streams: int
    backend: str  # inline, processes or ray
    folder: str  # the current folder when the set was made

    def receive(self, min_ready: int | None = None, max_wait: float = 0.0) -> Ready:
        """Rows of all E environments if `min_ready` is None, else all ready rows once `min_ready` of them are ready.

        After `max_wait` seconds any ready environment is enough. If fewer than `min_ready` were sent an action, waits
        for those. RuntimeError when no environment was, or with `min_ready` None when any was not.
        """

    def send(self, streams: np.ndarray, actions: np.ndarray) -> None:
        """Answers the rows of `streams` [R] with `actions` [R, A] float32.

        RuntimeError for a stream not received since its last action, or if an environment's other agents are missing.
        """

    def incidents(self) -> list[Incident]:
        """The incidents since the last call."""

    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """The environments' own numbers of the episodes that the rows received last have ended, by stream.

        Named as they are logged, see `own_numbers`. A stream without any is missing.
        """

    def seed(self, number: int) -> int:
        """The seed of an environment as it is now; its replacement has another."""

    def render(self, number: int) -> np.ndarray | str | None:
        """An image uint8 [H, W, 3] of an environment whose rows were received; None if it does not draw itself.

        One line with the reason if it fails. If it hangs, it is replaced without counting against workers.restarts.
        """

    def restart(self, number: int) -> None:
        """Replaces an environment whose rows were received by one with a fresh seed; its next rows are reset rows."""

    def describe(self) -> str:
        """One line: where the environments run, and why."""

    def states(self) -> WorkersState:
        """Waits for all environments and returns their states. RuntimeError when a received row is not answered."""

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Puts a WorkersState into fresh workers: the next rows are those of `ready`.

        Returns {number: reason} of environments that could not be restored: they begin a new episode with a fresh
        seed. RuntimeError when rows were received before, ValueError when the number of environments differs.
        """

    def shorten_timeouts(self) -> None:
        """Shortens all timeouts to a few seconds, as the run is ending. Callable from any thread; no effect inline."""

    def close(self) -> None: ...
    def __enter__(self) -> Workers: ...
    def __exit__(self, *error: Any) -> None: ...


class WorkerPlan(NamedTuple):
    """The environments of a set: `envs` copies; number i starts with the seed seed + i.

    folder: the current folder when the set was made. Every environment is made there, even if another has left it.
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
