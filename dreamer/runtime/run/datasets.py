"""The datasets that a run learns from: whether its settings allow them, what is in them, and where their rows go.

A run with `updates` learns from them only. Any other run with `data` draws a share of each batch from them. Either way
the rows are copied into the replay at the start, and from there into the run directory: a run that is resumed does not
need its datasets again. Imports no jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dreamer.config import NO_ENV, Config
from dreamer.data.episodes import Data, Reading
from dreamer.data.filling import fill
from dreamer.data.matching import check_spec
from dreamer.data.opening import open_data
from dreamer.errors import UserError
from dreamer.runtime.replay.capacity import Capacity, in_words
from dreamer.runtime.replay.replay import Replay
from dreamer.spaces import Spec


class Datasets(NamedTuple):
    """Datasets of one form, read once from beginning to end.

    lengths: the rows of each episode, in order | numbers {metric: value}: what is logged, see `_numbers`
    """

    every: tuple[Data, ...]
    spec: Spec
    lengths: tuple[int, ...]
    numbers: Mapping[str, float]

    @property
    def rows(self) -> int:
        """Returns the number of rows of all datasets."""
        return sum(self.lengths)

    @property
    def text(self) -> str:
        """Returns a line that says what the datasets hold."""
        best, mean = (self.numbers.get(f"data/return_{name}") for name in ("best", "mean"))
        returns = "" if best is None else f", return {mean:.1f} on average and {best:.1f} at best"
        names = ", ".join(data.path for data in self.every)
        return f"data: {len(self.lengths):,} episodes, {self.rows:,} rows{returns}, from {names}"


def check(config: Config, population: bool = False) -> None:
    """Raises UserError if the settings about datasets contradict each other. population: whether there are members."""
    if config.updates and not config.data:
        raise UserError(
            f"updates {config.updates}: without env_steps a run learns from datasets, but data is empty; name a "
            "dataset with --data, or give env_steps in place of updates"
        )
    if config.env == NO_ENV and not config.updates:
        raise UserError(f"env {NO_ENV}: a run without an environment learns from datasets; give --data and --updates")
    if not config.data:
        return
    if not config.updates and not config.replay.data_share:
        raise UserError("replay.data_share 0: no batch has rows of data; raise it, or leave out data")
    for what, holds in {
        "a population": population,
        f"several processes (devices.coordinator {config.devices.coordinator})": config.devices.coordinator,
        "loop device": config.loop == "device",
    }.items():
        if holds:
            raise UserError(f"data: {what} cannot learn from datasets; only a single run on the host can")


def read(config: Config, spec: Spec | None, whose: str) -> Datasets:
    """Opens the datasets of a config and reads them once.

    spec: the one that they must have; None: that of the first dataset
    whose: what has `spec`, in the words of an error
    Raises UserError if one is missing or at fault, if their spaces differ, or if no sequence fits into their rows.
    """
    with _settings_named():
        every = tuple(open_data(path, config.reading) for path in config.data)
    if spec is None:
        spec, whose = every[0].spec, f"the first dataset, {every[0].path}"
    if spec.agents > 1:
        raise UserError(f"data: {whose} has {spec.agents} agents; datasets hold the rows of one")
    for data in every:
        _check_spaces(data, spec, whose, config)
    lengths: list[int] = []
    scores: list[float] = []
    with _settings_named():
        for episode in itertools.chain.from_iterable(data.read() for data in every):
            lengths.append(episode.rows)
            if episode.whole:
                scores.append(episode.score)
    found = Datasets(every, spec, tuple(lengths), _numbers(lengths, scores))
    needed = config.replay.context + config.replay.batch_length
    if found.rows < needed:
        raise UserError(
            f"data: {', '.join(config.data)} has {found.rows} rows, and one sequence (replay.batch_length + "
            f"replay.context) needs {needed}; lower replay.batch_length"
        )
    return found


@contextlib.contextmanager
def _settings_named() -> Iterator[None]:
    """A context manager in which an error names the settings of a run in place of the flags of `dreamer data`."""
    try:
        yield
    except UserError as error:
        flags = "|".join(item.name.replace("_", "-") for item in dataclasses.fields(Reading))
        raise UserError(re.sub(rf"--(?=({flags})\b)", "--reading.", str(error))) from error


def _check_spaces(data: Data, spec: Spec, whose: str, config: Config) -> None:
    try:
        check_spec(data, spec, whose)
    except UserError as error:
        where = f"; name the environment of the data with --env, or --env {NO_ENV}" if config.updates else ""
        raise UserError(f"data: {error}{where}") from None


def _numbers(lengths: Sequence[int], scores: Sequence[float]) -> dict[str, float]:
    """Returns {metric: value}; without whole episodes there are no returns."""
    returns = {"data/return_best": max(scores), "data/return_mean": float(np.mean(scores))} if scores else {}
    return {"data/episodes": float(len(lengths)), "data/rows": float(sum(lengths)), **returns}


def rings_for(lengths: Sequence[int], size: Capacity) -> int:
    """Returns the number of rings that hold episodes of these lengths, each episode in one ring, filled as in `fill`.

    size: that of the replay, whose rings all have one length. Raises UserError if an episode is longer than a ring, or
    if the rings of the replay and of the datasets need more memory than is free.
    """
    most = size.rows_per_stream
    if max(lengths) > most:
        raise UserError(
            f"data: an episode has {max(lengths):,} rows, and each ring of the replay {most:,}; raise {size.bound}"
        )
    count = -(-sum(lengths) // most)
    while not _fit(lengths, count, most):
        count += 1
    needed = (size.streams + count) * most * size.row_bytes
    if size.free_bytes is not None and needed > size.free_bytes:
        raise UserError(
            f"data: the rows of the datasets and of the run need {in_words(needed)} of memory, but only "
            f"{in_words(size.free_bytes)} are free; lower replay.capacity_steps"
        )
    return count


def _fit(lengths: Sequence[int], count: int, most: int) -> bool:
    held = np.zeros(count, np.int64)
    for length in lengths:
        held[held.argmin()] += length
    return bool(held.max() <= most)


def fill_all(replay: Replay, datasets: Datasets, latent: Mapping[str, np.ndarray]) -> None:
    """Fills the old rings of a replay, or all rings if none is old, with the rows of all datasets.

    latent: as in `fill`. No sequence is queued for training, because the rows of a dataset are not new experience.
    Raises UserError as `fill` does.
    """
    first = replay.streams if len(replay.counts) > replay.streams else 0
    for data in datasets.every:
        fill(replay, data, latent, first=first)
    replay.queue.clear()
