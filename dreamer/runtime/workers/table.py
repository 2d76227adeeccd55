"""The rows of each environment, one per agent, and the environment's phase. Imports no jax.

An agent that has ended before the others is out of the game and has no row. The reward in its slot is then ABSENT, a
value that no real row has. Such a slot is never returned to a caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.env.own_numbers import named
from dreamer.runtime.env.parallel import ABSENT
from dreamer.runtime.workers.interface import Ready
from dreamer.steps import Step

BUSY, READY, TAKEN = 0, 1, 2  # stepping | its rows are ready to receive | its rows wait for actions


class Table:
    """Owns one row for each of S streams, and the `phase` [E] of each of E environments.

    rows: a Step of S rows. Environments write everything except `action`, which holds the actions sent to them. The
    `agents` rows of an environment are contiguous, and are received and answered together.
    """

    def __init__(self, rows: Step, agents: int = 1):
        self.rows, self.agents = rows, agents
        self.streams = len(rows.reward)
        self.envs = self.streams // agents
        self.phase = np.full(self.envs, BUSY, np.uint8)
        self.finished: dict[int, dict[str, float]] = {}  # own metrics of ended episodes by stream, see `note`
        self._noted: dict[int, dict[str, float]] = {}
        self._everyone = np.arange(self.streams)
        self._numbers = self._everyone.tobytes()
        self._held = np.zeros(self.streams, bool)  # received and not answered yet

    def all_in(self, phase: int) -> bool:
        """Whether all environments are in this phase. Comparing bytes is ten times as fast as comparing arrays."""
        return self.phase.tobytes().count(phase) == self.envs

    def wanted(self, min_ready: int | None) -> int:
        """Returns how many environments must be ready before `receive` returns. min_ready: as in `Workers.receive`.

        Raises RuntimeError if all environments wait for actions; with `min_ready` None, if any environment does.
        """
        taken = self.phase.tobytes().count(TAKEN)
        if taken and (min_ready is None or taken == self.envs):
            raise RuntimeError("receive() was called twice without send(): environments wait for an action")
        return self.envs if min_ready is None else max(1, min(min_ready, self.envs - taken))

    def take(self) -> Ready:
        """Returns copies of the R ready rows, which then wait for actions. Sets `finished` to their metrics."""
        ready = self.peek()
        self.finished = {}
        if self._noted:
            own = [stream for stream in ready.streams.tolist() if stream in self._noted]
            self.finished = {stream: self._noted.pop(stream) for stream in own}
        if len(ready.streams) == self.streams:
            self.phase.fill(TAKEN)
        else:
            self.phase[self.phase == READY] = TAKEN
        if self.agents > 1:
            self._held[ready.streams] = True
        return ready

    def note(self, env: int, finished: Mapping[int, Mapping[str, float]], name: str) -> None:
        """Stores the metrics of episodes that end in the rows of environment `env`, until `take` returns these rows.

        finished {agent: {name: value}}: the environment's own metrics | name: the environment's name in messages
        Raises UserError for a metric whose name cannot be logged.
        """
        for agent, numbers in finished.items():
            self._noted[env * self.agents + agent] = named(numbers, name)

    def peek(self) -> Ready:
        """Returns copies of the R ready rows, which stay ready."""
        rows = self.rows
        # A single agent always has a row.
        if self.all_in(READY) and (self.agents == 1 or self._there().all()):
            obs = {key: array.copy() for key, array in rows.obs.items()}
            fields = (array.copy() for array in (rows.reward, rows.is_first, rows.is_last, rows.is_terminal))
            return Ready(self._everyone.copy(), Step(obs, np.zeros(rows.action.shape, np.float32), *fields))
        there = self.phase == READY if self.agents == 1 else self._there() & (self.phase == READY).repeat(self.agents)
        streams = np.flatnonzero(there)
        obs = {key: array.take(streams, 0) for key, array in rows.obs.items()}
        action = np.zeros((len(streams), rows.action.shape[1]), np.float32)
        fields = (array.take(streams) for array in (rows.reward, rows.is_first, rows.is_last, rows.is_terminal))
        return Ready(streams, Step(obs, action, *fields))

    def answer(self, streams: np.ndarray, actions: np.ndarray) -> list[int]:
        """Stores the actions [R, A] of `streams` [R]. Returns the numbers of the environments with these streams.

        Raises RuntimeError if an environment does not wait for actions, or waits for more or fewer actions; ValueError
        for a wrong shape; UserError for actions that are not finite.
        """
        streams = np.asarray(streams, np.int64)
        actions = np.asarray(actions, np.float32)
        expected = (len(streams), self.rows.action.shape[1])
        if actions.shape != expected:
            raise ValueError(f"actions are {list(actions.shape)}, they must be {list(expected)}")
        if np.count_nonzero(np.isfinite(actions)) != actions.size:  # faster than all() for so few numbers
            raise UserError("the agent's action is not finite: its parameters have diverged")
        if streams.tobytes() == self._numbers and self.all_in(TAKEN):
            self.rows.action[:] = actions
            self.phase.fill(BUSY)
            self._held.fill(False)
            return list(range(self.envs))
        envs = streams if self.agents == 1 else np.unique(streams // self.agents)
        numbers: list[int] = envs.tolist()
        if np.count_nonzero(self.phase[envs] == TAKEN) < len(numbers) or len(set(numbers)) < len(numbers):
            raise RuntimeError("send() was called twice without receive(): an environment has no row to answer")
        if self.agents > 1:
            self._release(streams, envs)
        self.rows.action[streams] = actions
        self.phase[envs] = BUSY
        return numbers

    def rows_of(self, env: int) -> slice:
        """Returns the slice of `rows` that belongs to an environment."""
        return slice(env * self.agents, (env + 1) * self.agents)

    def write(self, env: int, step: Step) -> None:
        """Stores the rows of an environment, one per agent, and marks the environment as ready."""
        where = self.rows_of(env)
        for key, array in self.rows.obs.items():
            array[where] = step.obs[key]
        for name in ("reward", "is_first", "is_last", "is_terminal"):
            getattr(self.rows, name)[where] = getattr(step, name)
        self.phase[env] = READY

    def put(self, envs: Sequence[int], ready: Ready) -> None:
        """Takes the rows of the environments `envs` from `ready`, and marks these environments as ready.

        An agent without a row in `ready` is out of the game.
        """
        envs = list(envs)
        chosen = np.isin(ready.streams // self.agents, envs)
        streams = ready.streams[chosen]
        for key, array in self.rows.obs.items():
            array[streams] = ready.step.obs[key][chosen]
        for env in envs:
            self.rows.reward[self.rows_of(env)] = ABSENT
        for name in ("reward", "is_first", "is_last", "is_terminal"):
            getattr(self.rows, name)[streams] = getattr(ready.step, name)[chosen]
        self.phase[envs] = READY

    def _there(self) -> np.ndarray:
        """Returns bool [S]: which streams have a row. The phase of their environments does not matter."""
        return ~np.isnan(self.rows.reward)

    def _release(self, streams: np.ndarray, envs: np.ndarray) -> None:
        """Marks the rows of `streams` as answered.

        Raises RuntimeError unless these are all unanswered rows of `envs`, each once.
        """
        held = np.flatnonzero(self._held & np.isin(self._everyone // self.agents, envs))
        if not np.array_equal(np.sort(streams), held):
            raise RuntimeError("send() must answer all agents of an environment together, and each once")
        self._held[streams] = False


def check_fresh(received: bool, states: Sequence[bytes | str], ready: Ready, envs: int, agents: int) -> None:
    """Checks whether workers with `envs` environments can restore `states` and `ready`, see `WorkersState`.

    received: whether the workers have returned rows already; raises RuntimeError if they have
    Raises ValueError for another number of states, or if `ready` has no row of an environment with a state.
    """
    if received:
        raise RuntimeError("restore() needs new workers, but rows of these were received")
    if len(states) != envs:
        raise ValueError(f"the snapshot has {len(states)} environments, not {envs}")
    with_rows = set((ready.streams // agents).tolist())
    rowless = {number for number, state in enumerate(states) if isinstance(state, bytes)} - with_rows
    if rowless:
        raise ValueError(f"the snapshot has a state but no row for the environments {sorted(rowless)}")
