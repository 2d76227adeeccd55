"""Starts a new run with the weights of another run: all, the world model's or the behavior's.

All arrays must fit, unless the caller allows a share of them not to, as for another environment; those stay new.
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

PARTS = {"all": ("world_model", "behavior"), "world_model": ("world_model",), "behavior": ("behavior",)}
_SHOWN = 8  # arrays that a note names
_TOLD = 3  # arrays that an error names


class Taken(NamedTuple):
    """The state with another run's weights, and lines on which arrays were taken and which were not."""

    state: TrainState
    lines: list[str]


def begin_with(state: TrainState, run: str, parts: str, missing: float = 0.0) -> Taken:
    """`state` with the parameters of the newest checkpoint of `run`, where names and shapes agree.

    parts: "all", "world_model" or "behavior". The extra state of a part (slow critic, normalisers) comes with its
    parameters; optimizer, key, step counter and hyperparameters stay the new run's own.
    missing: the largest share of the arrays of these parts, of either run, that may not fit; they stay new.
    Raises UserError when there is no run, when a larger share does not fit, or when nothing fits.
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
    told = [f"{name} ({why})" for name, why in left.items()]
    if not fits:
        raise UserError(
            f"init_from {run}: nothing of its {parts.replace('_', ' ')} has a name and shape of this run's: "
            f"{'; '.join(told[:2])}"
        )
    _check_share(run, told, len(fits), missing)
    leaves = [jnp.asarray(theirs[n], leaf.dtype) if n in fits else leaf for n, leaf in ours.items()]
    numbers = sum(math.prod(theirs[name].shape) for name in fits)
    lines = [f"init_from {run}: took {len(fits)} of {len(wanted)} arrays, {numbers:,} numbers, of {parts}"]
    if told:
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        lines.append(f"init_from {run}: not taken: {'; '.join(told[:_SHOWN])}{more}")
    others = sorted(set(PARTS["all"]) - set(PARTS[parts]))
    lines.append(f"init_from {run}: new: {', '.join([*others, 'optimizer', 'key', 'counters', 'replay'])}")
    return Taken(jax.tree.unflatten(tree, leaves), lines)


def _check_share(run: str, told: list[str], fits: int, missing: float) -> None:
    """Raises UserError when the arrays that do not fit (`told`) exceed a share `missing` of all."""
    total = fits + len(told)
    if len(told) <= missing * total:
        return
    share = math.ceil(100 * len(told) / total) / 100
    more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    raise UserError(
        f"init_from {run}: {len(told)} of {total} arrays do not fit: {'; '.join(told[:_TOLD])}{more}; take the model "
        f"sizes of that run, or let these begin anew: --init-missing {share:g}"
    )


def _belongs(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a leaf is learned and belongs to one of the parts; hyperparameters come from the config."""
    kind, part, *_ = [*name.split("/"), ""]
    return kind in ("params", "extra") and part in parts


def _why(theirs: dict[str, np.ndarray], ours: dict, name: str) -> str:
    if name not in theirs:
        return "not in that run"
    return f"{list(theirs[name].shape)} there, {list(np.shape(ours[name]))} here"
