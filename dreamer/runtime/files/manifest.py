"""The manifest of a checkpoint, checked before use, because a checksum is not a signature. Imports no jax.

The manifest is the checkpoint's record of its run, stored as its `meta`. The file with the host's state (replay,
limiter, logger, environments) has a JSON header, which this module checks too. Anybody could have written either of
them, so a value that a run would not write raises a UserError that names the file and the field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.files.plain_state import check_generator
from dreamer.runtime.files.sealed import Seal

NAMES = {
    "rows": re.compile(r"rows-\d{1,18}\.dreamer"),
    "latents": re.compile(r"latents-\d{1,18}-\d{1,9}\.dreamer"),
    "state": re.compile(r"state-\d{1,18}\.dreamer"),
}
FORMAT = 4  # version of the contents of a checkpoint: train state and other files
_MOST = 1 << 53  # largest count
_LARGEST_SPEC = 1 << 20  # characters
_FRACTION = re.compile(r"-?\d{1,200}(/[1-9]\d{0,199})?")


class Files(NamedTuple):
    """The files that a run resumes from besides the train state of a checkpoint, each identified by its Seal.

    run: the identity of the run, which every file contains | state: the file with the host's state
    rows, latents: the files with rows and with latents, oldest first
    oldest: for each stream of the replay, the number of the oldest row that its ring buffer holds
    rows_per_stream: the length of these ring buffers
    """

    run: str
    rows: tuple[Seal, ...]
    latents: tuple[Seal, ...]
    state: Seal
    oldest: tuple[int, ...]
    rows_per_stream: int

    @property
    def seals(self) -> tuple[Seal, ...]:
        """The seals of all files: rows, latents, state."""
        return (*self.rows, *self.latents, self.state)


class Manifest(NamedTuple):
    """A checkpoint's record of its run. Missing fields are None.

    env_steps, updates: the counters of the run | format: the version of the other fields
    files: the files to resume from; None: the checkpoint can only be evaluated
    metrics: the size in bytes and the crc32 of metrics.jsonl at the time of the checkpoint; the crc32 may be None
    spec: the Spec of the environment, as JSON
    others: the files of the other processes, if several have trained together; `files` are those of process 0
    number: the checkpoint's number, if it is not env_steps
    """

    env_steps: int
    updates: int
    format: int | None = None
    files: Files | None = None
    metrics: tuple[int, int | None] | None = None
    spec: dict[str, Any] | None = None
    others: tuple[Files, ...] = ()
    number: int | None = None

    @property
    def step(self) -> int:
        """The number of the checkpoint."""
        return self.env_steps if self.number is None else self.number

    @property
    def hosts(self) -> tuple[Files, ...]:
        """The files of every process that has trained, in their order; () if the checkpoint can only be evaluated."""
        return (self.files, *self.others) if self.files else ()

    @property
    def run(self) -> str | None:
        """The identity of the run, or None if it is unknown."""
        return self.files.run if self.files else None

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON values that `from_json` reads."""
        files = {} if self.files is None else _files_to_json(self.files)
        others = [_files_to_json(one) for one in self.others] or None
        metrics = None if self.metrics is None else list(self.metrics)
        values = {
            "env_steps": self.env_steps, "updates": self.updates, "format": self.format, **files, "metrics": metrics,
            "spec": self.spec, "others": others, "number": self.number,
        }  # fmt: skip
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, meta: Any, where: Path) -> Manifest:
        """Reads and checks the manifest in a checkpoint's `meta`; drops fields that this version does not know.

        where: the file to name in errors. Raises UserError if a field is missing or invalid.
        """
        if not isinstance(meta, dict):
            raise _odd(where, "it")
        _fields(meta, {"env_steps": _counts, "updates": _counts}, where)
        known = {
            "format": _counts, "run": _identity, "metrics": _position, "spec": _spec, "number": _counts,
            "others": _list_of(lambda value: isinstance(value, dict) and value.get("run") == meta.get("run")),
        }  # fmt: skip
        _fields(meta, known, where, optional=True)
        metrics = tuple(meta["metrics"]) if "metrics" in meta else None
        files = _files(meta, where)
        others = tuple(filter(None, (_files({"format": FORMAT, **one}, where) for one in meta.get("others", ()))))
        if len(others) < len(meta.get("others", ())) or (others and not files):
            raise _odd(where, "'others'")
        return cls(
            meta["env_steps"], meta["updates"], meta.get("format"), files, metrics, meta.get("spec"), others,
            meta.get("number"),
        )  # fmt: skip


def files_of(manifest: Manifest, what: str) -> Files:
    """Returns the files to resume from. Raises UserError if the manifest names no such files.

    what: the checkpoint in the words of the error, such as "checkpoint 100".
    """
    if manifest.files is None:
        raise UserError(f"{what} can only be evaluated: it names no files to resume from")
    return manifest.files


def check_format(meta: Any, what: str) -> None:
    """Raises UserError if another version of dreamer wrote the `meta` of a checkpoint.

    what: the checkpoint in the words of the error, such as "checkpoint 100".
    """
    written = meta.get("format") if isinstance(meta, dict) else None
    if type(written) is int and written != FORMAT:
        raise UserError(
            f"{what} was written by another version of dreamer, in format {written}; this one reads format {FORMAT}: "
            "use that version to resume or evaluate, or start a new run"
        )


def _files_to_json(files: Files) -> dict[str, Any]:
    return {
        "run": files.run, "rows": [list(seal) for seal in files.rows],
        "latents": [list(seal) for seal in files.latents], "state": list(files.state),
        "oldest": list(files.oldest), "rows_per_stream": files.rows_per_stream,
    }  # fmt: skip


def _files(meta: Mapping[str, Any], where: Path) -> Files | None:
    """Reads and checks the files in the `meta` of a checkpoint. Returns None if the `meta` names no files."""
    if "state" not in meta:
        return None
    required = {
        "format": _counts, "run": _identity, "rows": _seals("rows"), "latents": _seals("latents"),
        "state": _seal("state"), "oldest": _list_of(_counts),
        "rows_per_stream": lambda value: _counts(value) and value > 0,
    }  # fmt: skip
    _fields(meta, required, where)
    rows, latents = (tuple(Seal(*seal) for seal in meta[name]) for name in ("rows", "latents"))
    return Files(meta["run"], rows, latents, Seal(*meta["state"]), tuple(meta["oldest"]), meta["rows_per_stream"])


def head(values: dict[str, Any], where: Path) -> dict[str, Any]:
    """Checks the JSON header of the file with the host's state and returns it. Raises UserError if it is invalid.

    where: the file to name in errors. Values that must fit the replay or the environments are not checked here.
    """
    fields = {
        "replay": _replay, "limiter": _limiter, "logger": _logger,
        "loop": lambda value: isinstance(value, dict) and (value.get("eval_due") is None or _number(value["eval_due"])),
        "envs": _list_of(lambda why: why is None or isinstance(why, str)),
    }  # fmt: skip
    _fields(values, fields, where)
    _fields(values, {"macs": _list_of(lambda mac: isinstance(mac, str))}, where, optional=True)
    return values


def spans(values: Any, envs: int, where: Path) -> list[list[int]]:
    """Checks and returns the spans [stream, first row, end] of the rows in a file; `end` is exclusive.

    Raises UserError naming the file `where` if a span is empty, if its stream is not below `envs`, or if a stream has
    two spans.
    """
    if not (isinstance(values, list) and all(_counted(span, 3) for span in values)):
        raise _odd(where, "spans")
    numbers = [env for env, _, _ in values]
    if len(set(numbers)) < len(numbers) or not all(env < envs and start < stop for env, start, stop in values):
        raise _odd(where, "spans")
    return values


def alike(arrays: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], where: Path, part: str) -> None:
    """Raises UserError if `arrays` {name: [..]} differ from `expected` in names, shapes or dtype kinds.

    where: the file to name in errors | part: the prefix of the names in errors
    """
    if arrays.keys() != expected.keys():
        raise _odd(where, f"{part}/{min(arrays.keys() ^ expected.keys())}")
    for name, array in expected.items():
        array = np.asarray(array)
        if arrays[name].shape != array.shape or arrays[name].dtype.kind not in (array.dtype.kind, "V"):
            raise _odd(where, f"{part}/{name}")


def _odd(where: Path, what: str) -> UserError:
    return UserError(f"{where} was not written by this program: {what} is not what a run saves")


def _fields(
    values: Mapping[str, Any], fields: Mapping[str, Callable[[Any], Any]], where: Path, optional: bool = False
) -> None:
    for name, right in fields.items():
        if name not in values:
            if not optional:
                raise _odd(where, f"without {name!r} it")
        elif not right(values[name]):
            raise _odd(where, repr(name))


def _counts(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MOST and math.isfinite(value)


def _identity(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value) is not None


def _list_of(right: Callable[[Any], Any]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(right(item) for item in value)


def _counted(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(_counts(number) for number in value)


def _seal(kind: str) -> Callable[[Any], bool]:
    def right(value: Any) -> bool:
        if not (isinstance(value, list) and len(value) == 3 and isinstance(value[0], str)):
            return False
        return bool(NAMES[kind].fullmatch(value[0])) and _counts(value[1]) and _crc(value[2])

    return right


def _seals(kind: str) -> Callable[[Any], bool]:
    right = _seal(kind)
    return lambda value: (
        isinstance(value, list) and all(map(right, value)) and len({seal[0] for seal in value}) == len(value)
    )


def _crc(value: Any) -> bool:
    return _counts(value) and value < 1 << 32


def _position(value: Any) -> bool:
    """Whether a value is a list of two: the size of metrics.jsonl in bytes, and its crc32 or None."""
    return isinstance(value, list) and len(value) == 2 and _counts(value[0]) and (value[1] is None or _crc(value[1]))


def _spec(value: Any) -> bool:
    if not isinstance(value, dict) or not {"obs", "action", "agents"} <= value.keys():
        return False
    if not (isinstance(value["obs"], dict) and isinstance(value["action"], dict) and _counts(value["agents"])):
        return False
    return len(json.dumps(value)) < _LARGEST_SPEC


def _replay(value: Any) -> bool:
    if not isinstance(value, dict) or not {"counts", "rows_per_stream", "queue", "rng", "report_rng"} <= value.keys():
        return False
    try:
        check_generator(value["rng"], "PCG64")
        check_generator(value["report_rng"], "PCG64")
    except ValueError:
        return False
    counts, queue = value["counts"], value["queue"]
    if not (_list_of(_counts)(counts) and _counts(value["rows_per_stream"]) and isinstance(queue, Sequence)):
        return False
    return all(_counted(item, 2) and item[0] < len(counts) and item[1] < counts[item[0]] for item in queue)


def _limiter(value: Any) -> bool:
    return value is None or isinstance(value, str) and bool(_FRACTION.fullmatch(value))


def _logger(value: Any) -> bool:
    if not isinstance(value, dict) or not _counts(value.get("bytes")) or not isinstance(value.get("sums"), dict):
        return False
    if not (value.get("crc") is None or _crc(value["crc"])) or not _number(value.get("seconds")):
        return False
    sums = all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (int, float) and _counts(pair[1]) and pair[1]
        for pair in value["sums"].values()
    )
    return sums and (value.get("wandb") is None or isinstance(value["wandb"], str))
