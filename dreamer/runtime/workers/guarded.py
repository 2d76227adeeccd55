"""One environment of a set, whose errors are returned as Incidents. Imports no jax."""

from __future__ import annotations

import threading

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.env.parallel import ParallelRows
from dreamer.runtime.env.rows import EnvRows, empty_step
from dreamer.runtime.workers.faults import close_quietly, differs, incident_of, make_rows, picture_of
from dreamer.runtime.workers.interface import Incident, WorkerPlan
from dreamer.spaces import Spec
from dreamer.steps import Step

FAILED = "it has failed and has not been restarted yet"
_making = threading.Lock()  # imports and the registries of environments are not thread-safe


class Guarded:
    """Owns environment `number` of a plan; `make` makes it. spec: the Spec that it must have; None: any."""

    def __init__(self, plan: WorkerPlan, number: int, spec: Spec | None = None):
        self._plan, self._number, self._spec = plan, number, spec
        self._rows: EnvRows | ParallelRows | None = None

    @property
    def spec(self) -> Spec | None:
        """Returns the Spec of the environment, or None if it has not been made yet or has failed."""
        return self._rows.spec if self._rows else None

    def make(self, seed: int) -> Spec | Incident:
        """Makes the environment, or replaces it by a new one. Returns its Spec, or an Incident if it fails."""
        self.close()
        try:
            with _making:
                self._rows = make_rows(self._plan, self._number, seed)
            self._spec = self._spec or self._rows.spec
            if self._rows.spec != self._spec:
                raise UserError(differs(self._rows.name, self._rows.spec, self._spec))
        except BaseException as error:
            return self._failed(error, making=True)
        return self._spec

    def turn(self, out: Step, index: int) -> Incident | None:
        """Steps with the actions in the environment's rows of `out` [E * agents, ..], and writes the answers there.

        index: which of the E environments in `out` this is. Returns an Incident if the environment fails.
        """
        assert self._rows is not None
        try:
            self._rows.turn(out, index)
        except BaseException as error:
            return self._failed(error)
        return None

    def finished(self) -> dict[int, dict[str, float]]:
        """Returns {agent: {name: value}}: the environment's own metrics of episodes that end in its last rows."""
        return self._rows.finished() if self._rows else {}

    def render(self) -> np.ndarray | str | None:
        """Returns an image uint8 [H, W, 3], None if it does not render, or the reason (str) for a failure."""
        return picture_of(self._rows) if self._rows else FAILED

    def step(self, actions: np.ndarray) -> tuple[Step, dict[int, dict[str, float]]] | Incident:
        """Steps with `actions` [W, A], one per agent. Returns a new Step of W rows, and the result of `finished()`.

        Returns an Incident if the environment fails.
        """
        assert self._rows is not None
        out = empty_step(self._rows.spec, self._rows.spec.agents)
        out.action[:] = actions
        return self.turn(out, 0) or (out, self.finished())

    def get_state(self) -> bytes | str:
        """Returns the state of the environment as bytes, or the reason (str) why it cannot be saved."""
        return self._rows.get_state() if self._rows else FAILED

    def set_state(self, state: bytes) -> tuple[str, dict[int, dict[str, float]]]:
        """Restores a state. Returns "" or the reason for a failure, and the result of `finished()`."""
        return (self._rows.set_state(state) if self._rows else FAILED), self.finished()

    def close(self) -> None:
        """Closes the environment, if there is one."""
        close_quietly(self._rows)
        self._rows = None

    def _failed(self, error: BaseException, making: bool = False) -> Incident:
        incident = incident_of(error, self._plan, self._number, making)
        self.close()
        return incident
