"""`dreamer data PATH`: says what is in a dataset, and converts it to another format. Imports no jax."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from dreamer.data.converting import convert
from dreamer.data.describing import Description, describe, lines, values
from dreamer.data.episodes import Reading
from dreamer.data.opening import open_data
from dreamer.errors import UserError
from dreamer.fields import between
from dreamer.runtime.files.atomic import disk_error, write_whole

HELP = """Read the dataset PATH whole and say what is in it: spaces, episodes, returns, actions, faults.
- PATH is minari:NAME or its folder, a .hdf5 file as in D4RL, a folder of .npz files, or a run directory.
- Nothing is downloaded, unpickled or run.
- --to converts a dataset without faults; no file is overwritten.
- Exit code: 0 sound, 1 something is wrong with the data, 2 it cannot be read."""
FRAMES = 12


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The flags of `dreamer data`."""

    to: str = ""
    """Convert to minari:NAME, npz:FOLDER or hdf5:FILE; empty: only describe."""
    json: str | None = None
    """File for what was found, such as data.json; - prints it in place of the lines."""
    picture: str = ""
    """File for a picture of returns, lengths and frames, such as data.png; empty: none."""
    faults: Annotated[int, between(0, 1000)] = 20
    """Number of faults to list."""
    actions: Literal["auto", "discrete", "numbers"] = "auto"
    """Kind of the actions, if the file does not say; auto: integers and exact one-hots are discrete."""
    action_range: tuple[float, float] = (-1.0, 1.0)
    """Bounds of the numbers of an action, if the file does not say."""
    missing_last: Literal["refuse", "drop"] = "refuse"
    """Episodes without their true last observation: refuse them, or leave out the last transition of each."""
    action_row: Literal["auto", "before", "after"] = "auto"
    """Whether an action in npz led to the observation of its row or was chosen after it; auto: find out from zeros."""


def describe_data(path: str, flags: DataFlags) -> int:
    """Runs `dreamer data`: prints what is in a dataset and converts it. Returns 0, or 1 if something is wrong with it.

    Raises UserError if it cannot be read, converted or written.
    """
    if flags.action_range[0] >= flags.action_range[1]:
        raise UserError(f"flag --action-range: {flags.action_range[0]:g} is not below {flags.action_range[1]:g}")
    reading = Reading(flags.actions, flags.action_range, flags.missing_last, flags.action_row)
    try:
        data = open_data(path, reading)
    except MemoryError as error:
        raise UserError(f"{path} cannot be read: it claims to be larger than the memory") from error
    found = describe(data, FRAMES if flags.picture else 0)
    text = json.dumps(values(found), indent=1)
    if flags.json == "-":
        print(text)
    else:
        for line in lines(found, flags.faults):
            print(line)
    if flags.json and flags.json != "-":
        file = Path(flags.json).expanduser()
        try:
            file.write_text(text + "\n")
        except OSError as error:
            raise disk_error(error, file) from error
    if flags.picture:
        draw(found, Path(flags.picture).expanduser())
    if flags.to and found.sound:
        done = convert(data, flags.to)
        left = f"; {done.left_out:,} without a beginning or an end are left out" if done.left_out else ""
        if flags.json != "-":
            print(f"wrote {done.episodes:,} episodes to {done.path}{left}")
    elif flags.to:
        raise UserError(f"{path} is not converted, because it has faults, such as: {found.faults[0]}")
    return 0 if found.sound else 1


def draw(found: Description, path: Path) -> None:
    """Draws the returns and lengths of episodes, and frames if there are images. Raises UserError if it cannot."""
    from matplotlib.figure import Figure

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"flag --picture: {path} must end in .png, .svg or .pdf")
    framed = found.frames is not None
    figure = Figure(figsize=(8, 5.4 if framed else 3), layout="constrained")
    halves: Any = figure.subfigures(2, 1) if framed else [figure, None]
    panels: Sequence[Any] = halves[0].subplots(1, 2)
    for axes, numbers, name in zip(panels, (found.scores, found.lengths), ("return", "steps"), strict=True):
        axes.hist(numbers, bins=min(40, max(1, len(numbers))))
        axes.set_xlabel(f"{name} of an episode")
        axes.set_ylabel("episodes")
    if found.frames is not None:
        axes = halves[1].subplots(1, 1)
        axes.imshow(_tiled(found.frames))
        axes.set_axis_off()
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:])
    write_whole(path, lambda half: half.write_bytes(picture.getvalue()))


def _tiled(frames: np.ndarray) -> np.ndarray:
    """Returns frames [n, H, W, C] side by side in two rows, as an image [2 H, n / 2 W, 3]."""
    count, height, width, channels = frames.shape
    columns = -(-count // 2)
    colors = np.repeat(frames[..., :1], 3, -1) if channels < 3 else frames[..., :3]
    grid = np.zeros((2 * columns, height, width, 3), np.uint8)
    grid[:count] = colors
    return grid.reshape(2, columns, height, width, 3).transpose(0, 2, 1, 3, 4).reshape(2 * height, -1, 3)
