"""Finds the newest videos and pictures of runs, for the page of a report. Imports no jax."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dreamer.apps.report.groups import run_names
from dreamer.apps.report.page import Picture
from dreamer.apps.report.runs import Run
from dreamer.errors import UserError
from dreamer.runtime.files.run_dir import PICTURES
from dreamer.runtime.files.safe_files import open_regular

MEGABYTE = 1_000_000
NEWEST = (
    ("episode_*.mp4", "episode of the agent"),
    ("openloop_*.mp4", "truth, dream and their difference"),
    ("openloop_*.png", "truth, dream and their difference"),
    ("seen_*.png", "observations as the world model sees them"),
    ("mind_*.png", "what the behavior has in mind at observations"),
)


def newest(runs: Sequence[Run], budget: int) -> tuple[list[Picture], list[str]]:
    """Reads the newest file of each kind in NEWEST from each run. In the result, videos come first.

    budget: the most bytes of all files together. Also returns a note about the files that do not fit in it.
    """
    runs = list({run.path.resolve(): run for run in runs}.values())
    names = run_names(runs)
    shown, left_out = [], []
    for run in runs:
        for pattern, words in NEWEST:
            file = max((file for file in (run.path / PICTURES).glob(pattern) if own(file, run.path)), default=None)
            if file is None:
                continue
            size = file.stat().st_size
            if size > budget:
                left_out.append(f"{file} ({size / MEGABYTE:.1f} MB)")
                continue
            content = _read(file)
            budget -= len(content)
            steps = int(re.sub(r"\D", "", file.stem) or 0)
            caption = f"{names[run.path]}: {words}, at {steps:,} {run.config.counted.replace('_', ' ')}"
            shown.append(Picture(content, caption, file.suffix == ".mp4"))
    note = f"pictures left out, --media-mb would have to be larger: {', '.join(left_out)}"
    return sorted(shown, key=lambda picture: not picture.video), [note] if left_out else []


def own(file: Path, run_dir: Path) -> bool:
    """Whether `file` is a regular file inside `run_dir`, not a link."""
    inside = Path(os.path.realpath(file)).is_relative_to(os.path.realpath(run_dir))
    return inside and file.is_file() and not file.is_symlink()


def _read(file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            return opened.read()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
