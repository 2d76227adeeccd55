"""Measures how long a step of an environment takes, to choose where the environments run. Imports no jax."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.env.rows import empty_step
from dreamer.runtime.workers.faults import as_error, close_in_time, incident_of, make_rows, restore_folder
from dreamer.runtime.workers.interface import WorkerPlan
from dreamer.runtime.workers.own_thread import Hung, OwnThread

# The cost of a row from another process in addition to its step: two system calls and a context switch on each side, 60
# to 100 microseconds by benchmarks/env_throughput.py. A step that takes longer gains from a second core, or from
# running parallel to the learner; a shorter one does not. It is a constant, because measuring it takes a process.
ROUND_TRIP = 100e-6
SECONDS, STEPS = 0.3, 200  # a measurement ends when either is reached


def choose(plan: WorkerPlan, timeout: float = 0.0) -> tuple[str, str]:
    """Makes and measures one environment. Returns ("inline" or "processes", the reason for this choice).

    timeout: the maximum seconds of the measurement; 0: no limit. Raises UserError if the environment cannot be made.
    """
    try:
        rows = make_rows(plan, 0, plan.seed)
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as error:  # including sys.exit
        raise as_error(incident_of(error, plan, 0, making=True)) from error
    # In a thread, where an environment that hangs can be abandoned, and where one that is bound to its thread fails as
    # it would inline. Not in a process: that takes 0.5 to 1 s, and lacks ids that only this process has registered.
    thread = OwnThread("measuring an environment")
    try:
        step = thread.call(seconds_per_step, rows, timeout=timeout or None)
    except KeyboardInterrupt:
        raise
    except Hung:
        return "processes", f", its step hung for {timeout:g} seconds during the measurement"
    except BaseException:
        close_in_time(rows, plan, 0)
        return "processes", ", its step failed during the measurement"
    finally:
        thread.close()
        restore_folder(plan)
    hung = close_in_time(rows, plan, 0)
    restore_folder(plan)
    if hung:
        return "processes", ", its close() hung during the measurement"
    backend = "processes" if step > ROUND_TRIP else "inline"
    sign = "more" if step > ROUND_TRIP else "less"
    return backend, f": a step takes {1e6 * step:,.0f} us, {sign} than the {1e6 * ROUND_TRIP:.0f} us to a process"


def seconds_per_step(rows: Any) -> float:
    """Returns the median seconds of a step of EnvRows or ParallelRows. Passes on errors of the environment."""
    agents = rows.spec.agents
    out = empty_step(rows.spec, agents)
    actions = random_actions(rows.spec.action, np.random.default_rng(0), STEPS * agents).reshape(STEPS, agents, -1)
    rows.turn(out, 0)
    clock = [time.perf_counter()]
    while len(clock) <= STEPS and clock[-1] - clock[0] < SECONDS:
        out.action[:] = actions[len(clock) - 1]
        rows.turn(out, 0)
        clock.append(time.perf_counter())
    return float(np.median(np.diff(clock)))  # the median ignores steps that a busy machine delays
