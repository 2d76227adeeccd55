"""Datasets of npz files as Dreamer stores its replay, in a folder or one file. Imports no jax.

Two layouts are read. In both, an array has an entry for each row, and all keys but those named here are observations.

    DreamerV3    TIME-ID-NEXT-ROWS.npz: a chunk of a stream of rows; NEXT is the ID of the chunk that follows
                 action, reward, is_first, is_last, is_terminal; the action was chosen after its row's observation
    DreamerV1,   TIME-ID-LENGTH.npz: one episode; discount, 0 at a true end, in place of or beside the three flags
    DreamerV2    the action led to its row's observation

Files are never unpickled. This program writes an episode to each file, episode-NUMBER-ROWS.npz, with the keys of
DreamerV3, and the spaces into spec.json.
"""

from __future__ import annotations

import contextlib
import itertools
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.data.checks import Recorded, checked, length_faults, readers_of
from dreamer.data.episodes import Data, Episode, Fault, Found, Reading
from dreamer.data.extra import reason
from dreamer.data.forms import form_of, from_json, to_json
from dreamer.data.inferring import Actions, infer_actions, infer_observations
from dreamer.data.pieces import Pieces
from dreamer.data.vectors import Vectors, from_stored, to_stored
from dreamer.errors import UserError
from dreamer.runtime.env.observations import Reader
from dreamer.runtime.files.safe_files import open_regular, read_text
from dreamer.spaces import Spec

SPEC = "spec.json"
FLAGS = ("is_first", "is_last", "is_terminal")
OTHER = {"action", "reward", *FLAGS, "discount", "reset", "stepid", "consec", "logprob"}
OTHER_PREFIXES = ("log/", "log_", "dyn/", "enc/", "dec/")
_UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, KeyError, RuntimeError, MemoryError, OverflowError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


class _File(NamedTuple):
    """What a file's name says. own, next: the IDs of a chunk and of the one that follows it; "" for an episode.

    number: of the episode in a file of this program, else None | rows: the number of rows that may be inside; (): any
    """

    path: Path
    own: str
    next: str
    number: int | None
    rows: tuple[int, ...]


class _Index(NamedTuple):
    """What a first look at all files found: streams of files in order, totals, and where the zeros of actions are."""

    streams: list[list[_File]]
    keys: dict[str, tuple[np.dtype, tuple[int, ...]]]
    left_out: list[str]
    rows: int
    episodes: int
    zeros: dict[str, bool]
    faults: list[Fault]


class _Plan(NamedTuple):
    readers: list[Reader]
    spec: Spec
    actions: Actions | None
    before: bool
    streams: list[list[_File]]
    keys: list[str]

    def vectors(self, stored: np.ndarray, where: str) -> Vectors:
        """Converts stored actions [N, ..] to vectors [N, A]."""
        return self.actions.vectors(stored, where) if self.actions else from_stored(self.spec.action, stored, where)


def open_npz(path: Path, reading: Reading) -> Data:
    """Opens a folder of npz files, or one file. Raises UserError if none is readable or the actions are unclear."""
    paths = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    own = path / SPEC if path.is_dir() else None
    spec = from_json(read_text(own), str(own)) if own is not None and own.is_file() else None
    if not paths:
        raise UserError(f"{path} has no npz files")
    index = _indexed([_named(one) for one in paths], spec)
    if not index.rows:
        raise UserError(str(index.faults[0]) if index.faults else f"{path}: its files have no rows")
    before, note = (False, "") if spec else _action_row(index, reading, path)
    notes = [note] if note else []
    if index.left_out:
        notes.append(f"left out, because they are not observations: {', '.join(index.left_out)}")
    if spec:
        readers, actions = readers_of(spec), None
    else:
        actions = infer_actions(_chosen(index.streams, before), reading, str(path))
        form = form_of(infer_observations(index.keys, str(path)), actions.space, str(path))
        readers, spec = form.keys, form.spec
        notes += ["assumed: observations have the dtype and shape of the arrays, without bounds", actions.note]
    plan = _Plan(readers, spec, actions, before, index.streams, [*index.keys, "action", "reward"])
    return Data("npz", str(path), spec, index.episodes, index.rows, tuple(index.faults), tuple(notes),
                lambda: _scan(plan))  # fmt: skip


def write_npz(folder: Path, spec: Spec, episodes: Iterable[Episode]) -> int:
    """Writes episodes, also those without a beginning or an end, into an existing folder. Returns their number."""
    for key in ("action", "discount", "file", "allow_pickle"):
        if key in spec.obs:
            raise UserError(f"an npz file cannot hold an observation with the key {key!r}; rename it")
    written = 0
    for number, episode in enumerate(episodes):
        columns = {
            **episode.obs, "action": to_stored(spec.action, episode.action), "reward": episode.reward,
            "is_first": episode.is_first, "is_last": episode.is_last, "is_terminal": episode.is_terminal,
        }  # fmt: skip
        path = folder / f"episode-{number:09d}-{episode.rows}.npz"
        np.savez_compressed(path, **columns)  # type: ignore[arg-type]  # allow_pickle is the only other name
        written += 1
    (folder / SPEC).write_text(to_json(spec) + "\n")
    return written


def _named(path: Path) -> _File:
    parts = path.stem.split("-")
    length = int(parts[-1]) if parts[-1].isdecimal() else None
    if len(parts) == 4 and length is not None:
        return _File(path, parts[1], parts[2], None, (length,))
    if len(parts) == 3 and length is not None and parts[0] == "episode" and parts[1].isdecimal():
        return _File(path, "", "", int(parts[1]), (length,))
    # DreamerV2 counts the steps, DreamerV1 the rows.
    return _File(path, "", "", None, (length, length + 1) if length is not None and len(parts) == 3 else ())


def _indexed(files: list[_File], spec: Spec | None) -> _Index:
    keys: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    left_out: list[str] = []
    zeros = {"first": True, "last": True, "reset": False, "discount": False}
    faults, whole, rows, episodes = [], [], 0, 0
    for file in files:
        try:
            with _arrays(file.path) as arrays:
                if not keys:
                    keys, left_out = _keys(arrays, spec)
                    zeros |= {"reset": "reset" in arrays, "discount": "discount" in arrays}
                columns = _columns(arrays, ["action", "reward"])
                missing = [key for key in keys if key not in arrays]
        except _UNREADABLE as error:
            faults.append(_unreadable(file.path, error))
            continue
        except UserError as error:
            faults.append(Fault(file.path.name, str(error)))
            continue
        length = len(columns["reward"])
        wrong = [Fault(file.path.name, "is missing, other files have it", None, key) for key in missing]
        wrong += length_faults(file.path.name, {key: len(values) for key, values in columns.items()}, length)
        if file.rows and length not in file.rows:
            wrong.append(Fault(file.path.name, f"has {length} rows, its name says {file.rows[0]}"))
        if not length:
            wrong.append(Fault(file.path.name, "has no rows"))
        if wrong:
            faults += wrong
            continue
        rows, episodes = rows + length, episodes + int(columns["is_last"].sum())
        for place in ("first", "last"):
            zeros[place] &= not columns["action"][columns[f"is_{place}"].astype(bool)].any()
        whole.append(file)
    streams, lost = _streams(whole, {file.own for file in files} - {""})
    return _Index(streams, keys, left_out, rows, episodes, zeros, faults + _missing(files) + lost)


def _keys(arrays: Mapping[str, np.ndarray], spec: Spec | None) -> tuple[dict, list[str]]:
    """Returns the form {key: (dtype, shape of a row)} of each observation, and the keys that are left out."""
    known = {*OTHER, *(spec.obs if spec else ())}
    others = [key for key in arrays if key not in known]
    found = [key for key in others if not key.startswith(OTHER_PREFIXES)] if spec is None else list(spec.obs)
    forms = {key: (arrays[key].dtype, arrays[key].shape[1:]) for key in found if key in arrays}
    return forms, sorted({*others} - {*found})


def _streams(files: list[_File], owners: set[str]) -> tuple[list[list[_File]], list[Fault]]:
    """Returns the files in streams of successive chunks, and a Fault for each chunk that is named but not there."""
    chunks = {file.own: file for file in files if file.own}
    followed = {file.next for file in chunks.values() if file.next != file.own}
    streams = [[file] for file in files if not file.own or file.own not in followed]
    seen = {file.path for stream in streams for file in stream}
    faults = []
    for stream in streams:
        while (after := chunks.get(stream[-1].next)) is not None and after.path not in seen:
            stream.append(after)
            seen.add(after.path)
        last = stream[-1]
        if last.own and last.next.strip("0") and last.next not in owners:
            faults.append(Fault(last.path.name, f"the chunk {last.next} that follows it is missing"))
    streams += [[file] for file in files if file.path not in seen]  # chunks that name each other in a circle
    return streams, faults


def _missing(files: list[_File]) -> list[Fault]:
    numbers = sorted(file.number for file in files if file.number is not None)
    return missing_numbers(numbers, files[0].path.parent.name, (numbers[-1] + 1) if numbers else 0)


def missing_numbers(numbers: Iterable[int], where: str, count: int) -> list[Fault]:
    """Returns a Fault that lists which episodes of 0 to `count` - 1 are not among `numbers`; [] if all are."""
    there = {number for number in numbers if number < count}
    missing = count - len(there)
    if not missing:
        return []
    # Looks no further than needed, because a count in a file may be any number.
    first = itertools.islice((number for number in range(count) if number not in there), 10)
    listed = ", ".join(map(str, first)) + (" .." if missing > 10 else "")
    return [Fault(where, f"{missing} of {count} episodes are missing: {listed}")]


def _action_row(index: _Index, reading: Reading, path: Path) -> tuple[bool, str]:
    """Returns whether the action of a row led to its observation, and how that is known. Raises UserError if not."""
    zeros = index.zeros
    if reading.action_row != "auto":
        return reading.action_row == "before", ""
    if zeros["reset"] and not zeros["discount"]:
        return False, "actions were chosen after the observation of their row, as in DreamerV3: there is a key reset"
    if zeros["first"] and not zeros["last"]:
        return True, "inferred: actions led to the observation of their row, as they are zeros in first rows"
    if zeros["last"] and not zeros["first"]:
        return False, "inferred: actions were chosen after the observation of their row, as they are zeros in last rows"
    raise UserError(
        f"{path}: it is unclear whether an action led to the observation of its row or was chosen after it: "
        f"{'both first and last rows have' if zeros['first'] else 'neither first nor last rows have only'} zeros; "
        "say so with --action-row before or after"
    )


def _chosen(streams: list[list[_File]], before: bool) -> Iterator[np.ndarray]:
    """Yields the stored actions [n, ..] of each file, without those of rows in which no action was taken."""
    for stream in streams:
        for file in stream:
            with _arrays(file.path) as arrays:
                columns = _columns(arrays, ["action", "reward"])
            yield columns["action"][~columns["is_first" if before else "is_last"].astype(bool)]


def _scan(plan: _Plan) -> Iterator[Found]:
    number = 0
    for stream in plan.streams:
        pieces = Pieces()
        for file in stream:
            try:
                with _arrays(file.path) as arrays:
                    columns = _columns(arrays, plan.keys)
                    lengths = {key: len(values) for key, values in columns.items()}
            except (*_UNREADABLE, UserError) as error:
                yield Found(None, (_unreadable(file.path, error),))
                continue
            if faults := length_faults(file.path.name, lengths, lengths["reward"]):
                yield Found(None, tuple(faults))
                continue
            for piece in pieces.add(columns):
                yield _found(plan, piece, f"episode {number} in {file.path.name}")
                number += 1
        for piece in pieces.rest():
            yield _found(plan, piece, f"episode {number} in {stream[-1].path.name}")
            number += 1


def _found(plan: _Plan, piece: dict[str, np.ndarray], name: str) -> Found:
    ends = bool(piece["is_last"][-1])
    notes: tuple[str, ...] = ()
    if plan.before and not ends:  # the action after the last row is in a row that is not there
        piece = {key: values[:-1] if key != "action" else values for key, values in piece.items()}
        notes = ("the last row of an episode without an end is left out: the action after it is not stored",)
        if not len(piece["reward"]):
            return Found(None, (), notes)
    rows = len(piece["reward"])
    stored = piece["action"][1:] if plan.before else piece["action"][: rows - 1 if ends else rows]
    vectors = plan.vectors(stored, name)
    action = np.zeros((rows, vectors.array.shape[1]), np.float32)
    action[: len(stored)] = vectors.array
    obs = {key: piece[key] for key in plan.keys[:-2]}
    first, last, terminal = (piece[key] for key in FLAGS)
    recorded = Recorded(name, obs, action, piece["reward"], first, last, terminal, vectors.faults)
    found = checked(plan.readers, recorded)
    return found._replace(notes=found.notes + notes)


@contextlib.contextmanager
def _arrays(path: Path) -> Iterator[Any]:
    """Opens an npz file. Raises UserError if it is something else, such as a pickle."""
    with open_regular(path, follow=True) as file:
        if not zipfile.is_zipfile(file):
            raise UserError("is not an npz file, or is cut short")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:  # numpy leaves a damaged file open if it opens it by itself
            yield arrays


def _columns(arrays: Mapping[str, np.ndarray], keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads arrays and the three flags, which are made from the discounts if the file has no flags.

    Raises UserError if an array is missing or says nothing about ends.
    """
    columns = {}
    for key in keys:
        if key not in arrays:
            raise UserError(f"has no array {key!r}")
        columns[key] = arrays[key]
        if not columns[key].shape:
            raise UserError(f"{key} is a single value, not one for each row")
    rows = len(columns["reward"])
    if "is_terminal" in arrays:
        columns["is_terminal"] = arrays["is_terminal"]
    elif "discount" in arrays:
        discount = arrays["discount"]
        if not ((discount == 0) | (discount == 1)).all():
            raise UserError("has no is_terminal, and a discount other than 0 and 1: it is unclear what is terminal")
        columns["is_terminal"] = discount == 0
    else:
        raise UserError("has neither is_terminal nor discount, so nothing says which ends are true ends")
    for key, row in (("is_first", 0), ("is_last", -1)):
        if key in arrays:
            columns[key] = arrays[key]
        elif "discount" not in arrays:
            raise UserError(f"has no array {key!r}")
        else:
            columns[key] = np.zeros(rows, bool)
            columns[key][row:][:1] = True
    for key in FLAGS:
        flag = columns[key]
        if flag.ndim != 1 or flag.dtype.kind not in "biuf" or not ((flag == 0) | (flag == 1)).all():
            raise UserError(f"{key} is {flag.dtype} {list(flag.shape)}, it must be 0 or 1 in each row")
        columns[key] = flag.astype(bool)
    return columns


def _unreadable(path: Path, error: BaseException) -> Fault:
    if isinstance(error, ValueError) and "pickle" in str(error).lower():
        return Fault(path.name, "holds pickled objects, which are never loaded; store plain arrays")
    return Fault(path.name, str(error) if isinstance(error, UserError) else f"is cut short or damaged: {reason(error)}")
