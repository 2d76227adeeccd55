"""Where dreams begin: resets of the environment, recorded rows, or a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.apps.acting import opened
from dreamer.apps.imagine import files
from dreamer.config import Config
from dreamer.data.episodes import Data, Episode
from dreamer.errors import UserError
from dreamer.runtime.env.actions import random_actions
from dreamer.runtime.env.rows import EnvRows, empty_step
from dreamer.spaces import MASK, Spec

SEED = 3_000_017  # keeps the seeds apart from those of training, of evaluations and of rankings
FOLLOWED = 30  # rows that should follow a random row in its episode


class Starts(NamedTuple):
    """N places where dreams begin.

    obs {k: [N, C, ..]}, prev_action [N, C, A], is_first [N, C]: the rows that the model observes, in the order of time;
        a dream begins after the last one, and rows before the last one with is_first set do not count
    recorded [N, S, A]: the actions that were taken after the starts; None: there are none
    future(actions [N, S, A]) -> the true frames after the starts under these actions, N arrays [S' <= S, H, W, C], or
        None if they are unknown
    """

    obs: Mapping[str, np.ndarray]
    prev_action: np.ndarray
    is_first: np.ndarray
    recorded: np.ndarray | None
    future: Callable[[np.ndarray], list[np.ndarray] | None]


def repeated(starts: Starts, count: int) -> Starts:
    """Returns each start `count` times in a row. The result knows no recorded actions and no future."""
    obs = {key: np.repeat(value, count, 0) for key, value in starts.obs.items()}
    prev_action, is_first = (np.repeat(x, count, 0) for x in (starts.prev_action, starts.is_first))
    return Starts(obs, prev_action, is_first, None, lambda actions: None)


# --- resets -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def from_resets(config: Config, image: str, dreams: int, seed: int) -> Iterator[Starts]:
    """Resets new environments, which then wait for the actions of the dreams. Closes them at the end.

    image: the key of the frames. Raises UserError if an environment has several agents.
    """
    with contextlib.ExitStack() as stack:
        worlds = [stack.enter_context(opened(config, config.env, SEED + seed + n)) for n in range(dreams)]
        steps = [empty_step(rows.spec, 1) for rows in worlds]
        for rows, step in zip(worlds, steps, strict=True):
            rows.turn(step, 0)

        def future(actions: np.ndarray) -> list[np.ndarray]:
            return [follow(*one, image) for one in zip(worlds, steps, actions, strict=True)]

        spec = worlds[0].spec
        obs = {key: np.stack([step.obs[key] for step in steps]) for key in spec.obs}
        blank = np.zeros((dreams, 1, spec.action_width), np.float32)
        yield Starts(obs, blank, np.ones((dreams, 1), bool), None, future)


def follow(rows: EnvRows, step: Any, actions: np.ndarray, image: str) -> np.ndarray:
    """Steps an environment with actions [S, A] until its episode ends. Returns the frames [S' <= S, H, W, C].

    step: the last row of the environment. An action that the action mask forbids ends the future too.
    """
    frames = [np.zeros((0, *rows.spec.obs[image].shape), rows.spec.obs[image].dtype)]
    for action in actions:
        onehots = action[: rows.spec.action.onehots]
        if step.is_last[0] or (rows.spec.masked and (onehots > step.obs[MASK][0]).any()):
            break
        step.action[0] = action
        rows.turn(step, 0)
        frames.append(step.obs[image].copy())
    return np.concatenate(frames)


# --- recorded rows ----------------------------------------------------------------------------------


def from_rows(data: Data, rows: Sequence[int], context: int, steps: int, image: str, seed: int) -> Starts:
    """Begins dreams at rows of a dataset, given by their numbers over all of its episodes.

    The model observes up to `context` rows of the episode; the last one is the start. After the end of an episode,
    random actions follow the recorded ones.
    Raises UserError if there is no such row, if it is the last of its episode, or if the dataset has a fault.
    """
    found: dict[int, _Window] = {}
    total = 0
    for episode in data.read():
        for row in sorted(set(rows)):
            if total <= row < total + episode.rows:
                found[row] = _window(episode, row - total, context, steps, image, row)
        total += episode.rows
        if len(found) == len(set(rows)):
            break
    if missing := sorted(set(rows) - set(found)):
        raise UserError(f"--start row:{missing[0]}: {data.path} has {total:,} rows, from 0 to {total - 1}")
    windows = [found[row] for row in rows]
    length, spec = max(len(one.prev_action) for one in windows), data.spec
    random = random_actions(spec.action, np.random.default_rng(seed), len(rows) * steps)
    recorded = random.reshape(len(rows), steps, spec.action_width)
    for place, one in zip(recorded, windows, strict=True):
        place[: len(one.action)] = one.action

    def future(actions: np.ndarray) -> list[np.ndarray] | None:
        pairs = zip(windows, actions, strict=True)
        same = all(np.array_equal(one.action, taken[: len(one.action)]) for one, taken in pairs)
        return [one.frames for one in windows] if same else None

    return Starts(
        {key: np.stack([_padded(one.obs[key], length) for one in windows]) for key in spec.obs},
        np.stack([_padded(one.prev_action, length) for one in windows]),
        np.stack([np.arange(length) <= length - len(one.prev_action) for one in windows]),
        recorded,
        future,
    )


class _Window(NamedTuple):
    """obs {k: [C', ..]}, prev_action [C', A]: up to the start | action [S', A], frames [S', H, W, C]: after it"""

    obs: Mapping[str, np.ndarray]
    prev_action: np.ndarray
    action: np.ndarray
    frames: np.ndarray


def _window(episode: Episode, at: int, context: int, steps: int, image: str, row: int) -> _Window:
    if at == episode.rows - 1:
        raise UserError(f"--start row:{row} is the last row of its episode, {episode.name}: nothing follows it")
    begin, end = max(0, at + 1 - context), min(episode.rows - 1, at + steps)
    before = np.concatenate([np.zeros_like(episode.action[:1]), episode.action[begin:at]])
    obs = {key: x[begin : at + 1].copy() for key, x in episode.obs.items()}
    return _Window(obs, before, episode.action[at:end].copy(), episode.obs[image][at + 1 : end + 1].copy())


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """Returns rows [C', ..] as [length, ..], with zeros before them."""
    return np.concatenate([np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype), rows])


def random_rows(data: Data, count: int, steps: int, seed: int) -> list[int]:
    """Draws rows of a dataset. If possible, each is followed by at least min(steps, 30) rows of its episode.

    Returns their numbers over all episodes, sorted. Raises UserError if no row is followed by another.
    """
    lengths = [episode.rows for episode in data.read()]
    begins = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    after = min(steps, FOLLOWED, max(lengths, default=0) - 1)
    if after < 1:
        raise UserError(f"--start rows: {data.path} has no episode of two rows or more")
    candidates = np.concatenate(
        [np.arange(begin, begin + max(0, length - after)) for begin, length in zip(begins, lengths, strict=False)]
    )
    chosen = np.random.default_rng(seed).choice(candidates, count, replace=count > len(candidates))
    return sorted(map(int, chosen))


# --- a file -----------------------------------------------------------------------------------------


def from_file(file: str, spec: Spec, dreams: int) -> Starts:
    """Begins all dreams after the observations of a file, whose future is unknown. Errors are those of `read_start`."""
    obs, actions = files.read_start(file, spec)
    prev = np.concatenate([np.zeros((1, spec.action_width), np.float32), actions])
    first = np.arange(len(prev)) == 0

    def repeated(x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x, (dreams, *x.shape))

    known = {key: repeated(x) for key, x in obs.items()}
    return Starts(known, repeated(prev), repeated(first), None, lambda actions: None)
