"""Reads a dataset once and describes what is in it: `describe`. Imports no jax."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dreamer.data.episodes import Data, Episode, Fault
from dreamer.spaces import Action, Space, Spec

MOST_FAULTS = 1000  # faults that are kept; all are counted
_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 20
BEYOND = 1 + 1e-4  # a number of an action above this is more than the agent can choose


class Description(NamedTuple):
    """What is in a dataset.

    episodes: those with a beginning and an end | pieces: the others | rows: of both
    terminal: the number of episodes with a true end
    scores [episodes], lengths [episodes]: the return and the steps of each whole episode
    choices: for each one-hot of the action, how often each class was chosen | numbers: for each number of the action,
    its least, mean and largest value, and the share of values beyond [-1, 1] | missing: observations that are -inf
    faults: the first MOST_FAULTS | fault_count: all of them | notes: as in `Data`
    frames [n, H, W, C] uint8 or None: some images, for a picture
    """

    format: str
    path: str
    spec: Spec
    episodes: int
    pieces: int
    rows: int
    terminal: int
    scores: np.ndarray
    lengths: np.ndarray
    choices: list[np.ndarray]
    numbers: list[tuple[float, float, float, float]]
    missing: int
    faults: list[Fault]
    fault_count: int
    notes: list[str]
    frames: np.ndarray | None

    @property
    def sound(self) -> bool:
        """Whether there are no faults."""
        return not self.fault_count


def describe(data: Data, frames: int = 0) -> Description:
    """Reads all of a dataset, one episode at a time. frames: how many images to keep, one from each first episode."""
    tally = _Tally(data, frames)
    for found in data.scan():
        tally.fault(found.faults)
        tally.notes.update(dict.fromkeys(found.notes))
        if found.episode is not None:
            tally.add(found.episode)
    return tally.description()


def lines(found: Description, most: int = 20) -> Iterator[str]:
    """Yields the lines that `dreamer data` prints. most: how many faults are listed."""
    spec = found.spec
    yield f"{found.format}  {found.path}"
    for key, space in spec.obs.items():
        yield f"  observation {key:<12} {_space(space)}"
    yield f"  action      {'':<12} {spec.action.text}"
    more = f", and {found.pieces:,} pieces without a beginning or an end" if found.pieces else ""
    yield f"  episodes    {found.episodes:,}{more}; {found.rows:,} rows"
    if found.episodes:
        scores, lengths = found.scores, found.lengths
        yield (f"  returns     mean {scores.mean():.4g}, std {scores.std():.4g}, worst {scores.min():.4g}, "
               f"best {scores.max():.4g}  {histogram(scores)}")  # fmt: skip
        yield (f"  steps       mean {lengths.mean():.4g}, shortest {lengths.min():,}, longest {lengths.max():,}"
               f"  {histogram(lengths)}")  # fmt: skip
        others = found.episodes - found.terminal
        yield f"  true ends   {found.terminal:,}{f'; {others:,} episodes end by a time limit' if others else ''}"
    yield from (f"  {line}" for line in _coverage(spec.action, found))
    if found.missing:
        yield f"  note        {found.missing:,} numbers of observations are -inf, which marks them as missing"
    yield from (f"  note        {note}" for note in found.notes)
    yield from (f"FAULT  {fault}" for fault in found.faults[:most])
    if found.fault_count > most:
        yield f"       and {found.fault_count - most:,} more faults"
    yield "sound" if found.sound else f"{found.fault_count:,} fault{'s' if found.fault_count > 1 else ''}"


def values(found: Description) -> dict[str, Any]:
    """Returns the description as JSON values."""
    scores, lengths = found.scores, found.lengths
    some = bool(found.episodes)
    return {
        "format": found.format, "path": found.path,
        "observations": {key: _space(space) for key, space in found.spec.obs.items()},
        "action": found.spec.action.text, "episodes": found.episodes, "pieces": found.pieces, "rows": found.rows,
        "returns": _four(scores) if some else None, "steps": _four(lengths) if some else None,
        "terminal_share": found.terminal / found.episodes if some else None,
        "choices": [[int(n) for n in counts] for counts in found.choices],
        "numbers": [dict(zip(("min", "mean", "max", "beyond"), four, strict=True)) for four in found.numbers],
        "missing": found.missing, "notes": found.notes, "sound": found.sound, "fault_count": found.fault_count,
        "faults": [fault._asdict() for fault in found.faults],
    }  # fmt: skip


def histogram(numbers: np.ndarray) -> str:
    """Returns a line of bars from the least to the largest of the numbers [n]; "" if they are all the same."""
    if not len(numbers) or numbers.min() == numbers.max():
        return ""
    counts, _ = np.histogram(numbers, _BINS)
    levels = np.ceil(counts / counts.max() * (len(_BARS) - 1)).astype(int)
    return "|" + "".join(_BARS[level] for level in levels) + "|"


class _Tally:
    """Adds up what `describe` finds."""

    def __init__(self, data: Data, frames: int):
        self.data, action = data, data.spec.action
        self.notes = dict.fromkeys(data.notes)
        self._faults: list[Fault] = []
        self._fault_count = self._rows = self._pieces = self._terminal = self._missing = self._numbered = 0
        self._scores: list[float] = []
        self._lengths: list[int] = []
        self._choices = [np.zeros(size, np.int64) for size in action.classes]
        self._least, self._most = np.full(action.continuous, np.inf), np.full(action.continuous, -np.inf)
        self._sum, self._beyond = np.zeros(action.continuous), np.zeros(action.continuous, np.int64)
        self._digests: dict[bytes, str] = {}
        self._frames: list[np.ndarray] = []
        self._wanted = frames
        self._image = next((key for key, space in data.spec.obs.items() if space.image), None)
        self.fault(data.faults)

    def fault(self, faults: tuple[Fault, ...]) -> None:
        self._fault_count += len(faults)
        self._faults += faults[: MOST_FAULTS - len(self._faults)]

    def add(self, episode: Episode) -> None:
        self._rows += episode.rows
        if episode.whole:
            self._scores.append(episode.score)
            self._lengths.append(episode.rows - 1)
            self._terminal += int(episode.is_terminal[-1])
        else:
            self._pieces += 1
        self._add_actions(episode.action[: episode.rows - int(episode.is_last[-1])])
        self._missing += sum(int(np.isneginf(x).sum()) for x in episode.obs.values() if x.dtype.kind == "f")
        self._add_digest(episode)
        if self._image and len(self._frames) < self._wanted:
            self._frames.append(episode.obs[self._image][episode.rows // 2])

    def _add_actions(self, actions: np.ndarray) -> None:
        begin = 0
        for counts in self._choices:
            counts += actions[:, begin : begin + len(counts)].sum(0).astype(np.int64)
            begin += len(counts)
        numbers = actions[:, begin:]
        if numbers.size:
            self._least, self._most = np.minimum(self._least, numbers.min(0)), np.maximum(self._most, numbers.max(0))
            self._sum += numbers.sum(0, dtype=np.float64)
            self._beyond += (np.abs(numbers) > BEYOND).sum(0)
            self._numbered += len(numbers)

    def _add_digest(self, episode: Episode) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for array in (*episode.obs.values(), *episode[2:]):
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.size else b"")
        first = self._digests.setdefault(digest.digest(), episode.name)
        if first is not episode.name:
            self.fault((Fault(episode.name, f"is a duplicate of {first}: all its rows are the same"),))

    def description(self) -> Description:
        count = max(1, self._numbered)
        numbers = [] if not self._numbered else list(zip(
            self._least.tolist(), (self._sum / count).tolist(), self._most.tolist(), (self._beyond / count).tolist(),
            strict=True,
        ))  # fmt: skip
        if not self._rows and not self._fault_count:
            self.fault((Fault(self.data.path, "has no rows"),))
        frames = None if not self._frames else np.stack(self._frames)
        if frames is not None and frames.dtype != np.uint8:
            low, high = self.data.spec.obs[self._image or ""].ends
            frames = ((frames - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)
        return Description(
            self.data.format, self.data.path, self.data.spec, len(self._scores), self._pieces, self._rows,
            self._terminal, np.array(self._scores), np.array(self._lengths, np.int64), self._choices, numbers,
            self._missing, self._faults, self._fault_count, list(self.notes), frames,
        )  # fmt: skip


def _space(space: Space) -> str:
    text = f"{space.dtype} {list(space.shape)}"
    if space.classes:
        return f"{text}, {space.classes} classes"
    return f"{text}, image" if space.image else text


def _coverage(action: Action, found: Description) -> Iterator[str]:
    for number, counts in enumerate(found.choices):
        total = max(1, int(counts.sum()))
        name = "choices" if len(found.choices) == 1 else f"choice {number}"
        if len(counts) <= 10:
            yield f"{name:<11} " + ", ".join(f"{index}: {count / total:.0%}" for index, count in enumerate(counts))
        never = np.flatnonzero(counts == 0)
        if len(counts) > 10:
            yield f"{name:<11} {len(counts) - len(never)} of {len(counts)} were chosen"
        if len(never):
            listed = ", ".join(map(str, never[:10])) + (" .." if len(never) > 10 else "")
            yield f"{'':<11} never chosen: {listed}"
    for number, (least, mean, most, beyond) in enumerate(found.numbers[:10]):
        more = f", {beyond:.1%} beyond what the agent can choose" if beyond else ""
        yield f"number {number:<4} {least:.3g} to {most:.3g}, mean {mean:.3g}{more}"
    if len(found.numbers) > 10:
        yield f"{'':<11} and {len(found.numbers) - 10} more numbers"


def _four(numbers: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(numbers.mean()), "std": float(numbers.std()), "min": float(numbers.min()),
        "max": float(numbers.max()),
    }  # fmt: skip
