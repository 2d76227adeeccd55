"""Callbacks of a run. They receive each line of metrics, and can stop the run or request an evaluation.

This module imports no jax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from dreamer.errors import UserError, one_line

Request = Literal["stop", "evaluate"]


class Line(NamedTuple):
    """The metrics of a run at one step, as in one line of metrics.jsonl.

    env_steps, updates: the counters of the run | values {name: number}: the metrics
    run_dir: the absolute path of the run directory
    """

    env_steps: int
    updates: int
    values: Mapping[str, float]
    run_dir: str


# "stop": save and end; the run can be resumed | "evaluate": evaluate now | None: continue
Callback = Callable[[Line], Request | None]


def ask(callbacks: Sequence[Callback], line: Line) -> frozenset[str]:
    """Calls each callback with `line`, and returns the set of their requests: "stop", "evaluate", both or none.

    Raises UserError if a callback fails or returns something that is not a request.
    """
    requests = set()
    for callback in callbacks:
        name = getattr(callback, "__qualname__", type(callback).__name__)
        try:
            request = callback(line)
        except Exception as error:
            raise UserError(f"callback {name} failed: {one_line(error)}") from error
        if request is None:
            continue
        if request not in get_args(Request):
            choices = " or ".join(map(repr, get_args(Request)))
            raise UserError(f"callback {name} returned {request!r}; it may return {choices}, or None")
        requests.add(request)
    return frozenset(requests)
