"""Reads what a dream is given as files: actions, and observations to begin with. Files are never unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dreamer.errors import UserError, nearest
from dreamer.runtime.files.safe_files import open_regular
from dreamer.spaces import MASK, Action, Space, Spec

UNREADABLE = (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error)
ACTION = "action"


def read_actions(file: str, action: Action, dreams: int, steps: int) -> np.ndarray:
    """Returns the actions in a .npy file, or in the array "action" of a .npz file, as vectors [N, steps, A] float32.

    The file holds vectors [S, A] for all dreams or [N, S, A], or, if an action is one of several classes, their indices
    as integers [S] or [N, S]; S is at least `steps`, and later actions are ignored.
    Raises UserError if the file cannot be read or holds something else.
    """
    arrays = read_arrays(file)
    if ACTION not in arrays and len(arrays) > 1:
        raise UserError(f"--actions: {file} has no array {ACTION!r}{nearest(ACTION, arrays)}")
    given = arrays.get(ACTION, next(iter(arrays.values())))
    one = action.discrete and len(action.classes) == 1
    if one and given.dtype.kind in "iu" and (given.ndim == 1 or (given.ndim == 2 and not _onehots(given, action))):
        if given.size and not (0 <= given.min() and given.max() < action.width):
            wrong = int(given[(given < 0) | (given >= action.width)][0])
            raise UserError(f"--actions: {file} has the action {wrong}, not 0 to {action.width - 1}")
        given = np.eye(action.width, dtype=np.float32)[given]
    indices = f" or indices [{steps}]" if one else ""
    wanted = f"[{steps}, {action.width}] or [{dreams}, {steps}, {action.width}]{indices}"
    fits = given.dtype.kind in "biuf" and given.ndim in (2, 3) and given.shape[-1] == action.width
    if not fits or (given.ndim == 3 and len(given) != dreams) or given.shape[-2] < steps:
        raise UserError(
            f"--actions: {file} holds {given.dtype} {list(given.shape)}, not {wanted} for --steps {steps}: an action "
            f"is {action.text}"
        )
    given = np.broadcast_to(given, (dreams, *given.shape[-2:]))[:, :steps].astype(np.float32)
    check_vectors(given, action, f"--actions: {file}")
    return given


def _onehots(given: np.ndarray, action: Action) -> bool:
    """Whether integers [S, A'] are one-hots, and not the indices of actions."""
    return given.shape[1] == action.width and bool(((given == 0) | (given == 1)).all() and (given.sum(1) == 1).all())


def check_vectors(given: np.ndarray, action: Action, what: str) -> None:
    """Raises UserError unless vectors [.., A] begin with one-hots and end with numbers from -1 to 1. what: in errors"""
    begin = 0
    for size in action.classes:
        part = given[..., begin : begin + size]
        if not (((part == 0) | (part == 1)).all() and (part.sum(-1) == 1).all()):
            raise UserError(f"{what}: entries {begin} to {begin + size - 1} of an action are not a one-hot")
        begin += size
    numbers = given[..., begin:]
    if not (np.abs(numbers) <= 1).all():  # also finds nan
        raise UserError(f"{what}: the numbers of an action must be from -1 to 1")


def read_start(file: str, spec: Spec) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns observations {k: [C, ..]} and the actions between them [C - 1, A] from a .npy, .npz or .png file.

    A .npz file has an array for each observation, of one row or of C successive rows; for several rows it also has the
    array "action" [C - 1, A]. The other files hold the only observation. A missing action mask allows everything.
    Raises UserError if the file cannot be read or does not fit the observations.
    """
    arrays = read_arrays(file)
    if not file.endswith(".npz"):
        names = [name for name in spec.obs if not (spec.masked and name == MASK)]
        if len(names) != 1:
            raise UserError(f"--start: {file} holds one array, the run observes {', '.join(names)}: give a .npz file")
        arrays = {names[0]: next(iter(arrays.values()))}
    actions = arrays.pop(ACTION, None) if ACTION not in spec.obs else None
    if spec.masked and MASK not in arrays:
        rows = _rows(arrays, spec)
        arrays[MASK] = np.ones((rows, *spec.obs[MASK].shape), np.int32)
    if differing := sorted(set(arrays) ^ set(spec.obs)):
        name = differing[0]
        what = "no observation of the run" if name in arrays else "missing"
        raise UserError(f"--start: {file}: {name!r} is {what}; the run observes {', '.join(sorted(spec.obs))}")
    obs = {name: _observation(arrays[name], space, f"--start: {file}: {name!r}") for name, space in spec.obs.items()}
    lengths = {len(x) for x in obs.values()}
    if len(lengths) > 1 or 0 in lengths:
        raise UserError(f"--start: {file}: its arrays have {', '.join(map(str, sorted(lengths)))} rows")
    (rows,) = lengths
    return obs, _between(actions, rows, spec.action, file)


def _rows(arrays: Mapping[str, np.ndarray], spec: Spec) -> int:
    shapes = [(x.shape, spec.obs[name].shape) for name, x in arrays.items() if name in spec.obs]
    return next((shape[0] for shape, own in shapes if len(shape) == len(own) + 1), 1)


def _observation(given: np.ndarray, space: Space, what: str) -> np.ndarray:
    rows = given if given.ndim == len(space.shape) + 1 else given[None]
    kinds = "biu" if np.dtype(space.dtype).kind in "biu" else "biuf"
    if rows.shape[1:] != space.shape or given.dtype.kind not in kinds:
        wanted = f"{space.dtype} {list(space.shape)} or rows of it"
        raise UserError(f"{what} is {given.dtype} {list(given.shape)}, not {wanted}")
    limits = (0, 255) if space.dtype == "uint8" else (0, space.classes - 1) if space.classes else space.bounds
    if not np.isfinite(rows).all() or (limits and not ((rows >= limits[0]) & (rows <= limits[1])).all()):
        wanted = f"from {limits[0]:g} to {limits[1]:g}" if limits else "finite"
        raise UserError(f"{what} has values that are not {wanted}")
    return rows.astype(space.dtype)


def _between(actions: np.ndarray | None, rows: int, action: Action, file: str) -> np.ndarray:
    if actions is None and rows == 1:
        return np.zeros((0, action.width), np.float32)
    if actions is None or actions.shape != (rows - 1, action.width) or actions.dtype.kind not in "biuf":
        found = "nothing" if actions is None else f"{actions.dtype} {list(actions.shape)}"
        raise UserError(
            f"--start: {file}: {rows} rows need an array {ACTION!r} [{rows - 1}, {action.width}] with the actions "
            f"between them, not {found}"
        )
    check_vectors(actions, action, f"--start: {file}")
    return actions.astype(np.float32)


def read_arrays(file: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a .npz file by name, or the one array of a .npy or .png file. Raises UserError."""
    path = Path(file).expanduser()
    try:
        with open_regular(path, follow=True) as opened:
            if path.suffix == ".png":
                from PIL import Image

                return {"": np.asarray(Image.open(opened).convert("RGB"))}
            if path.suffix not in (".npy", ".npz"):
                raise UserError(f"{file} must end in .npy or .npz, or, for a picture to begin with, in .png")
            if path.suffix == ".npz" and not zipfile.is_zipfile(opened):
                raise UserError(f"{file} is not an npz file, or is cut short")
            opened.seek(0)
            if path.suffix == ".npy":
                return {"": np.lib.format.read_array(opened, allow_pickle=False)}
            with np.load(opened, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise UserError(f"{file}: there is no such file") from error
    except UNREADABLE as error:
        text = " ".join(str(error).split())[:100]
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {text}") from error
