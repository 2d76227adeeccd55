"""Incidents of each environment, how many came in a row, and the seeds of replacements. No jax."""

from __future__ import annotations

import contextlib
import os
import traceback

import numpy as np

from dreamer import plugins
from dreamer.errors import UserError
from dreamer.runtime.env.parallel import ParallelRows, is_parallel
from dreamer.runtime.env.rows import EnvRows
from dreamer.runtime.workers.interface import Incident, Kind, Ready, WorkerPlan
from dreamer.runtime.workers.own_thread import Hung, OwnThread
from dreamer.spaces import Spec

CLOSE = 5.0  # seconds that an environment in this process gets to close
QUIET = 1000  # rows without an incident after which an environment counts as sound again


class Faults:
    """Owns the counts of incidents of a set; `resets` [E] counts how often each environment was replaced."""

    def __init__(self, plan: WorkerPlan, restarts: int):
        self._plan, self._restarts = plan, restarts
        self._log: list[Incident] = []
        self.resets = np.zeros(plan.envs, np.int64)
        self._in_a_row = np.zeros(plan.envs, np.int64)
        self._since = np.zeros(plan.envs, np.int64)
        self._proven = np.zeros(plan.envs, bool)
        self._calm = False  # all have returned a row and none has open incidents: nothing to count

    def seed(self, number: int) -> int:
        """The seed of an environment's current incarnation; unique across environments and restarts."""
        return self._plan.seed + self._plan.envs * int(self.resets[number]) + number

    def count(self, incident: Incident) -> None:
        """Records an incident. Raises UserError if there are too many, or before an environment's first row."""
        self._log.append(incident)
        envs = list(incident.envs)
        self._calm = False
        self._in_a_row[envs] += 1
        self._since[envs] = 0
        if not self._proven[envs].all():
            raise as_error(incident)
        if (self._in_a_row[envs] > self._restarts).any():
            raise as_error(incident, f" (incident {self._restarts + 1} in a row)" if self._restarts else "")
        self.resets[envs] += 1

    def forgive(self, incident: Incident) -> None:
        """Records an incident that does not count: the set replaces the environments, the run continues."""
        self._log.append(incident)
        self.resets[list(incident.envs)] += 1

    def note(self, incident: Incident) -> None:
        """Records an incident that needs no new environment."""
        self._log.append(incident)

    def delivered(self, ready: Ready, agents: int) -> None:
        """Records received rows: after a finished episode, or many rows, an environment counts as sound again."""
        if self._calm:
            return
        envs = ready.streams // agents
        self._proven[envs] = True
        self._since[envs] += 1
        sound = envs[ready.step.is_last | (self._since[envs] >= QUIET)]
        self._in_a_row[sound] = 0
        self._calm = bool(self._proven.all() and not self._in_a_row.any())

    @property
    def received(self) -> bool:
        """Whether any row was received."""
        return bool(self._proven.any())

    def restore(self, resets: np.ndarray) -> None:
        """Restores the counts [E] of an earlier set."""
        self.resets[:] = resets
        self._proven[:] = True

    def drain(self) -> list[Incident]:
        """The incidents since the last call."""
        log, self._log = self._log, []
        return log


def as_error(incident: Incident, suffix: str = "") -> UserError:
    """An incident as the error that ends a run, the worker's traceback as its note."""
    error = UserError(incident.text + suffix)
    if incident.trace:
        error.add_note(f"in the worker:\n{incident.trace}")
    return error


def make_rows(plan: WorkerPlan, number: int, seed: int) -> EnvRows | ParallelRows:
    """One environment of the set. Raises UserError when it cannot be made."""
    go_home(plan)
    env = plugins.make_env(plan.env_name, plan.options, plan.render_mode)
    kind = ParallelRows if is_parallel(env) else EnvRows
    return kind(env, name=plan.named(number), seed=seed, action_repeat=plan.action_repeat)


def go_home(plan: WorkerPlan) -> None:
    """Makes the folder of the plan the current one again, after an environment of this process has left it."""
    if plan.folder:
        with contextlib.suppress(OSError):  # the folder may not exist on another machine
            os.chdir(plan.folder)


def envs_in_words(envs: int, agents: int) -> str:
    """"5 environments", of several agents "5 environments of 3 agents"."""
    return f"{envs} environments" + (f" of {agents} agents" if agents > 1 else "")


def differs(name: str, spec: Spec, expected: Spec) -> str:
    """One line that says how an environment differs from the others of its set."""
    return f"env {name!r} shows or takes something else than the others of its set: {spec}, not {expected}"


def incident_of(error: BaseException, plan: WorkerPlan, number: int, making: bool = False) -> Incident:
    """An exception of an environment as an Incident: one line, and the traceback unless it is a plain UserError."""
    ours = isinstance(error, UserError)
    line = str(error) if ours else f"env {plan.named(number)!r} failed: {plugins.one_line(error)}"
    trace = "" if ours and error.__cause__ is None else "".join(traceback.format_exception(error))
    kind: Kind = "broke its space" if ours and not making else "raised"
    return Incident((number,), kind, line, trace)


def picture_of(rows: EnvRows | ParallelRows) -> np.ndarray | str | None:
    """An image uint8 [H, W, 3] of an environment; None if it does not draw itself; the reason (str) if it fails."""
    try:
        return rows.render()
    except KeyboardInterrupt:
        raise
    except UserError as error:
        return str(error)
    except BaseException as error:
        return plugins.one_line(error)


def close_quietly(rows: EnvRows | ParallelRows | None) -> None:
    """Closes an environment that is no longer used, and ignores its errors."""
    try:
        if rows is not None:
            rows.close()
    except KeyboardInterrupt:
        raise
    except BaseException:  # sys.exit among them
        pass


def close_in_time(
    rows: EnvRows | ParallelRows, plan: WorkerPlan, number: int, home: OwnThread | None = None
) -> Incident | None:
    """Closes an environment of this process. If that hangs, abandons it in a thread and returns an Incident.

    home: the thread in which the environment lives; None = the caller's.
    """
    if home is not None and home.inside():
        close_quietly(rows)  # the thread cannot wait for itself
        return None
    thread = home or OwnThread(f"closing {plan.named(number)}")
    try:
        thread.call(rows.close, timeout=CLOSE)
    except Hung:
        text = f"close() of env {plan.named(number)!r} has not returned for {CLOSE:g} seconds; it is left behind"
        return Incident((number,), "not closed", text, "")
    except BaseException:
        # It failed at once. An environment bound to its thread (a GL context) closes only there.
        if home is None:
            close_quietly(rows)
    finally:
        if home is None:
            thread.close()
    return None
