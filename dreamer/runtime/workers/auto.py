"""Where environments should run: measured, not guessed. No jax."""

from __future__ import annotations

import time

import numpy as np

from dreamer.runtime.actions import random_actions
from dreamer.runtime.rows import empty_step
from dreamer.runtime.workers.faults import close_quietly, make_rows
from dreamer.runtime.workers.seam import Plan

# What a row from another process costs beside its step: two system calls and a switch of context on each side, 60 to
# 100 microseconds by benchmarks/env_throughput.py. A step that takes longer gains from a second core, or from the
# learner working meanwhile; a shorter one does not. A constant: to measure it takes a process, a second or more.
ROUND_TRIP = 100e-6
SECONDS, STEPS = 0.3, 200  # a measurement ends with whichever comes first


def choose(plan: Plan) -> tuple[str, str]:
    """("inline" or "processes", why). Raises UserError when the environment cannot be made."""
    rows = make_rows(plan, 0, plan.seed)
    try:
        agents = rows.spec.agents
        out = empty_step(rows.spec, agents)
        actions = random_actions(rows.spec.action, np.random.default_rng(0), STEPS * agents).reshape(STEPS, agents, -1)
        rows.turn(out, 0)
        clock = [time.perf_counter()]
        while len(clock) <= STEPS and clock[-1] - clock[0] < SECONDS:
            out.action[:] = actions[len(clock) - 1]
            rows.turn(out, 0)
            clock.append(time.perf_counter())
        step = float(np.median(np.diff(clock)))  # a busy machine disturbs some steps, not most
    except Exception:
        return "processes", ", its step failed when it was measured"
    finally:
        close_quietly(rows)
    backend = "processes" if step > ROUND_TRIP else "inline"
    sign = "more" if step > ROUND_TRIP else "less"
    return backend, f": a step takes {1e6 * step:,.0f} us, {sign} than the {1e6 * ROUND_TRIP:.0f} us to a process"
