"""Datasets in HDF5 as in D4RL (Fu et al. 2020, arXiv 2004.07219): all transitions one after the other in one file.

    observations [N, ..]        or a group with an array for each key, which is an addition of this program
    actions [N] or [N, A], rewards [N], terminals [N]
    timeouts [N]                the last transition of an episode that a time limit ended
    next_observations [N, ..]   the answer to each action; the only place for the true last observation of an episode

A file that this program wrote describes its spaces in the attribute "dreamer". Imports no jax; h5py when it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from dreamer.data.checks import Recorded, checked, readers_of
from dreamer.data.episodes import Data, Episode, Fault, Found, Reading
from dreamer.data.extra import extra, reason
from dreamer.data.forms import form_of, from_json, to_json
from dreamer.data.inferring import infer_actions, infer_observations
from dreamer.data.pieces import MOST_BYTES, Cut, parts
from dreamer.data.vectors import Vectors, from_stored, to_stored
from dreamer.errors import UserError
from dreamer.runtime.env.observations import Reader
from dreamer.spaces import Spec

ATTRIBUTE = "dreamer"
NEEDED = ("actions", "rewards", "terminals")
BLOCK = 1 << 16  # rows that are read at once to look at actions and flags
# What h5py raises where a file is damaged depends on the place.
DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
CHUNK = 1 << 18  # bytes of a chunk in the files that are written


class _Layout(NamedTuple):
    """What a file holds. obs, next_obs {key: dataset}; next_obs is {} without next_observations."""

    obs: dict[str, Any]
    next_obs: dict[str, Any]
    rows: int


class _Plan(NamedTuple):
    """How to read the episodes of a file."""

    readers: list[Reader]
    vectors: Callable[[np.ndarray, str], Vectors]
    nested: bool
    cuts: list[Cut]
    drop: bool


def open_hdf5(path: Path, reading: Reading) -> Data:
    """Opens a file in D4RL's layout. Raises UserError if it is not one, or if its arrays have different lengths."""
    with opened_hdf5(path) as file:
        layout = _layout(file, path)
        spec, notes, plan = _understood(file, layout, path, reading)
        faults = []
        last = _flags(file, "terminals", path)
        if "timeouts" in file:
            last = last | _flags(file, "timeouts", path)
        else:
            notes.append("there is no array timeouts: only terminals end an episode")
        cuts = _cuts(last)
        row_bytes = sum(data[:1].nbytes for data in layout.obs.values())
        cuts = [part for cut in cuts for part in parts(cut, row_bytes)]
        ends = sum(cut.last for cut in cuts)
        drop = not layout.next_obs
        if drop and ends:
            what = f"{ends} episode{'s have' if ends > 1 else ' has'} no true last observation: there is no array"
            if reading.missing_last == "refuse":
                faults.append(
                    Fault(path.name, f"{what}; --missing-last drop leaves out the last transition of each", None,
                          "next_observations")
                )  # fmt: skip
            else:
                notes.append(
                    f"{what} next_observations; the last transition of each is left out, with its reward and its "
                    "terminal, so that it ends one row earlier as by a time limit"
                )
        if layout.next_obs and not faults:
            faults += _unmarked(layout, last, path)
    plan = plan._replace(cuts=cuts, drop=drop)
    episodes, rows = ends, sum(_rows(cut, drop) for cut in cuts)
    return Data("hdf5", str(path), spec, episodes, rows, tuple(faults), tuple(notes), lambda: _scan(path, plan))


def write_hdf5(path: Path, spec: Spec, episodes: Iterable[Episode]) -> int:
    """Writes whole episodes to the new file `path`, one at a time. Returns their number.

    Raises UserError for an episode that the layout cannot hold.
    """
    with extra():
        import h5py
    written = 0
    with h5py.File(path, "w") as file:
        file.attrs[ATTRIBUTE] = to_json(spec)
        for episode in episodes:
            _append(file, _transitions(spec, episode))
            written += 1
    return written


@contextlib.contextmanager
def opened_hdf5(path: Path) -> Iterator[Any]:
    """A context manager with an HDF5 file, opened for reading. Raises UserError if it is damaged or another format."""
    with extra():
        import h5py
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DAMAGED as error:
        why = f"it is cut short, damaged or another format ({reason(error)})"
        raise UserError(f"{path} cannot be read as HDF5: {why}") from error


def check_link(group: Any, name: str, path: Path) -> None:
    """Raises UserError if the item `name` of an HDF5 group, or one below it, is kept in another place or file."""
    import h5py

    item = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if item is None or (isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)):
        place = f"{group.name.rstrip('/')}/{name}"
        raise UserError(f"{path}: {place} is a link to another place; copy the data into the file")
    for inner in item if isinstance(item, h5py.Group) else ():
        check_link(item, inner, path)


def _layout(file: Any, path: Path) -> _Layout:
    import h5py

    if any(str(name).startswith("episode_") for name in file):
        raise UserError(f"{path} is the data of a Minari dataset; name its folder: {path.parent}")
    missing = [name for name in ("observations", *NEEDED) if name not in file]
    if missing:
        held = ", ".join(sorted(file)[:8]) or "nothing"
        raise UserError(f"{path} is not in D4RL's layout: it has no array {missing[0]!r}; it holds {held}")
    names = [name for name in ("observations", "next_observations", "timeouts", *NEEDED) if name in file]
    for name in names:
        check_link(file, name, path)
    obs, then = _keyed(file["observations"], path), {}
    if "next_observations" in file:
        then = _keyed(file["next_observations"], path)
        forms = [{key: (data.dtype, data.shape[1:]) for key, data in part.items()} for part in (obs, then)]
        if forms[0] != forms[1]:
            raise UserError(f"{path}: next_observations are {_text(forms[1])}, observations are {_text(forms[0])}")
    arrays = {**{f"observations {key}".strip(): data for key, data in obs.items()},
              **{f"next_observations {key}".strip(): data for key, data in then.items()},
              **{name: file[name] for name in (*NEEDED, "timeouts") if name in file}}  # fmt: skip
    for name, data in arrays.items():
        flat = name in ("rewards", "terminals", "timeouts")
        if not isinstance(data, h5py.Dataset) or not data.shape or (flat and data.ndim != 1):
            raise UserError(f"{path}: {name} is not an array with one entry for each transition")
    lengths = {name: len(data) for name, data in arrays.items()}
    rows = lengths["actions"]
    for name, length in lengths.items():
        if length != rows:
            raise UserError(f"{path}: {name} has {length:,} entries, actions have {rows:,}")
    if not rows:
        raise UserError(f"{path}: it has no rows")
    return _Layout(obs, then, rows)


def _flags(file: Any, name: str, path: Path) -> np.ndarray:
    values = file[name][:]
    if values.dtype.kind not in "biuf" or not ((values == 0) | (values == 1)).all():
        raise UserError(f"{path}: {name} is {values.dtype} with values other than 0 and 1")
    return values.astype(bool)


def _keyed(data: Any, path: Path) -> dict[str, Any]:
    import h5py

    if isinstance(data, h5py.Dataset):
        return {"": data}
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    data.visititems(visit)
    if not found:
        raise UserError(f"{path}: {data.name} holds no arrays")
    return found


def _text(forms: dict[str, tuple]) -> str:
    return ", ".join(f"{key} {dtype} {list(shape)}".strip() for key, (dtype, shape) in forms.items())


def _understood(file: Any, layout: _Layout, path: Path, reading: Reading) -> tuple[Spec, list[str], _Plan]:
    """Returns the spec of a file, notes on what was inferred, and a plan without its cuts."""
    nested = "" not in layout.obs
    if ATTRIBUTE in file.attrs:
        spec = from_json(str(file.attrs[ATTRIBUTE]), str(path))
        plan = _Plan(readers_of(spec), lambda array, where: from_stored(spec.action, array, where), nested, [], False)
        return spec, [], plan
    blocks = (file["actions"][start : start + BLOCK] for start in range(0, layout.rows, BLOCK))
    actions = infer_actions(blocks, reading, str(path))
    forms = {key: (data.dtype, data.shape[1:]) for key, data in layout.obs.items()}
    observation: spaces.Space = infer_observations(forms, str(path))
    observation = observation if nested else observation[""]  # type: ignore[index]
    form = form_of(observation, actions.space, str(path))
    notes = ["assumed: observations have the dtype and shape of the arrays, without bounds", actions.note]
    return form.spec, notes, _Plan(form.keys, actions.vectors, nested, [], False)


def _cuts(last: np.ndarray) -> list[Cut]:
    edges = [0, *(np.flatnonzero(last) + 1).tolist()]
    cuts = [Cut(start, stop, True, True) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    return cuts + ([Cut(edges[-1], len(last), True, False)] if edges[-1] < len(last) else [])


def _rows(cut: Cut, drop: bool) -> int:
    return cut.stop - cut.start + (1 if cut.last and not drop else 0)


def _unmarked(layout: _Layout, last: np.ndarray, path: Path) -> list[Fault]:
    """Returns a Fault if an episode ends without a mark: what follows is not what the transition led to."""
    for key, then in layout.next_obs.items():
        obs = layout.obs[key]
        size = max(1, min(BLOCK, MOST_BYTES // 8 // max(1, obs[:1].nbytes)))
        for start in range(0, layout.rows - 1, size):
            stop = min(start + size, layout.rows - 1)
            after, before = obs[start + 1 : stop + 1], then[start:stop]
            same = (after == before) | ((after != after) & (before != before))
            jumps = ~same.reshape(stop - start, -1).all(1) & ~last[start:stop]
            if jumps.any():
                row = start + int(np.argmax(jumps))
                what = (
                    "differs from the observation of the next transition, although neither terminals nor timeouts end "
                    "an episode there"
                )
                return [Fault(path.name, what, row, f"next_observations {key}".strip())]
    return []


def _scan(path: Path, plan: _Plan) -> Iterator[Found]:
    with opened_hdf5(path) as file:
        layout = _layout(file, path)
        number = 0
        for cut in plan.cuts:
            name = f"episode {number}" if cut.first and cut.last else f"part of episode {number}"
            number += cut.last
            try:
                recorded = _recorded(file, layout, plan, cut, name)
            except DAMAGED as error:
                yield Found(None, (Fault(name, f"cannot be read: {reason(error)}"),))
                continue
            yield checked(plan.readers, recorded)


def _recorded(file: Any, layout: _Layout, plan: _Plan, cut: Cut, name: str) -> Recorded:
    """Reads one cut. Transition t of it is the action of row t, and the reward and the terminal of row t + 1."""
    start, stop, first, last = cut
    whole = last and not plan.drop
    rows = _rows(cut, plan.drop)
    obs = {}
    for key, data in layout.obs.items():
        obs[key] = data[start:stop]
        if whole:
            obs[key] = np.concatenate([obs[key], layout.next_obs[key][stop - 1 : stop]])
    vectors = plan.vectors(file["actions"][start:stop], name)
    action = np.zeros((rows, vectors.array.shape[1]), np.float32)
    chosen = stop - start - (1 if last and plan.drop else 0)
    action[:chosen] = vectors.array[:chosen]
    rewards = file["rewards"][max(0, start - (not first)) : stop]
    reward = np.concatenate([np.zeros(1, rewards.dtype), rewards]) if first else rewards
    is_first, is_last, is_terminal = np.zeros((3, rows), bool)
    is_first[0], is_last[-1] = first, last
    is_terminal[-1] = whole and bool(file["terminals"][stop - 1])
    key = plan.readers[0].key  # of a file with one array, which the attribute of this program names
    values = obs if plan.nested else {key: obs[""]} if plan.readers[0].path else obs[""]
    return Recorded(name, values, action, reward[:rows], is_first, is_last, is_terminal, vectors.faults)


def _transitions(spec: Spec, episode: Episode) -> dict[str, np.ndarray]:
    """Returns the arrays of an episode in the layout of the file. Raises UserError if they do not hold it."""
    refuse_unwritable(episode, "hdf5")
    last = np.zeros(episode.rows - 1, bool)
    last[-1] = True
    plain = set(spec.obs) in ({"vector"}, {"image"})
    names = {key: "" if plain else f"/{key}" for key in spec.obs}
    return {
        **{f"observations{names[key]}": values[:-1] for key, values in episode.obs.items()},
        **{f"next_observations{names[key]}": values[1:] for key, values in episode.obs.items()},
        "actions": to_stored(spec.action, episode.action[:-1]),
        "rewards": episode.reward[1:],
        "terminals": last & episode.is_terminal[-1],
        "timeouts": last & ~episode.is_terminal[-1],
    }


def refuse_unwritable(episode: Episode, form: str) -> None:
    """Raises UserError if an episode cannot be stored as transitions: without steps, or with an early reward."""
    if episode.rows < 2:
        raise UserError(f"{episode.name} has no step, and {form} stores steps; npz can hold it")
    if episode.reward[0]:
        raise UserError(
            f"{episode.name} has the reward {episode.reward[0]:g} with its first observation, and {form} has no place "
            "for it; npz can hold it"
        )


def _append(file: Any, arrays: dict[str, np.ndarray]) -> None:
    for name, values in arrays.items():
        if name not in file:
            row = max(1, values[:1].nbytes)
            chunk = (max(1, min(4096, CHUNK // row)), *values.shape[1:])
            file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=chunk)
            continue
        data = file[name]
        length = len(data)
        data.resize(length + len(values), axis=0)
        data[length:] = values
