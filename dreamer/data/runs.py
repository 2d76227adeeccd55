"""The rows of a run directory as a dataset; see docs/run-directory.md. Only reads. Imports no jax.

A stream holds the rows of one environment, or of one of its agents. Its newest episode may have no end yet, and its
oldest no beginning, when older rows are no longer kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamer.data.checks import Recorded, checked, readers_of
from dreamer.data.episodes import Data, Fault, Found, Reading
from dreamer.data.forms import form_of, from_json
from dreamer.data.inferring import infer_actions, infer_observations
from dreamer.data.pieces import Pieces
from dreamer.data.vectors import vector_faults
from dreamer.errors import UserError
from dreamer.runtime.env.observations import Reader
from dreamer.runtime.files import checkpoint_files, manifest, sealed
from dreamer.runtime.files.run_dir import POPULATION, ROWS, existing_run_dir
from dreamer.runtime.files.safe_files import check_inside
from dreamer.runtime.files.sealed import Seal
from dreamer.spaces import Spec

_NAME = re.compile(r"rows-\d{1,18}\.dreamer", re.ASCII)
_MOST_STREAMS = 1 << 24
FLAGS = ("is_first", "is_last", "is_terminal")


class _Record(NamedTuple):
    """What the newest readable checkpoint says: the run's identity, its spec, and the seals of its files by name."""

    run: str | None
    spec: Spec | None
    seals: dict[str, Seal]
    faults: list[Fault]


class _Plan(NamedTuple):
    files: list[Path]
    seals: Mapping[str, Seal]
    spec: Spec
    readers: list[Reader]


def open_run(path: Path, reading: Reading) -> Data:
    """Opens the rows of a run directory. Raises UserError if there is no run, or if it has no rows."""
    if (path / POPULATION).is_file() and not (path / ROWS).is_dir():
        members = sorted(str(member) for member in path.iterdir() if (member / ROWS).is_dir())
        example = f", such as {members[0]}" if members else ""
        raise UserError(f"{path} is a population; each of its members is a run: name a member{example}")
    run_dir = existing_run_dir(path)
    folder = run_dir / ROWS
    check_inside(folder, run_dir)
    files = sorted(one for one in folder.glob("rows-*.dreamer") if _NAME.fullmatch(one.name))
    if not files:
        raise UserError(f"{run_dir} has no rows on the disk: no file {ROWS}/rows-*")
    record = _record(run_dir)
    faults, notes, whole, rows = list(record.faults), [], [], 0
    for file in files:
        try:
            head = sealed.read_head(file)
            if record.run and head.get("run") != record.run:
                raise UserError(f"{file} belongs to another run")
            rows += sum(stop - start for _, start, stop in manifest.spans(head.get("spans"), _MOST_STREAMS, file))
            whole.append(file)
        except UserError as error:
            faults.append(Fault(file.name, str(error)))
    if not whole:
        raise UserError(f"{run_dir} has no readable rows: {faults[0]}")
    spec = record.spec
    if spec is None:
        spec, inferred = _inferred(whole, reading, str(run_dir))
        notes += ["no checkpoint describes the spaces", *inferred]
    plan = _Plan(whole, record.seals, spec, readers_of(spec))
    return Data("run", str(path), spec, None, rows, tuple(faults), tuple(notes), lambda: _scan(plan))


def _record(run_dir: Path) -> _Record:
    faults = []
    for step in reversed(checkpoint_files.steps(run_dir)):
        try:
            found = checkpoint_files.read_manifest(run_dir, step)
            spec = from_json(found.spec, f"checkpoint {step} of {run_dir}") if found.spec else None
        except UserError as error:
            faults.append(Fault(f"checkpoint {step}", str(error)))
            continue
        seals = {seal.name: seal for seal in found.files.rows} if found.files else {}
        return _Record(found.run, spec, seals, faults)
    return _Record(None, None, {}, faults)


def _inferred(files: list[Path], reading: Reading, path: str) -> tuple[Spec, list[str]]:
    """Returns a spec inferred from all rows, and notes on it."""

    def actions() -> Iterator[np.ndarray]:
        for file in files:
            columns = sealed.read(file)[1]
            yield columns["action"][~columns["is_last"]]

    columns = sealed.read(files[0])[1]
    forms = {name[4:]: (values.dtype, values.shape[1:]) for name, values in columns.items() if name.startswith("obs/")}
    found = infer_actions(actions(), reading, path)
    form = form_of(infer_observations(forms, path), found.space, path)
    return form.spec, ["assumed: observations have the dtype and shape of the arrays, without bounds", found.note]


class _Streams:
    """Holds the unfinished episode of each stream, and the numbers of its first row and of the row that is next."""

    def __init__(self, plan: _Plan):
        self._plan = plan
        self._pieces: dict[int, Pieces] = {}
        self._begin: dict[int, int] = {}
        self._next: dict[int, int] = {}

    def add(self, stream: int, start: int, columns: dict[str, np.ndarray], where: str) -> Iterator[Found]:
        """Adds rows of a stream, the first with the number `start`, and yields the episodes that they complete."""
        pieces = self._pieces.setdefault(stream, Pieces())
        expected = self._next.get(stream, start)
        if start != expected:
            yield from self.rest(stream)
            what = f"begins at row {start} of stream {stream}, but row {expected} should come next"
            yield Found(None, (Fault(where, what),))
        if start != expected or stream not in self._begin:
            self._begin[stream] = start
        self._next[stream] = start + len(columns["reward"])
        for piece in pieces.add(columns):
            yield self._found(stream, piece)

    def rest(self, stream: int) -> Iterator[Found]:
        """Yields the rows of a stream that are held, whose episode has no end."""
        for piece in self._pieces[stream].rest():
            yield self._found(stream, piece)

    def all_rest(self, *, broken: bool = False) -> Iterator[Found]:
        """Yields the rows that are held of every stream. broken: whether rows after them cannot be read."""
        for stream in self._pieces:
            yield from self.rest(stream)
        if broken:
            self._next.clear()
            self._begin.clear()

    def _found(self, stream: int, piece: dict[str, np.ndarray]) -> Found:
        rows, begin = len(piece["reward"]), self._begin[stream]
        self._begin[stream] = begin + rows
        name = f"rows {begin} to {begin + rows - 1} of stream {stream}"
        spec = self._plan.spec
        chosen = rows - int(piece["is_last"][-1])
        faults = []
        if piece["action"].shape[1:] != (spec.action_width,):
            what = f"is {list(piece['action'].shape[1:])} in each row, the run's action is [{spec.action_width}]"
            faults.append(Fault(name, what, None, "action"))
        else:
            faults += vector_faults(spec.action, piece["action"][:chosen], name)
        action = np.zeros((rows, spec.action_width), np.float32)
        if not faults:
            action[:chosen] = piece["action"][:chosen]
        obs = {key: piece[f"obs/{key}"] for key in spec.obs if f"obs/{key}" in piece}
        first, last, terminal = (piece[key] for key in FLAGS)
        recorded = Recorded(name, obs, action, piece["reward"], first, last, terminal, faults)
        return checked(self._plan.readers, recorded)


def _scan(plan: _Plan) -> Iterator[Found]:
    streams = _Streams(plan)
    for file in plan.files:
        try:
            head, columns = sealed.read(file, plan.seals.get(file.name))
            kept = {name: values for name, values in columns.items() if not name.startswith("latent/")}
            missing = {"action", "reward", *FLAGS} - kept.keys()
            if missing:
                raise UserError(f"{file} has no column {min(missing)!r}")
            spans = manifest.spans(head.get("spans"), _MOST_STREAMS, file)
            count = sum(stop - start for _, start, stop in spans)
            if short := [name for name, values in kept.items() if len(values) != count]:
                raise UserError(f"{file}: column {short[0]!r} has {len(kept[short[0]])} rows, its spans have {count}")
        except UserError as error:
            yield from streams.all_rest(broken=True)
            yield Found(None, (Fault(file.name, str(error)),))
            continue
        offset = 0
        for stream, start, stop in spans:
            own = {name: values[offset : offset + stop - start] for name, values in kept.items()}
            offset += stop - start
            yield from streams.add(stream, start, own, file.name)
    yield from streams.all_rest()
