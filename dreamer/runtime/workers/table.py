"""The one row that each environment has, and whose turn it is: the environment's or the receiver's. No jax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.steps import Step
from dreamer.runtime.workers.seam import Ready

BUSY, READY, TAKEN = 0, 1, 2  # works on an action | its row waits to be received | its row waits for an action


class Table:
    """Owns one row for each of E environments, and in `phase` [E] where it stands.

    rows: Step of E rows; environments write all but `action`, which holds the actions sent to them.
    """

    def __init__(self, rows: Step):
        self.rows = rows
        self.envs = len(rows.reward)
        self.phase = np.full(self.envs, BUSY, np.uint8)
        self._everyone = np.arange(self.envs)
        self._numbers = self._everyone.tobytes()

    def all_in(self, phase: int) -> bool:
        """Whether all environments are in one phase; compared as bytes, which takes a tenth of an array's time."""
        return self.phase.tobytes().count(phase) == self.envs

    def wanted(self, least: int | None) -> int:
        """How many rows a receive waits for. RuntimeError when so many cannot come."""
        taken = self.phase.tobytes().count(TAKEN)
        if taken and (least is None or taken == self.envs):
            raise RuntimeError("receive() was called twice without send(): environments wait for an action")
        return self.envs if least is None else max(1, min(least, self.envs - taken))

    def take(self) -> Ready:
        """Copies of the rows that are ready; they are the receiver's now."""
        rows = self.rows
        if self.all_in(READY):
            self.phase.fill(TAKEN)
            obs = {key: array.copy() for key, array in rows.obs.items()}
            fields = (array.copy() for array in (rows.reward, rows.is_first, rows.is_last, rows.is_terminal))
            return Ready(self._everyone.copy(), Step(obs, np.zeros(rows.action.shape, np.float32), *fields))
        envs = np.flatnonzero(self.phase == READY)
        self.phase[envs] = TAKEN
        obs = {key: array.take(envs, 0) for key, array in rows.obs.items()}
        action = np.zeros((len(envs), rows.action.shape[1]), np.float32)
        fields = (array.take(envs) for array in (rows.reward, rows.is_first, rows.is_last, rows.is_terminal))
        return Ready(envs, Step(obs, action, *fields))

    def peek(self) -> Ready:
        """Copies of all rows, which stay where they are."""
        phase = self.phase.copy()
        ready = self.take()
        self.phase[:] = phase
        return ready

    def answer(self, envs: np.ndarray, actions: np.ndarray) -> list[int]:
        """Notes the actions [R, A] of `envs` [R]; gives the numbers as a list.

        RuntimeError for an environment that does not wait for one, ValueError for a wrong shape, UserError for
        actions that are not finite.
        """
        envs = np.asarray(envs, np.int64)
        actions = np.asarray(actions, np.float32)
        expected = (len(envs), self.rows.action.shape[1])
        if actions.shape != expected:
            raise ValueError(f"actions are {list(actions.shape)}, they must be {list(expected)}")
        if np.count_nonzero(np.isfinite(actions)) != actions.size:  # all() takes longer for so few numbers
            raise UserError("the agent's action is not finite: its parameters have diverged")
        if envs.tobytes() == self._numbers and self.all_in(TAKEN):
            self.rows.action[:] = actions
            self.phase.fill(BUSY)
            return list(range(self.envs))
        numbers: list[int] = envs.tolist()
        if np.count_nonzero(self.phase[envs] == TAKEN) < len(numbers) or len(set(numbers)) < len(numbers):
            raise RuntimeError("send() was called twice without receive(): an environment has no row to answer")
        self.rows.action[envs] = actions
        self.phase[envs] = BUSY
        return numbers

    def put(self, envs: Sequence[int], ready: Ready) -> None:
        """Makes the rows that `ready` holds of `envs` ready to be received."""
        envs = list(envs)
        rows = np.searchsorted(ready.envs, envs)
        for key, array in self.rows.obs.items():
            array[envs] = ready.step.obs[key][rows]
        for name in ("reward", "is_first", "is_last", "is_terminal"):
            getattr(self.rows, name)[envs] = getattr(ready.step, name)[rows]
        self.phase[envs] = READY


def check_fresh(received: bool, states: Sequence[bytes | str], ready: Ready, envs: int) -> None:
    """RuntimeError unless nothing was received yet; ValueError unless the snapshot is of `envs` environments.

    Only an environment with a state needs its row.
    """
    if received:
        raise RuntimeError("restore() needs fresh workers, rows of these were received")
    if len(states) != envs:
        raise ValueError(f"the snapshot is of {len(states)} environments, not {envs}")
    rowless = {number for number, state in enumerate(states) if isinstance(state, bytes)} - set(ready.envs.tolist())
    if rowless:
        raise ValueError(f"the snapshot has a state but no row of the environments {sorted(rowless)}")
