"""Where environments should run: measured, not guessed. No jax."""

from __future__ import annotations

import time

import numpy as np

from dreamer.runtime.rows import empty_step
from dreamer.runtime.workers.faults import close_quietly, make_rows
from dreamer.runtime.workers.seam import Plan
from dreamer.spaces import Spec

# What a row costs more when it comes from another process: two system calls and two switches of context on each
# side, 40 to 90 microseconds on the machines where benchmarks/env_throughput.py ran. A step that takes longer
# gains from a second core, or from the learner working meanwhile; a shorter one never does.
ROUND_TRIP = 60e-6
SECONDS, STEPS = 0.3, 200  # a measurement ends with whichever comes first


def choose(plan: Plan) -> tuple[str, str]:
    """("inline" or "processes", why). Raises UserError when the environment cannot be made."""
    rows = make_rows(plan, 0, plan.seed)
    try:
        out = empty_step(rows.spec, 1)
        actions = random_actions(rows.spec, np.random.default_rng(0), STEPS)
        rows.write(actions[0], out, 0)
        start, count = time.perf_counter(), 0
        while count < STEPS and time.perf_counter() - start < SECONDS:
            rows.write(actions[count], out, 0)
            count += 1
        step = (time.perf_counter() - start) / count
    except Exception:
        return "processes", ", its step failed when it was measured"
    finally:
        close_quietly(rows)
    backend = "processes" if step > ROUND_TRIP else "inline"
    sign = "more" if step > ROUND_TRIP else "less"
    return backend, f": a step takes {1e6 * step:,.0f} us, {sign} than the {1e6 * ROUND_TRIP:.0f} us to a process"


def random_actions(spec: Spec, rng: np.random.Generator, count: int) -> np.ndarray:
    """`count` random actions [count, A] float32: one-hot, or uniform in -1 to 1."""
    if spec.action.discrete:
        return np.eye(spec.action_width, dtype=np.float32)[rng.integers(spec.action_width, size=count)]
    return rng.uniform(-1, 1, (count, spec.action_width)).astype(np.float32)
