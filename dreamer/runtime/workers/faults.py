"""Counts how many incidents (failures) in a row each environment has, and seeds its replacements. Imports no jax."""

from __future__ import annotations

import contextlib
import os
import traceback

import numpy as np

from dreamer import plugins
from dreamer.errors import UserError, one_line
from dreamer.runtime.env.parallel import ParallelRows, is_parallel
from dreamer.runtime.env.rows import EnvRows
from dreamer.runtime.workers.interface import Incident, Kind, Ready, WorkerPlan
from dreamer.runtime.workers.own_thread import Hung, OwnThread
from dreamer.spaces import Spec

CLOSE = 5.0  # seconds in which an environment in this process can close
QUIET = 1000  # rows without an incident after which an environment counts as healthy again


class Faults:
    """Owns the counts of incidents of a set of workers.

    restarts: how many incidents in a row an environment may have | resets [E]: how often each environment was replaced
    """

    def __init__(self, plan: WorkerPlan, restarts: int):
        self._plan, self._restarts = plan, restarts
        self._log: list[Incident] = []
        self.resets = np.zeros(plan.envs, np.int64)
        self._in_a_row = np.zeros(plan.envs, np.int64)
        self._since = np.zeros(plan.envs, np.int64)
        self._proven = np.zeros(plan.envs, bool)
        self._calm = False  # every environment has returned a row and none has incidents to count

    def seed(self, number: int) -> int:
        """Returns the seed of the current copy of environment `number`. No two copies have the same seed."""
        return self._plan.seed_of(number, int(self.resets[number]))

    def count(self, incident: Incident) -> None:
        """Records and counts an incident. Raises UserError if one of its environments must not be replaced.

        This is the case if the environment has more than `restarts` incidents in a row, or has returned no row yet.
        """
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
        """Records an incident that does not count towards the limit. Its environments are replaced."""
        self._log.append(incident)
        self.resets[list(incident.envs)] += 1

    def note(self, incident: Incident) -> None:
        """Records an incident after which no environment is replaced."""
        self._log.append(incident)

    def delivered(self, ready: Ready, agents: int) -> None:
        """Records received rows. Resets the count of an environment after a finished episode or QUIET rows."""
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
        """Restores `resets` [E] of an earlier set. Every environment then counts as one that has returned a row."""
        self.resets[:] = resets
        self._proven[:] = True

    def drain(self) -> list[Incident]:
        """Returns the incidents since the last call of this method."""
        log, self._log = self._log, []
        return log


def as_error(incident: Incident, suffix: str = "") -> UserError:
    """Converts an incident to the error that ends a run. The worker's traceback becomes a note of the error.

    suffix: text to append to the message
    """
    error = UserError(incident.text + suffix)
    if incident.trace:
        error.add_note(f"in the worker:\n{incident.trace}")
    return error


def make_rows(plan: WorkerPlan, number: int, seed: int) -> EnvRows | ParallelRows:
    """Makes environment `number` of a plan. Returns ParallelRows if it is a multi-agent environment, else EnvRows.

    Passes on errors of the environment.
    """
    restore_folder(plan)
    env = plugins.make_env(plan.env_name, plan.options, plan.render_mode)
    compile_ahead = getattr(env, "compile_ahead", None)
    if callable(compile_ahead):  # an environment in JAX: now, because workers.timeout does not count yet
        compile_ahead()
    kind = ParallelRows if is_parallel(env) else EnvRows
    return kind(env, name=plan.named(number), seed=seed, action_repeat=plan.action_repeat)


def restore_folder(plan: WorkerPlan) -> None:
    """Changes the working directory back to that of the plan, in case an environment has changed it."""
    if plan.folder:
        with contextlib.suppress(OSError):  # the folder may not exist on another machine
            os.chdir(plan.folder)


def envs_in_words(envs: int, agents: int) -> str:
    """Returns "5 environments", or "5 environments of 3 agents" if there are several agents."""
    return f"{envs} environments" + (f" of {agents} agents" if agents > 1 else "")


def differs(name: str, spec: Spec, expected: Spec) -> str:
    """Returns the error message for an environment `name` whose Spec is not the expected one."""
    return f"env {name!r} has other spaces than the rest of its set: {spec}, not {expected}"


def incident_of(error: BaseException, plan: WorkerPlan, number: int, making: bool = False) -> Incident:
    """Converts an exception of an environment to an Incident. A UserError without a cause gets no traceback.

    making: whether the environment failed while it was made
    """
    ours = isinstance(error, UserError)
    line = str(error) if ours else f"env {plan.named(number)!r} failed: {one_line(error)}"
    trace = "" if ours and error.__cause__ is None else "".join(traceback.format_exception(error))
    kind: Kind = "broke its space" if ours and not making else "raised"
    return Incident((number,), kind, line, trace)


def picture_of(rows: EnvRows | ParallelRows) -> np.ndarray | str | None:
    """Returns an image uint8 [H, W, 3], None if the environment does not render, or the reason (str) for a failure."""
    try:
        return rows.render()
    except KeyboardInterrupt:
        raise
    except UserError as error:
        return str(error)
    except BaseException as error:
        return one_line(error)


def close_quietly(rows: EnvRows | ParallelRows | None) -> None:
    """Closes an environment that is no longer needed, and ignores its errors."""
    try:
        if rows is not None:
            rows.close()
    except KeyboardInterrupt:
        raise
    except BaseException:  # including sys.exit
        pass


def close_in_time(
    rows: EnvRows | ParallelRows, plan: WorkerPlan, number: int, home: OwnThread | None = None
) -> Incident | None:
    """Closes an environment of this process, and ignores its errors. Returns None, or an Incident if that hangs.

    An environment that has not closed after CLOSE seconds is abandoned in its thread.
    home: the thread in which the environment runs; None: the caller's thread
    """
    if home is not None and home.inside():
        close_quietly(rows)  # the thread cannot wait for itself
        return None
    thread = home or OwnThread(f"closing {plan.named(number)}")
    try:
        thread.call(rows.close, timeout=CLOSE)
    except Hung:
        text = f"close() of env {plan.named(number)!r} has not returned for {CLOSE:g} seconds; it is abandoned"
        return Incident((number,), "not closed", text, "")
    except BaseException:
        # It failed at once: an environment bound to its thread (a GL context) can be closed only there.
        if home is None:
            close_quietly(rows)
    finally:
        if home is None:
            thread.close()
    return None
