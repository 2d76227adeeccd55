"""What the folder meta of a dataset of LeRobot says: features, episodes and where their files lie. Imports no jax.

    meta/info.json                           version, features, templates of paths
    meta/episodes.jsonl                      v2.0 and v2.1: a line for each episode; each has files of its own
    meta/episodes/chunk-000/file-000.parquet v3.0: a row for each episode, with its files and its place in them

Source: documentation and code of LeRobot, github.com/huggingface/lerobot.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from dreamer.data.episodes import Fault
from dreamer.data.npz import missing_numbers
from dreamer.data.tables import File, check_there, column_values, read_table
from dreamer.errors import UserError
from dreamer.runtime.files.safe_files import json_value, read_text

INFO = "meta/info.json"
EPISODES = "meta/episodes.jsonl"
EPISODE_FILES = "meta/episodes"
VERSIONS = ("v2.0", "v2.1", "v3.0")
PICTURES = ("video", "image")
_LARGEST = 1 << 30  # bytes of a text; a list of many episodes is long
_LARGEST_SIDE = 1 << 14  # pixels of a picture
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")


class Feature(NamedTuple):
    """A feature of info.json.

    key: its name there | dtype: "video", "image", a numpy dtype such as "float32", or "string"
    shape: of a row; of pictures [H, W, C] | depth: whether it is a depth map
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    depth: bool


class Info(NamedTuple):
    """What info.json says. episodes, frames, tasks: how many | chunk: episodes of a folder, in v2.0 and v2.1"""

    root: Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    episodes: int
    frames: int
    tasks: int
    chunk: int
    data_path: str
    video_path: str

    @property
    def many(self) -> bool:
        """Whether a file holds several episodes."""
        return self.version.startswith("v3")


class Span(NamedTuple):
    """The part of a film from `start` to `stop`, in seconds."""

    file: File
    start: float
    stop: float


class Placed(NamedTuple):
    """An episode, and where it is stored.

    films {feature: span}: its part of the film of each camera
    """

    number: int
    length: int
    data: File
    films: Mapping[str, Span]


def read_info(root: Path) -> Info:
    """Reads and checks meta/info.json of a dataset. Raises UserError with what is wrong."""
    path = root / INFO
    try:
        values = json_value(_text(root, INFO))
    except ValueError as error:
        raise UserError(f"{path} is cut short or damaged: {str(error)[:100]}") from None
    if not isinstance(values, dict) or "codebase_version" not in values:
        raise UserError(f"{path} is not of LeRobot: it has no codebase_version")
    version = values["codebase_version"]
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        what = f"codebase_version is {str(version)[:40]!r}; dreamer reads {known}"
        raise UserError(f"{path}: {what}, and LeRobot's own tools convert to v3.0")
    counts: dict[str, int] = {}
    for key, default in (("total_episodes", None), ("total_frames", None), ("total_tasks", 0), ("chunks_size", 1000)):
        count: Any = values.get(key, default)
        if type(count) is not int or count < (key == "chunks_size"):
            raise UserError(f"{path}: {key} is not a count")
        counts[key] = count
    fps: Any = values.get("fps")
    if type(fps) not in (int, float) or not 0 < fps < 1e6:
        raise UserError(f"{path}: fps is not a number above 0")
    features = values.get("features")
    if not isinstance(features, dict):
        raise UserError(f"{path}: it has no features")
    found = {key: _feature(key, value, path) for key, value in features.items()}
    films = any(feature.dtype == "video" for feature in found.values())
    templates = [values.get(key) for key in ("data_path", "video_path")]
    for key, template in zip(("data_path", "video_path"), templates, strict=True):
        if not isinstance(template, str) and (key == "data_path" or films):
            raise UserError(f"{path}: it has no {key}")
    return Info(root, version, float(fps), found, counts["total_episodes"], counts["total_frames"],
                counts["total_tasks"], counts["chunks_size"], *(str(one) for one in templates))  # fmt: skip


def read_episodes(info: Info) -> tuple[list[Placed], list[Fault]]:
    """Returns the episodes in order, and what is wrong with their list.

    Raises UserError if the list cannot be read, or if a path leads out of the dataset.
    """
    where = EPISODE_FILES if info.many else EPISODES
    found: dict[int, Placed] = {}
    faults, frames = [], 0
    for placed, start in _files(info) if info.many else _lines(info):
        if placed.number in found:
            faults.append(Fault(where, f"lists episode {placed.number} twice"))
            continue
        if start is not None and start != frames:
            what = f"episode {placed.number} begins at index {start}, the one before ends at {frames}"
            faults.append(Fault(where, what, None, "dataset_from_index"))
        frames = placed.length + (frames if start is None else start)
        found[placed.number] = placed
    if not found:
        raise UserError(f"{info.root} has no episodes")
    last = max(found)
    faults += missing_numbers(found, where, max(info.episodes, last + 1))
    for key, told, held in (("total_episodes", info.episodes, last + 1), ("total_frames", info.frames, frames)):
        if told < held or (key == "total_frames" and told != held and not faults):
            faults.append(Fault(INFO, f"is {told}, but the episodes have {held}", None, key))
    return [found[number] for number in sorted(found)], faults


def inside(root: Path, relative: str) -> Path:
    """Returns the real path of a file of a dataset, which need not exist.

    Links are followed only to the folder itself and to the blobs of a cache of Hugging Face, in which each file of a
    snapshot is a link to ../../blobs.
    Raises UserError if the path leads out of both.
    """
    pure = PurePosixPath(relative)
    if not relative.isprintable() or pure.is_absolute() or ".." in pure.parts:
        raise UserError(f"{root / INFO}: a path leads out of the dataset: {relative!r}")
    folder = os.path.realpath(root)
    allowed = [folder]
    if os.path.basename(os.path.dirname(folder)) == "snapshots":
        allowed.append(os.path.join(os.path.dirname(os.path.dirname(folder)), "blobs"))
    real = os.path.realpath(os.path.join(folder, relative))
    if not any(os.path.commonpath([real, one]) == one for one in allowed):
        raise UserError(f"{root}: {relative} leads out of the dataset, to {real}; replace the link by its target")
    return Path(real)


def _text(root: Path, name: str) -> str:
    file = File(str(root / name), inside(root, name))
    check_there(file)
    return read_text(file.path, _LARGEST)


def _feature(key: str, value: Any, path: Path) -> Feature:
    dtype = value.get("dtype") if isinstance(value, dict) else None
    shape = value.get("shape") if isinstance(value, dict) else None
    if not key.isprintable() or not isinstance(dtype, str) or not isinstance(shape, list):
        raise UserError(f"{path}: the feature {key!r} has no dtype or no shape")
    if not all(type(side) is int and 0 <= side < 1 << 24 for side in shape):
        raise UserError(f"{path}: the feature {key!r} has the shape {str(shape)[:60]}; it must be whole numbers")
    sides = tuple(shape)
    if dtype in PICTURES:
        if len(sides) != 3 or not {sides[0], sides[2]} & {1, 3} or max(sides) > _LARGEST_SIDE:
            raise UserError(f"{path}: the feature {key!r} has the shape {shape}; a picture is [H, W, C] or [C, H, W]")
        sides = sides if sides[2] in (1, 3) else (*sides[1:], sides[0])
    told = [value.get("info"), value.get("video_info")]
    marks = [one.get(mark) for one in told if isinstance(one, dict) for mark in ("is_depth_map", "video.is_depth_map")]
    return Feature(key, dtype, sides, any(mark is True for mark in marks))


def _filled(info: Info, name: str, values: Mapping[str, int | str]) -> File:
    """Returns the file that the template `name` of info.json names, with its fields filled in."""
    template: str = getattr(info, name)

    def fill(match: re.Match) -> str:
        field, width = match.groups()
        value = values.get(field)
        if value is None or (width and not isinstance(value, int)):
            raise UserError(f"{info.root / INFO}: {name} has an unknown field {match[0]!r}; known: {', '.join(values)}")
        return f"{value:0{width}d}" if width else str(value)

    if set(_FIELD.sub("", template)) & {"{", "}"}:
        raise UserError(f"{info.root / INFO}: {name} is not a template of a path: {template[:100]!r}")
    relative = _FIELD.sub(fill, template)
    return File(relative, inside(info.root, relative))


def _lines(info: Info) -> Iterator[tuple[Placed, int | None]]:
    """Yields the episodes of v2.0 and v2.1, each with files of its own."""
    path = info.root / EPISODES
    films = [key for key, feature in info.features.items() if feature.dtype == "video"]
    for line, text in enumerate(_text(info.root, EPISODES).splitlines(), 1):
        if not text.strip():
            continue
        try:
            values = json_value(text)
            number, length = values["episode_index"], values["length"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {line} is cut short or damaged: {str(error)[:100]}") from None
        if not all(type(value) is int and 0 <= value < 1 << 40 for value in (number, length)):
            raise UserError(f"{path}, line {line}: episode_index and length must be counts")
        fields: dict[str, int | str] = {"episode_chunk": number // info.chunk, "episode_index": number}
        held = {key: Span(_filled(info, "video_path", {**fields, "video_key": key}), 0, np.inf) for key in films}
        yield Placed(number, length, _filled(info, "data_path", fields), held), None


def _files(info: Info) -> Iterator[tuple[Placed, int | None]]:
    """Yields the episodes of v3.0, and the number of the first row of each."""
    films = [key for key, feature in info.features.items() if feature.dtype == "video"]
    counts = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index",
              "dataset_to_index"]  # fmt: skip
    counts += [f"videos/{key}/{what}" for key in films for what in ("chunk_index", "file_index")]
    times = [f"videos/{key}/{what}_timestamp" for key in films for what in ("from", "to")]
    paths = sorted(info.root.glob(f"{EPISODE_FILES}/*/*.parquet"))
    if not paths:
        raise UserError(f"{info.root} has no files {EPISODE_FILES}/chunk-*/file-*.parquet")
    for path in paths:
        name = str(path)
        real = inside(info.root, path.relative_to(info.root).as_posix())
        table = read_table(File(name, real), [*counts, *times])
        columns = {key: column_values(table.column(key), name, key, "iu") for key in counts}
        seconds = {key: column_values(table.column(key), name, key, "fiu").astype(np.float64) for key in times}
        for key, values in (*columns.items(), *seconds.items()):
            if not ((values >= 0) & (values < 1 << 40)).all():
                raise UserError(f"{name}: {key} has values that are not counts or times")
        for row in range(table.num_rows):
            own = {key: int(values[row]) for key, values in columns.items()}
            yield _placed(info, films, own, {key: float(values[row]) for key, values in seconds.items()}, name)


def _placed(
    info: Info, films: list[str], own: Mapping[str, int], seconds: Mapping[str, float], name: str
) -> tuple[Placed, int | None]:
    number, length, index = own["episode_index"], own["length"], own["dataset_from_index"]
    if own["dataset_to_index"] - index != length:
        raise UserError(f"{name}: episode {number} has the length {length}, but the indices {index} to "
                        f"{own['dataset_to_index']}")  # fmt: skip
    held = {}
    for key in films:
        fields: dict[str, int | str] = {what: own[f"videos/{key}/{what}"] for what in ("chunk_index", "file_index")}
        start, stop = (seconds[f"videos/{key}/{what}_timestamp"] for what in ("from", "to"))
        held[key] = Span(_filled(info, "video_path", {"video_key": key, **fields}), start, stop)
    data = _filled(info, "data_path", {what: own[f"data/{what}"] for what in ("chunk_index", "file_index")})
    return Placed(number, length, data, held), index
