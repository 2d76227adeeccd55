"""Writes the page of a report with the files beside it, and prints notes and tables. Imports no jax."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamer.apps.report import page
from dreamer.apps.report.runs import Run
from dreamer.errors import UserError
from dreamer.runtime.files.atomic import write_whole

INDEX = "index.html"
PANELS = "panels"  # the folder beside the page that holds the panels' files
TERMINAL_WIDTH = 220  # columns, if the output is not a terminal


def check_folder(folder: Path, runs: Sequence[Run]) -> None:
    """Raises UserError when the output folder lies in a run, or holds a page that `dreamer report` did not make."""
    here = folder.resolve()
    for run in runs:
        if here.is_relative_to(run.path.resolve()):
            raise UserError(f"--out {folder} lies in the run {run.path}, which is only read; choose another folder")
    index = folder / INDEX
    if index.exists() and page.GENERATOR not in index.read_text(errors="replace"):
        raise UserError(f"{index} was not made by dreamer report; choose another --out, or remove it")


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Writes files into `folder`, and returns the path of the page. Raises UserError when they cannot be written.

    files: {path in the folder: content}, with the page itself as `INDEX`
    """
    for name, content in files.items():
        write_whole(folder / name, functools.partial(Path.write_bytes, data=content))
    return folder / INDEX


def print_notes(notes: Sequence[str]) -> None:
    """Prints notes, one a line."""
    for note in notes:
        _console().print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    """Prints a table. left: the number of columns that are aligned to the left; the others hold numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else TERMINAL_WIDTH)
