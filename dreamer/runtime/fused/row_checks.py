"""Checks the rows of environments written in JAX on the host, because a program on a device raises no errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from dreamer.errors import UserError
from dreamer.spaces import Spec


def check_rows(
    spec: Spec, rows: Mapping[str, np.ndarray], first: np.ndarray, named: Callable[[int], str]
) -> None:
    """Raises UserError that names an environment whose rows break the contract of a JaxEnv.

    rows {name: [S, n, ..]}: the columns of new rows, as in the replay; latents are not checked
    first [S, n]: which of them must be reset rows | named: the name of an environment for messages
    """
    faults: dict[str, np.ndarray] = {}
    for name, column in rows.items():
        if column.dtype.kind == "f" and not name.startswith("latent/"):
            faults[f"{name} is not finite"] = ~np.isfinite(column)
    for key, space in spec.obs.items():
        if space.classes is not None:
            wrong = (rows[f"obs/{key}"] < 0) | (rows[f"obs/{key}"] >= space.classes)
            faults[f"obs/{key} is not one of the classes 0 to {space.classes - 1} of its space"] = wrong
    faults["it resets itself inside step; a JaxEnv leaves that to its caller"] = rows["is_first"] & ~first
    faults["the row of its reset does not have is_first"] = first & ~rows["is_first"]
    faults["a row has is_terminal, but not is_last"] = rows["is_terminal"] & ~rows["is_last"]
    for text, wrong in faults.items():
        if wrong.any():
            stream = int(np.argwhere(wrong)[0][0])
            raise UserError(f"env {named(stream // spec.agents)!r}: {text}")


def resets_after(spec: Spec, last: np.ndarray) -> np.ndarray:
    """Returns which rows must be reset rows, from `is_last` [S, ..] of the rows before. All agents end together."""
    by_env = last.reshape(len(last) // spec.agents, spec.agents, *last.shape[1:])
    return by_env.any(1).repeat(spec.agents, 0)
