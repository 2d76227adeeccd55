"""Datasets of LeRobot (github.com/huggingface/lerobot) on this machine, in the formats v2.0, v2.1 and v3.0. No jax.

    meta/                info.json and the list of episodes, see `dreamer/data/lerobot_meta.py`
    data/**.parquet      a row for each frame: observation.*, action, next.reward, timestamp, frame_index, ..
    videos/**.mp4        the frames of the features that are films

The action of a row was taken after its observation, and next.reward is the answer to it. What the last action led to is
not stored, so no episode has its true last observation. next.done marks true ends and time limits alike, and it would
belong to the missing row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.data.checks import Recorded, checked
from dreamer.data.episodes import Data, Fault, Found, Reading
from dreamer.data.films import Films
from dreamer.data.forms import form_of
from dreamer.data.inferring import Actions, infer_actions, infer_observations
from dreamer.data.lerobot_meta import INFO, PICTURES, Feature, Info, Placed, read_episodes, read_info
from dreamer.data.pieces import Cut, parts
from dreamer.data.tables import File, Parquet, as_array, as_pictures, column_values, leaf_of
from dreamer.errors import UserError
from dreamer.runtime.env.observations import Reader

OBSERVATION = "observation"
REWARD, DONE = "next.reward", "next.done"
WHERE = ("episode_index", "frame_index", "timestamp")  # columns of every dataset
_BLOCK, _PICTURES = 1 << 12, 1 << 6  # rows that are decoded at once, without and with embedded pictures


class _Held(NamedTuple):
    """A file of rows. spans: its episodes, in order, and the rows `start` to `stop` - 1 of each"""

    file: File
    spans: list[tuple[Placed, int, int]]


class _Plan(NamedTuple):
    """How to read the episodes of a dataset. keys {the agent's key: feature} | columns: those that are read"""

    info: Info
    readers: list[Reader]
    keys: Mapping[str, Feature]
    actions: Actions
    columns: list[str]
    held: list[_Held]
    row_bytes: int


def open_lerobot(path: Path, reading: Reading) -> Data:
    """Opens the folder of a dataset. Raises UserError if it is not one, or if no episode can be read."""
    info = read_info(path)
    keys, left_out = _keys(info)
    episodes, faults = read_episodes(info)
    columns = [feature.key for feature in keys.values() if feature.dtype != "video"]
    columns += ["action", *WHERE, *(key for key in (REWARD, DONE) if key in info.features)]
    held: list[_Held] = []
    try:
        actions = infer_actions(_indexed(info, episodes, columns, held, faults), reading, str(path))
    except UserError as error:
        raise (error if held or not faults else UserError(f"{path}: {faults[0]}")) from None
    forms = {key: (np.dtype(np.uint8) if feature.dtype in PICTURES else np.dtype(feature.dtype), feature.shape)
             for key, feature in keys.items()}  # fmt: skip
    form = form_of(infer_observations(forms, str(path)), actions.space, str(path))
    spans = [span for one in held for span in one.spans]
    more, notes = _unsaid(info, reading, len(spans))
    assumed = "assumed: observations have the dtype and shape in info.json, and no bounds"
    notes = [*left_out, assumed, actions.note, *notes]
    row_bytes = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in forms.values())
    plan = _Plan(info, form.keys, keys, actions, columns, held, row_bytes)
    rows = sum(stop - start for _, start, stop in spans)
    return Data("lerobot", str(path), form.spec, len(spans), rows, (*faults, *more), tuple(notes), lambda: _scan(plan))


def _keys(info: Info) -> tuple[dict[str, Feature], list[str]]:
    """Returns the features that are observations, {the agent's key: feature}, and a note on those that are left out."""
    keys: dict[str, Feature] = {}
    left = []
    for feature in info.features.values():
        inner = feature.key.removeprefix(f"{OBSERVATION}.")
        if feature.key in ("action", REWARD, DONE, "index", "task_index", *WHERE):
            continue
        if inner == feature.key != OBSERVATION:
            left.append(feature.key)
        elif feature.depth:
            left.append(f"{feature.key} (a depth map)")
        elif feature.dtype not in PICTURES and _kind(feature.dtype) == "O":
            left.append(f"{feature.key} ({feature.dtype})")
        else:
            key = inner.replace(".", "/")
            if key in keys:
                raise UserError(f"{info.root}: {feature.key} and {keys[key].key} would have the same key {key!r}")
            keys[key] = feature
    for key in ("action", *WHERE):
        if key not in info.features:
            raise UserError(f"{info.root / INFO}: there is no feature {key!r}; it has {', '.join(info.features)}"[:400])
    if not keys:
        raise UserError(f"{info.root / INFO}: no feature is named {OBSERVATION}.*; it has "
                        f"{', '.join(info.features)}"[:400])  # fmt: skip
    return keys, [f"left out, because an agent cannot observe them: {', '.join(left)}"] if left else []


def _kind(dtype: str) -> str:
    """Returns the kind of a dtype of info.json: "f", "i" for integers, "b", or "O" if it is not a number."""
    try:
        kind = np.dtype(dtype).kind
    except TypeError:
        return "O"
    return {"u": "i"}.get(kind, kind if kind in "fib" else "O")


def _unsaid(info: Info, reading: Reading, episodes: int) -> tuple[list[Fault], list[str]]:
    """Returns a Fault for each missing part that `reading` does not replace, and notes on the other parts."""
    faults, notes = [], []
    what = f"{episodes} episode{'s have' if episodes > 1 else ' has'} no true last observation: LeRobot does not store"
    if reading.missing_last == "refuse":
        faults.append(Fault(INFO, f"{what} it; --missing-last drop leaves out the last transition of each", None,
                            OBSERVATION))  # fmt: skip
    else:
        notes.append(f"{what} what a last action led to; the last transition of each is left out, with its reward, so "
                     "that it ends one row earlier as by a time limit")  # fmt: skip
    if REWARD not in info.features and reading.missing_reward == "refuse":
        what = "there are no rewards; --missing-reward zeros reads zeros, for a model or a clone that needs none"
        faults.append(Fault(INFO, what, None, REWARD))
    elif REWARD not in info.features:
        notes.append(f"there are no rewards, no feature {REWARD}; all rewards are zeros")
    if DONE in info.features:
        notes.append(f"{DONE} does not distinguish a true end from a time limit, so no end is read as a true one")
    if any(feature.dtype == "video" for feature in info.features.values()):
        notes.append("films are compressed, so images are not exactly what the cameras gave")
    if info.tasks > 1:
        notes.append(f"there are {info.tasks} tasks; which one an episode belongs to is left out")
    return faults, notes


# --- which rows are where ---------------------------------------------------------------------------


def _indexed(
    info: Info, episodes: list[Placed], columns: list[str], held: list[_Held], faults: list[Fault]
) -> Iterator[np.ndarray]:
    """Looks at every file of rows, and yields its actions [n, ..]. 

    Adds each file to `held`, or the reason why it cannot be read to `faults`.
    """
    for file, own in itertools.groupby(episodes, lambda one: one.data):
        inside = list(own)
        try:
            with Parquet(file) as table:
                table.check_columns(columns)
                wrong = [fault for key in columns if (fault := _type_fault(info.features[key], table.schema, file))]
                if wrong:
                    faults += wrong
                    continue
                found = table.read([*WHERE, "action"])
                numbers, frames = (column_values(found.column(key), file.name, key, "iu") for key in WHERE[:2])
                actions = _numbers(found.column("action"), info.features["action"])
        except UserError as error:
            names = f"episode {inside[0].number}" + (f" to {inside[-1].number}" if len(inside) > 1 else "")
            faults.append(Fault(names, str(error)))
            continue
        spans = _spans(inside, numbers, frames, file, faults)
        if spans:
            held.append(_Held(file, spans))
            yield actions


def _type_fault(feature: Feature, schema: Any, file: File) -> Fault | None:
    """Returns a Fault if the type of a column is not that of info.json; numbers of the same kind are converted."""
    import pyarrow

    kind = schema.field(feature.key).type
    if feature.dtype == "image":
        embedded = pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        inner = kind.field("bytes").type if embedded else kind
        if pyarrow.types.is_binary(inner) or pyarrow.types.is_large_binary(inner):
            return None
        return Fault(file.name, f"is {kind}, which holds no pictures", None, feature.key)
    leaf, sizes = leaf_of(kind)
    try:
        dtype = np.dtype(leaf.to_pandas_dtype())
    except (NotImplementedError, TypeError):  # pyarrow raises either for a type that numpy does not have
        dtype = np.dtype(object)
    fits = _kind(dtype.name) == _kind(feature.dtype) != "O"
    sizes = sizes or [1]
    shape = feature.shape or (1,)
    if not fits or len(sizes) != len(shape) or any(n not in (-1, side) for n, side in zip(sizes, shape, strict=True)):
        return Fault(file.name, f"is {kind}, info.json says {feature.dtype} {list(feature.shape)}", None, feature.key)
    return None


def _spans(
    episodes: list[Placed], numbers: np.ndarray, frames: np.ndarray, file: File, faults: list[Fault]
) -> list[tuple[Placed, int, int]]:
    """Returns the rows of each episode of a file. Adds a Fault if they differ from its entry in meta.

    numbers, frames [n]: episode_index and frame_index of all rows of the file
    """
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    found: dict[int, list[tuple[int, int]]] = {}
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        if stop > start:
            found.setdefault(int(numbers[start]), []).append((start, stop))
    spans = []
    for one in episodes:
        rows = found.pop(one.number, [])
        name, total = f"episode {one.number}", sum(stop - start for start, stop in rows)
        if total != one.length or not total:
            faults.append(Fault(name, f"has {total} rows in {file.name}, meta says {one.length}"))
            continue
        start, stop = rows[0]
        if len(rows) > 1:
            faults.append(Fault(name, f"is in {len(rows)} pieces in {file.name}"))
        elif (wrong := frames[start:stop] != np.arange(stop - start)).any():
            row = int(np.argmax(wrong))
            what = f"is {frames[start + row]}, so that rows are missing or not in order"
            faults.append(Fault(name, what, row, "frame_index"))
        else:
            spans.append((one, start, stop))
    for number in list(found)[:10]:
        faults.append(Fault(file.name, f"has rows of an episode {number}, which meta does not list for it"))
    return sorted(spans, key=lambda span: span[1])


# --- reading ----------------------------------------------------------------------------------------


def _scan(plan: _Plan) -> Iterator[Found]:
    films = {feature.key: _picture(feature.shape) for feature in plan.keys.values() if feature.dtype == "video"}
    with Films(films, plan.info.fps) as opened:
        for held in plan.held:
            yield from _scan_file(plan, held, opened)


def _scan_file(plan: _Plan, held: _Held, films: Films) -> Iterator[Found]:
    pictures = any(feature.dtype == "image" for feature in plan.keys.values())
    try:
        with Parquet(held.file) as table:
            table.start(plan.columns, _PICTURES if pictures else _BLOCK)
            at = 0
            for placed, start, stop in held.spans:
                table.skip(start - at)
                at = stop
                yield from _scan_episode(plan, placed, Cut(start, stop, True, True), table, films)
    except UserError as error:
        yield Found(None, (Fault(held.file.name, f"{error}; its later episodes are not read"),))


def _scan_episode(plan: _Plan, placed: Placed, cut: Cut, table: Parquet, films: Films) -> Iterator[Found]:
    """Yields an episode whole, or in parts that fit the memory."""
    before = np.zeros(1, np.float32)  # the reward that belongs to the first row of a part
    for part in parts(cut, plan.row_bytes):
        rows = table.take(part.stop - part.start)
        name = f"episode {placed.number}" if part == cut else f"part of episode {placed.number}"
        faults: list[Fault] = []
        obs = {key: array for key, feature in plan.keys.items()
               if (array := _observed(plan, key, feature, placed, rows, films, name, faults)) is not None}  # fmt: skip
        reward = _column(rows, REWARD, plan.info, name, faults)
        _check_done(_column(rows, DONE, plan.info, name, faults), name, faults)
        try:
            vectors = plan.actions.vectors(_numbers(rows.column("action"), plan.info.features["action"]), name)
        except UserError as error:
            faults.append(Fault(name, str(error), None, "action"))
        if faults:
            yield Found(None, tuple(faults))
            continue
        yield checked(plan.readers, _recorded(name, part, obs, vectors, before, reward))
        before = reward[-1:]


def _recorded(
    name: str, part: Cut, obs: Mapping[str, np.ndarray], vectors: Any, before: np.ndarray, reward: np.ndarray
) -> Recorded:
    """Joins the columns of a part. The action of a last row is left out, because what it led to is unknown."""
    count = part.stop - part.start
    action = np.zeros((count, vectors.array.shape[1]), np.float32)
    chosen = count - part.last
    action[:chosen] = vectors.array[:chosen]
    is_first, is_last, is_terminal = np.zeros((3, count), bool)
    is_first[0], is_last[-1] = part.first, part.last
    rewards = np.concatenate([before.astype(reward.dtype), reward[:-1]])
    return Recorded(name, obs, action, rewards, is_first, is_last, is_terminal, vectors.faults)


def _observed(
    plan: _Plan, key: str, feature: Feature, placed: Placed, rows: Any, films: Films, name: str, faults: list[Fault]
) -> np.ndarray | None:
    """Returns the rows [n, ..] of one observation, or None and adds what is wrong to `faults`."""
    try:
        if feature.dtype == "image":
            return as_pictures(rows.column(feature.key), _picture(feature.shape))
        if feature.dtype != "video":
            return _numbers(rows.column(feature.key), feature)
        span = placed.films[feature.key]
        times = column_values(rows.column("timestamp"), name, "timestamp", "f").astype(np.float64) + span.start
        if times[-1] > span.stop - 0.5 / plan.info.fps:
            what = f"has the episode from {span.start:.3f} to {span.stop:.3f} s only, fewer frames than rows"
            raise UserError(f"{span.file.name} {what}: it has {placed.length} rows")
        return films.frames(feature.key, span.file, times)
    except UserError as error:
        faults.append(Fault(name, str(error), None, f"observation {key!r}"))
        return None


def _picture(shape: tuple[int, ...]) -> tuple[int, int, int]:
    height, width, channels = shape
    return height, width, channels


def _numbers(column: Any, feature: Feature) -> np.ndarray:
    """Returns a column as an array [n, *feature.shape]. Raises UserError if its rows have another shape."""
    array = as_array(column)
    if array.shape[1:] != feature.shape and not (array.ndim == 1 and feature.shape in ((), (1,))):
        raise UserError(f"has rows {list(array.shape[1:])}, info.json says {list(feature.shape)}")
    return array.reshape(len(array), *feature.shape)


def _column(rows: Any, key: str, info: Info, name: str, faults: list[Fault]) -> np.ndarray:
    """Returns a column of single numbers [n]; zeros if the dataset has none of this name."""
    if key not in info.features:
        return np.zeros(rows.num_rows, np.float32)
    try:
        return column_values(rows.column(key), name, key, "fiub")
    except UserError as error:
        faults.append(Fault(name, str(error), None, key))
        return np.zeros(rows.num_rows, np.float32)


def _check_done(done: np.ndarray, name: str, faults: list[Fault]) -> None:
    """Adds a Fault if rows follow the end of an episode. next.done may stay true from a success until the last row."""
    ended = np.flatnonzero((done[:-1] != 0) & (done[1:] == 0))
    if len(ended):
        faults.append(Fault(name, "ends the episode, which has rows after it", int(ended[0]), DONE))
