"""The caller's callbacks: they receive each line of metrics, and may stop the run or ask for an evaluation. No jax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from dreamer.errors import UserError
from dreamer.plugins import one_line

Request = Literal["stop", "evaluate"]


class Line(NamedTuple):
    """A line of metrics as it was written.

    env_steps, updates: of the run so far | values {name: number}: its metrics | run_dir: absolute
    """

    env_steps: int
    updates: int
    values: Mapping[str, float]
    run_dir: str


# "stop": save and end, to be resumed later | "evaluate": play the evaluation's episodes now | None: continue
Callback = Callable[[Line], Request | None]


def ask(callbacks: Sequence[Callback], line: Line) -> frozenset[str]:
    """The requests of the callbacks at a line. Raises UserError naming a callback that raises or returns another."""
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
            raise UserError(f"callback {name} gives {request!r}; it may ask for {choices}, or give None")
        requests.add(request)
    return frozenset(requests)
