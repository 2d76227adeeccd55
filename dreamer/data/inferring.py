"""Infers the spaces of files that do not describe them, and says what was inferred. Imports no jax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from dreamer.data.episodes import Fault, Reading
from dreamer.data.vectors import Vectors, in_a_line, to_vectors
from dreamer.errors import UserError


class Actions(NamedTuple):
    """How the actions of a file are stored: their space, and whether they are one-hots."""

    space: spaces.Space
    onehot: bool
    note: str

    def vectors(self, stored: np.ndarray, where: str) -> Vectors:
        """Converts stored actions [N, ..] to the agent's vectors [N, A]."""
        if not self.onehot:
            values = stored[:, 0] if isinstance(self.space, spaces.Discrete) and stored.ndim == 2 else stored
            return to_vectors(self.space, values, len(stored), where)
        whole = _onehots(stored)
        if whole.all():
            return Vectors(stored.astype(np.float32), [])
        row = int(np.argmin(whole))
        fault = Fault(where, f"is {in_a_line(stored[row])}, not a one-hot", row, "action")
        return Vectors(np.zeros((len(stored), 0)), [fault])


def infer_actions(blocks: Iterable[np.ndarray], reading: Reading, path: str) -> Actions:
    """Infers the space of stored actions from all of them, in blocks [n, ..].

    Raises UserError if they cannot be actions, or not of the kind that `reading` asks for.
    """
    form: tuple[str, tuple[int, ...]] | None = None
    low, high, count, onehot = np.inf, -np.inf, 0, True
    for block in blocks:
        if block.dtype.kind not in "fiu" or block.ndim not in (1, 2):
            raise UserError(f"{path}: action is {block.dtype} {list(block.shape)}; it must be numbers [N] or [N, A]")
        form = form or (block.dtype.kind, block.shape[1:])
        if form != (block.dtype.kind, block.shape[1:]):
            raise UserError(f"{path}: action has rows {list(form[1])}, and later rows {list(block.shape[1:])}")
        if block.size:
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            onehot = onehot and block.ndim == 2 and block.shape[1] > 1 and bool(_onehots(block).all())
            count += len(block)
    if form is None or not count:
        raise UserError(f"{path}: there are no actions, so their space is unknown")
    kind, shape = form
    width = shape[0] if shape else 1
    if reading.actions != "numbers" and onehot:
        return Actions(spaces.Discrete(width), True, f"inferred: actions are one-hots of {width}, as each row is one")
    if reading.actions != "numbers" and kind in "iu" and width == 1:
        if low < 0:
            raise UserError(f"{path}: an action is {low:.0f}; discrete actions are counted from 0; --actions numbers?")
        classes = int(high) + 1
        return Actions(
            spaces.Discrete(classes), False, f"inferred: actions are one of {classes}, as the largest is {classes - 1}"
        )
    if reading.actions == "discrete":
        raise UserError(f"{path}: action is neither integers nor one-hots, so it is not discrete")
    least, most = reading.action_range
    note = f"assumed: actions are {width} number{'s' if width > 1 else ''} from {least:g} to {most:g}"
    if low < least or high > most:
        note += f"; those of the data go from {low:.6g} to {high:.6g}, see --action-range"
    return Actions(spaces.Box(least, most, shape or (), np.float32), False, note)


def infer_space(dtype: np.dtype, shape: tuple[int, ...], key: str, path: str) -> spaces.Space:
    """Returns the space of recorded values: uint8 from 0 to 255, other numbers without bounds. Raises UserError."""
    if dtype.kind not in "biuf":
        raise UserError(f"{path}: observation {key!r} is {dtype}, not numbers")
    if dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, shape, dtype.type)
    if dtype.kind == "b":
        return spaces.Box(0, 1, shape, np.bool_)
    return spaces.Box(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype.type)


def infer_observations(forms: Mapping[str, tuple[np.dtype, tuple[int, ...]]], path: str) -> spaces.Dict:
    """Returns a Dict with the inferred space of each key, {key: (dtype, shape of a row)}. Raises UserError."""
    if not forms:
        raise UserError(f"{path}: it has no observations")
    return spaces.Dict({key: infer_space(dtype, shape, key, path) for key, (dtype, shape) in forms.items()})


def _onehots(block: np.ndarray) -> np.ndarray:
    """Returns for each row [n] whether it is a one-hot."""
    return ((block == 0) | (block == 1)).all(-1) & (block.sum(-1) == 1)
