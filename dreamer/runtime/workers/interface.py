"""The interface of workers: their Config, their methods, and the records that these methods exchange.

This module imports no jax.
"""

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
    """Where environments run: inline in the main process, in worker processes, or in actors of a Ray cluster (extra
    `distributed`); auto measures a step to choose inline or processes."""
    envs: Annotated[int, at_least(1)] = 16
    """Number of environments. Each can have several agents."""
    processes: Annotated[int, at_least(0), MAY_CHANGE, SAME_GROUP] = 0
    """Number of worker processes or Ray actors, at most one per environment; 0 = one per environment."""
    address: Annotated[str, MAY_CHANGE, SAME_GROUP] = ""
    """Address of the Ray cluster to join. '' tries RAY_ADDRESS, then a cluster running on this machine, then starts
    one."""
    min_ready: Annotated[int, at_least(0), MAY_CHANGE] = 0
    """Number of environments that must be ready before the policy acts; 0 = half of them. `lockstep` waits for all."""
    max_wait: Annotated[float, at_least(0), MAY_CHANGE] = 0.005
    """Longest wait, in seconds, for `min_ready` environments. After it, one ready environment is enough."""
    timeout: Annotated[float, at_least(0), MAY_CHANGE, SAME_GROUP] = 60.0
    """Seconds after which an environment that has not answered an action is replaced; 0 = never. No effect inline."""
    restarts: Annotated[int, at_least(0), MAY_CHANGE, SAME_GROUP] = 3
    """How many times in a row a failing environment is replaced before the run ends; 0 = the first failure ends it."""


class Ready(NamedTuple):
    """R rows that need an action, copied from the workers. The actions in `step` are zero.

    streams [R] int64, ascending: the stream of each row. Agent a of environment e has the stream e * agents + a, so
    with one agent the stream is the environment's number.
    """

    streams: np.ndarray
    step: Step


Kind = Literal["raised", "exited", "killed", "hung", "broke its space", "not closed"]


class Incident(NamedTuple):
    """A failure of one environment, or of several at once. Failed environments are replaced, see `Workers`.

    envs: the numbers of the environments | kind: the kind of failure | text: one line that names the cause
    trace: the worker's traceback; "": there is none
    The kind "not closed" means that an environment did not close in time. It is not replaced.
    """

    envs: tuple[int, ...]
    kind: Kind
    text: str
    trace: str

    @property
    def line(self) -> str:
        """Returns the message for the user, on one line."""
        return self.text if self.kind == "not closed" else f"environment restarted: {self.text}"


class WorkersState(NamedTuple):
    """The arguments of `Workers.restore`: everything it needs to continue the environments.

    states: the state of each environment, or the reason (str) why it could not be saved
    ready: the rows that `receive` has not returned yet; every environment with a state has rows here
    resets [E] int64: how often each environment was replaced, which determines the seed of its next replacement
    """

    states: Sequence[bytes | str]
    ready: Ready
    resets: np.ndarray


class Workers(Protocol):
    """A set of E environments that take actions and return rows. Each environment runs at its own speed.

    The first row of an environment comes from its reset and needs no action. After a row with is_last, the environment
    ignores its action, and its next row is a reset row. With several agents, an environment returns one row for each
    agent still playing, and expects all their actions at once. An agent has no more rows after its row with is_last
    until the next game starts. `streams` = E * spec.agents. A failed environment is replaced by a new one with a new
    seed, whose next row is a reset row; `incidents` reports the failure. The methods raise UserError if an environment
    fails too often, or before its first row. `close` ends all environments and may be called twice. If the close() of
    an environment hangs, the environment is abandoned or killed, and `incidents` reports this too.
    """

    spec: Spec
    envs: int
    streams: int
    backend: str  # inline, processes, ray, or jax (fused/workers.py)
    folder: str  # the current folder when the set was made

    def receive(self, min_ready: int | None = None, max_wait: float = 0.0) -> Ready:
        """Returns all rows that are ready.

        min_ready None: waits for all E environments and ignores `max_wait`. Raises RuntimeError if an environment still
        waits for its action.
        min_ready n: waits until n environments are ready, or all that do not wait for an action. After `max_wait`
        seconds, one ready environment is enough. Raises RuntimeError if all environments wait for an action.
        """

    def send(self, streams: np.ndarray, actions: np.ndarray) -> None:
        """Sends `actions` [R, A] float32, one for the last received row of each of the `streams` [R].

        Raises RuntimeError if no row of a stream was received since its last action, or if only some agents of an
        environment get an action: all its agents with a row must get their actions in the same call.
        """

    def incidents(self) -> list[Incident]:
        """Returns the incidents since the last call of this method."""

    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """Returns the environments' own metrics, {stream: {name: value}}.

        They belong to the episodes that end in the last received rows; other streams are left out. The names are those
        in the log, see the module `own_numbers`.
        """

    def seed(self, number: int) -> int:
        """Returns the seed of the current copy of environment `number`; each replacement has a new seed."""

    def render(self, number: int) -> np.ndarray | str | None:
        """Returns an image uint8 [H, W, 3], None if the environment does not render, or the reason (str) for a failure.

        Environment `number` must be waiting for an action. It is replaced if it hangs while rendering, which does not
        count towards the limit `Config.restarts`.
        """

    def restart(self, number: int) -> None:
        """Replaces environment `number` by a new one with a new seed.

        The environment must be waiting for an action. The new one ignores this action; its next rows are reset rows.
        """

    def describe(self) -> str:
        """Returns one line of text that says where the environments run, and why."""

    def states(self) -> WorkersState:
        """Waits for all environments and returns their states. Raises RuntimeError if one waits for an action.

        An environment waits for an action if its rows were received and no action was sent since.
        """

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Restores the fields of a WorkersState in new workers. `receive` then returns the rows in `ready` first.

        Returns {number: reason} for environments that could not be restored. They start a new episode with a new seed.
        Raises RuntimeError if rows were received before, and ValueError if the number of environments differs.
        """

    def shorten_timeouts(self) -> None:
        """Shortens all timeouts to a few seconds, for the end of a run. Callable from any thread; no effect inline."""

    def close(self) -> None: ...
    def __enter__(self) -> Workers: ...
    def __exit__(self, *error: Any) -> None: ...


class WorkerPlan(NamedTuple):
    """The environments of a set: `envs` copies of one environment. Copy number i starts with the seed `seed + i`.

    folder: the working directory in which every environment is made, even if another environment has changed it;
    "": the working directory is not changed back
    first, total: of a set that several processes share, the number of the first copy in this process, and the number of
    all copies; total 0: all copies are in this process
    """

    env_name: EnvName
    options: dict[str, Any]
    action_repeat: int
    seed: int
    render_mode: str | None
    envs: int
    folder: str = ""
    first: int = 0
    total: int = 0

    def named(self, number: int) -> str:
        """Returns the name of environment `number` for messages."""
        return f"{self.env_name} #{self.first + number}"

    def seed_of(self, number: int, resets: int) -> int:
        """Returns the seed of environment `number` after it was replaced `resets` times. No two have the same seed."""
        return self.seed + (self.total or self.envs) * resets + self.first + number
