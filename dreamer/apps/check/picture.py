"""Draws a picture that shows observations as the environment returns them and as the agent sees them.

This module imports no jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.apps.check.answers import Answer
from dreamer.apps.check.verdicts import Verdict, note, ok
from dreamer.apps.check.walk import chooser
from dreamer.apps.check.watch import Watch
from dreamer.errors import UserError
from dreamer.runtime.env.observations import Reader, find
from dreamer.runtime.env.rows import EnvRows, empty_step
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.log.images import to_bytes
from dreamer.spaces import Space

ROWS = 128  # rows that are shown; the actions are random
MOMENTS = 8  # rows among these that are shown as pictures
LINES = 8  # a key with at most this many numbers is drawn as lines, any other key as a strip of colors
KEYS = 12  # most keys of vectors and classes that are shown
RAW, SEEN = "as the environment returns it", "as the agent sees it"


class Story(NamedTuple):
    """The T rows that the picture of `dreamer check` shows.

    raw {key: [T, ..]}: the values of the environment | seen {key: [T, ..]}: the same values as the agent sees them
    starts: the rows in which episodes begin | drawn {row: [H, W, 3]}: the frames that render() returned
    """

    raw: dict[str, np.ndarray]
    seen: dict[str, np.ndarray]
    starts: list[int]
    drawn: dict[int, np.ndarray]


def check(env: Any, path: str, watch: Watch, seed: int, action_repeat: int) -> list[Verdict]:
    """Takes random steps, and draws their observations into the PNG file `path`.

    Raises EnvFailed if the environment fails, and UserError if the file cannot be written.
    """
    watch.place = "the rows of the picture"
    rows = EnvRows(env, seed=seed, action_repeat=action_repeat)
    try:
        story = record(rows, seed)
    except UserError as error:
        return [note("picture", f"not drawn, the agent gets no rows: {error}")]
    spaces = rows.spec.obs
    blocks = [key for key in spaces if spaces[key].image] + [key for key in spaces if not spaces[key].image][:KEYS]
    draw(Path(path), story, {key: spaces[key] for key in blocks})
    return [ok("picture", f"{path}: {ROWS} rows, raw and as the agent sees them")]


def record(rows: EnvRows, seed: int) -> Story:
    """Takes random actions and records ROWS rows."""
    out, choose = empty_step(rows.spec, 1), chooser(rows.env, seed)
    raw: dict[str, list[np.ndarray]] = {reader.key: [] for reader in rows.readers}
    seen: dict[str, list[np.ndarray]] = {reader.key: [] for reader in rows.readers}
    starts, drawn, before = [], {}, Answer(None)
    for i in range(ROWS):
        answer = rows.ask(choose(before))
        before = Answer(answer[0], info=answer[4])
        for reader in rows.readers:
            raw[reader.key].append(_raw(reader, find(reader, answer[0])))
        rows.accept(answer, out, 0)
        for key, array in out.obs.items():
            seen[key].append(array[0].copy())
        if out.is_first[0]:
            starts.append(i)
        if i in moments(ROWS) and (frame := rows.render()) is not None:
            drawn[i] = frame
    raws, rows_seen = ({key: np.stack(arrays) for key, arrays in side.items()} for side in (raw, seen))
    return Story(raws, rows_seen, starts, drawn)


def _raw(reader: Reader, value: Any) -> np.ndarray:
    """Returns a copy of a value. An image gets the shape [H, W, C]: stacked images are joined along the channels."""
    array = np.array(value)
    if not reader.space.image or array.shape != reader.shape:
        return array
    return np.array(array.transpose(reader.axes) if reader.axes else array).reshape(reader.space.shape)


def moments(rows: int) -> list[int]:
    """Returns the indices of the rows whose images are shown: MOMENTS of `rows`, evenly spaced."""
    return np.linspace(0, rows - 1, MOMENTS).astype(int).tolist()


def draw(path: Path, story: Story, spaces: dict[str, Space]) -> None:
    """Draws the keys in `spaces` and writes the PNG file `path`.

    An image key is shown at a few rows, raw above and as the agent sees it below. Any other key is shown over time, raw
    on the left and as the agent sees it on the right.
    """
    from matplotlib.figure import Figure

    heights = [3.45 if space.image else 2.0 for space in spaces.values()]
    if story.drawn:
        heights.insert(0, 1.75)
    figure = Figure(figsize=(13.0, sum(heights) + 0.5), dpi=100, layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0].tolist()
    if story.drawn:
        _strip(parts.pop(0), "what render() draws", [("", story.drawn)])
    for part, (key, space) in zip(parts, spaces.items(), strict=True):
        raw, seen = story.raw[key], story.seen[key]
        if space.image:
            sides = [
                (name, {i: to_bytes(space, side[i]) for i in moments(len(raw))})
                for name, side in (("raw", raw), ("seen", seen))
            ]
            _strip(part, f"{key}: raw {_kind(raw)}, seen {_kind(seen)}, scaled to -0.5..0.5", sides)
        else:
            _over_time(part, key, raw, seen, space, story.starts)
    figure.suptitle(f"{ROWS} rows of random actions; an episode begins at each dotted line", fontsize=11)
    write_whole(path, lambda partial: figure.savefig(partial, format="png"))


def _strip(part: Any, title: str, sides: Sequence[tuple[str, dict[int, np.ndarray]]]) -> None:
    part.suptitle(title, x=0.01, ha="left", fontsize=10)
    axes = part.subplots(len(sides), MOMENTS, squeeze=False)
    for line, (name, pictures) in zip(axes, sides, strict=True):
        for axis, (row, picture) in zip(line, pictures.items(), strict=True):
            axis.imshow(_flat(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"row {row}", fontsize=8, pad=2)
        line[0].set_ylabel(name, fontsize=9)


def _flat(picture: np.ndarray) -> np.ndarray:
    """Returns an image as [H, W] or [H, W, 3]. Other numbers of channels are placed side by side: [H, C * W]."""
    if picture.ndim == 2 or picture.shape[-1] == 3:
        return picture
    return np.concatenate(list(np.moveaxis(picture, -1, 0)), axis=1)


def _over_time(part: Any, key: str, raw: np.ndarray, seen: np.ndarray, space: Space, starts: list[int]) -> None:
    left, right = part.subplots(1, 2)
    flat = seen.reshape(len(seen), -1)
    _numbers(left, raw.reshape(len(raw), -1), space.discrete)
    left.set_title(f"{key}, {RAW}: {_kind(raw)}", fontsize=9, loc="left")
    if space.classes is not None:
        _ones(right, flat, space.classes)
        right.set_title(f"{SEEN}: the ones among {space.width} numbers of {_kind(seen)}", fontsize=9, loc="left")
    else:
        _numbers(right, np.sign(flat) * np.log1p(np.abs(flat)), discrete=False)
        right.set_title(f"{SEEN}: symlog of {_kind(seen)}", fontsize=9, loc="left")
    for axis in (left, right):
        for start in starts:
            axis.axvline(start - 0.5, color="0.4", lw=0.8, ls=":")
        axis.set_xlim(-0.5, len(flat) - 0.5)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("row", fontsize=8, labelpad=1)


def _numbers(axis: Any, table: np.ndarray, discrete: bool) -> None:
    """Draws table [T, n] over time: as n lines if n <= LINES, else as a strip of n rows of colors."""
    if table.shape[1] > LINES:
        image = axis.imshow(table.T, aspect="auto", interpolation="nearest", cmap="viridis", origin="lower")
        axis.figure.colorbar(image, ax=axis, pad=0.01).ax.tick_params(labelsize=8)
        axis.set_ylabel("number", fontsize=8)
        axis.locator_params(axis="y", integer=True)
    else:
        axis.plot(table, lw=1.1, drawstyle="steps-mid" if discrete else "default")
        axis.grid(alpha=0.25)


def _ones(axis: Any, table: np.ndarray, classes: int) -> None:
    """Draws class indices [T, n] as joined one-hots over time, with a dot for each 1. Dots are visible at any size."""
    places = table + classes * np.arange(table.shape[1])
    axis.plot(places, "s", ms=3, color="#1f77b4")
    axis.set_ylim(-0.5, classes * table.shape[1] - 0.5)
    axis.set_ylabel("number", fontsize=8)
    axis.locator_params(axis="y", integer=True)


def _kind(side: np.ndarray) -> str:
    return f"{side.dtype} {list(side.shape[1:])}"
