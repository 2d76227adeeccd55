"""Starts a new run with the weights of another run: of the world model, the behavior, or both.

All arrays must fit. The caller can allow that a share of them does not fit, for example with another environment; these
arrays keep their new initial values.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.errors import UserError
from dreamer.interfaces import TrainState
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.leaves import named_leaves
from dreamer.runtime.files.run_dir import existing_run_dir

COUNTER = "updates"  # the entry of a part's extra state that decides its phase: a new run begins with the first
PARTS = {"all": ("world_model", "behavior"), "world_model": ("world_model",), "behavior": ("behavior",)}
_SHOWN_IN_NOTE = 8  # maximum arrays that a line names
_SHOWN_IN_ERROR = 3  # maximum arrays that an error names


class Taken(NamedTuple):
    """A train state with weights of another run. lines: lines to print about which arrays were loaded."""

    state: TrainState
    lines: list[str]


def begin_with(state: TrainState, run: str, parts: str, missing: float = 0.0) -> Taken:
    """Returns `state` with the parameters of the newest checkpoint of another run, where names and shapes agree.

    run: the directory of the other run.
    parts: "all", "world_model" or "behavior". The extra state of a part (slow critic, normalisers) is loaded with its
    parameters. Optimizer, key, hyperparameters and all counters of updates are those of the new run.
    missing: the maximum share (0 to 1) of arrays without a match, counted over the arrays of both runs in these parts.
    Arrays of the new run without a match keep their initial values.
    Raises UserError if there is no run, if a larger share does not fit, or if nothing fits.
    """
    with Checkpoints(existing_run_dir(Path(run))) as checkpoints:
        theirs = checkpoints.leaves()
    ours, tree = named_leaves(state), jax.tree.structure(state)
    wanted = [name for name in ours if _belongs(name, PARTS[parts])]
    fits = {name for name in wanted if name in theirs and theirs[name].shape == np.shape(ours[name])}
    left = {
        **{name: _why(theirs, ours, name) for name in wanted if name not in fits},
        **{name: "not in this run" for name in theirs if _belongs(name, PARTS[parts]) and name not in ours},
    }
    misfits = [f"{name} ({why})" for name, why in left.items()]
    if not fits:
        raise UserError(
            f"init_from {run}: nothing of its {parts.replace('_', ' ')} has a name and shape of this run: "
            f"{'; '.join(misfits[:2])}"
        )
    _check_share(run, misfits, len(fits), missing)
    leaves = [jnp.asarray(theirs[n], leaf.dtype) if n in fits else leaf for n, leaf in ours.items()]
    numbers = sum(math.prod(theirs[name].shape) for name in fits)
    lines = [f"init_from {run}: loaded {len(fits)} of {len(wanted)} arrays, {numbers:,} numbers, of {parts}"]
    if misfits:
        more = f"; and {len(misfits) - _SHOWN_IN_NOTE} more" if len(misfits) > _SHOWN_IN_NOTE else ""
        lines.append(f"init_from {run}: not loaded: {'; '.join(misfits[:_SHOWN_IN_NOTE])}{more}")
    others = sorted(set(PARTS["all"]) - set(PARTS[parts]))
    lines.append(f"init_from {run}: new: {', '.join([*others, 'optimizer', 'key', 'counters', 'replay'])}")
    return Taken(jax.tree.unflatten(tree, leaves), lines)


def _check_share(run: str, misfits: list[str], fits: int, missing: float) -> None:
    """Raises UserError if the share of arrays that do not fit (`misfits`) is larger than `missing`."""
    total = fits + len(misfits)
    if len(misfits) <= missing * total:
        return
    share = math.ceil(100 * len(misfits) / total) / 100
    more = f"; and {len(misfits) - _SHOWN_IN_ERROR} more" if len(misfits) > _SHOWN_IN_ERROR else ""
    raise UserError(
        f"init_from {run}: {len(misfits)} of {total} arrays do not fit: {'; '.join(misfits[:_SHOWN_IN_ERROR])}{more}; "
        f"use the model sizes of that run, or initialize these arrays afresh with --init-missing {share:g}"
    )


def _belongs(name: str, parts: tuple[str, ...]) -> bool:
    """Whether the leaf `name` is a parameter or extra state of one of `parts`, but no counter of updates."""
    kind, part, *rest = [*name.split("/"), ""]
    return (kind == "params" and part in parts) or (kind == "extra" and part in parts and rest[0] != COUNTER)


def _why(theirs: dict[str, np.ndarray], ours: dict, name: str) -> str:
    if name not in theirs:
        return "not in that run"
    return f"{list(theirs[name].shape)} there, {list(np.shape(ours[name]))} here"
