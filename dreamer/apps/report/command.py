"""`dreamer report`: shows the curves of runs beside published curves, and the final scores of the runs.

Runs are grouped by their configs (`groups.tasks`). Each metric of each task is drawn in one panel (a plot). One HTML
page holds scores, the newest videos, panels, and the settings that differ (`contents`). A folder beside the page holds
the panels as vector graphics. Published curves are read from the CSV files of a folder (`references`), in which the
task "dmc:cheetah-run" is called "dmc_cheetah_run". Nothing is written into run directories. Imports no jax.
"""

from __future__ import annotations

import fnmatch
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from dreamer import shipped
from dreamer.apps.report import contents, interactive, media, page, plots, references, scores
from dreamer.apps.report.contents import PANELS, Report
from dreamer.apps.report.curves import EVALUATION, TRAINING, Panel, panel
from dreamer.apps.report.groups import Group, Task, differences, show, tasks
from dreamer.apps.report.runs import Run, find_runs, read_all
from dreamer.errors import UserError, nearest
from dreamer.runtime.files.atomic import write_whole

INDEX = "index.html"
FALLBACK = ("loss/*", "train/loss", "*")  # drawn if no run has returns: all metrics that fit the first pattern
MOST_FALLBACK = 12


def report_runs(
    paths: Sequence[str], *, groups: Sequence[Sequence[str]] = (), metrics: Sequence[str] = (), out: str = "report",
    references_dir: str = "", bin_width: float = 0.0, media_mb: float = 40.0, frames: bool = False,
    static: bool = False, formats: Sequence[str] = ("svg", "pdf"), command: str = "",
) -> Path:  # fmt: skip
    """Reads runs, writes `out`/index.html and the files of the panels, and prints scores. Returns the page's path.

    paths: run directories, or folders that contain runs | groups: for each group ["NAME=PATH", "PATH", ..]
    metrics: names of metrics to draw besides the returns; * stands for any text
    references_dir: the folder of published curves; "": the folder that comes with dreamer
    bin_width: the width of bins on the x axis; 0: chosen for each panel | media_mb: the most megabytes of media
    frames: whether x counts environment frames; False: env steps | static: make a page without plotly
    formats: of the files in which each panel is saved | command: shown on the page as the command that made it
    Raises UserError when no run can be read, a metric is unknown, plotly is missing, or `out` cannot be written.
    """
    loose, unread = read_all(path for one in paths for path in find_runs(one))
    named = []
    for words in groups:
        group, more = _named_group(words)
        named.append(group)
        unread += more
    everyone = [*loose, *(run for group in named for run in group.runs)]
    if not everyone:
        usage = "dreamer report needs runs: dreamer report runs/NAME runs/OTHER, or a folder of them"
        raise UserError(unread[0] if unread else usage)
    folder = Path(out).expanduser()
    _check_folder(folder, everyone)
    library = "" if static else interactive.library()
    report = make(loose, named, metrics, references_dir, bin_width, frames)
    pictures, left_out = media.newest(report.runs, int(media_mb * media.MEGABYTE))
    report.notes[:0] = unread
    report.notes.extend(left_out)
    _write(folder, report, pictures, formats, library, command)
    _print(report)
    print(f"page: {folder / INDEX}")
    return folder / INDEX


def make(
    loose: Sequence[Run], named: Sequence[Group], metrics: Sequence[str], references_dir: str, bin_width: float,
    frames: bool = False,
) -> Report:  # fmt: skip
    """Makes the report, without its videos and pictures. The other arguments are those of `report_runs`.

    loose: runs, which this function groups by their configs | named: groups that the user has formed
    Raises UserError when a metric is unknown or the references cannot be read.
    """
    everyone = [*loose, *(run for group in named for run in group.runs)]
    notes = list(dict.fromkeys(note for run in everyone for note in run.notes))
    wanted, remarks = chosen_metrics(metrics, everyone)
    of_tasks = tasks(loose, named)
    folder = _references(references_dir)
    notes += remarks + [note for task in of_tasks for note in _remarks(task)]
    known = {references.task_key(task.env) for task in of_tasks}
    published = references.read(folder, known.__contains__)
    ends = references.valid_ends(references.normalisation(folder), of_tasks)
    panels: list[Panel] = []
    found = []
    for task in of_tasks:
        behind = references.of_task(published, task)
        levels = references.levels(ends, behind, task)
        for metric in wanted:
            drawn = panel(task, metric, behind, bin_width, levels=levels, frames=frames)
            if drawn is None:
                notes.append(f"{task.name}: no run has {metric}")
                continue
            notes += drawn.missing
            panels.append(drawn)
            if metric in (EVALUATION, TRAINING):
                found += scores.scores(task, drawn)
    names = list(dict.fromkeys(group.name for task in of_tasks for group in task.groups))
    table = scores.rows(found) + scores.over_tasks(found, ends)
    return Report(of_tasks, panels, plots.styles(names, panels), table, list(dict.fromkeys(notes)))


def chosen_metrics(wanted: Sequence[str], runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Returns the metrics to draw, and notes. They are the episode returns, if any run has them, then those wanted.

    A * in `wanted` stands for any text. Without returns and with empty `wanted`, the function chooses losses or other
    metrics, so that a new run can be seen. Raises UserError for a name in `wanted` that no run has.
    """
    known = sorted({name for run in runs for name in run.metrics})
    chosen = [name for name in (EVALUATION, TRAINING) if name in known]
    notes = [] if chosen or not known else [f"no run has {EVALUATION} or {TRAINING} yet"]
    for name in wanted:
        found = fnmatch.filter(known, name)
        if not found and not known:
            raise UserError(f"--metrics {name}: no run has any metrics yet")
        if not found:
            hint = nearest(name, known)
            hint = hint if hint.startswith("; did") else f"; they have {len(known)} others, such as {known[0]}"
            raise UserError(f"--metrics: no run has {name!r}{hint}")
        chosen += found
    if not chosen:
        chosen = next((found for one in FALLBACK if (found := fnmatch.filter(known, one))), [])[:MOST_FALLBACK]
    return list(dict.fromkeys(chosen)), notes


# Checks and remarks ---------------------------------------------------------------------------------------------------


def _named_group(words: Sequence[str]) -> tuple[Group, list[str]]:
    """Reads the group ["NAME=PATH", "PATH", ..] of a flag --group. Also returns a note about each unreadable run."""
    name, equals, first = words[0].partition("=") if words else ("", "", "")
    if not (name and equals and first):
        found = f", not {words[0]!r}" if words else ""
        raise UserError(f"flag --group needs NAME=RUN [RUN ..], such as --group small=runs/a runs/b{found}")
    runs, unread = read_all(path for one in (first, *words[1:]) for path in find_runs(one))
    return Group(name, runs), unread


def _references(given: str) -> Path:
    """Returns the folder of published curves: `given`, or the folder that comes with dreamer if `given` is "".

    Raises UserError when there is no such folder.
    """
    folder = Path(given).expanduser() if given else shipped.folder("experiments") / "references"
    if not folder.is_dir():
        raise UserError(f"no references at {folder}: there is no such directory")
    return folder


def _check_folder(folder: Path, runs: Sequence[Run]) -> None:
    """Raises UserError when the output folder lies in a run, or holds a page that `dreamer report` did not make."""
    here = folder.resolve()
    for run in runs:
        if here.is_relative_to(run.path.resolve()):
            raise UserError(f"--out {folder} lies in the run {run.path}, which is only read; choose another folder")
    index = folder / INDEX
    if index.exists() and page.GENERATOR not in index.read_text(errors="replace"):
        raise UserError(f"{index} was not made by dreamer report; choose another --out, or remove it")


def _remarks(task: Task) -> list[str]:
    """Returns notes about duplicate seeds, mixed settings and unfinished runs in the groups of a task."""
    notes = []
    for group in task.groups:
        seeds = [run.config.seed for run in group.runs]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            same = ", ".join(str(run.path) for run in group.runs if run.config.seed == twice[0])
            notes.append(f"{task.name}: group {group.name!r} has seed {twice[0]} more than once: {same}")
        for key, values in differences(group.runs).items():
            each = ", ".join(dict.fromkeys(map(show, values)))
            notes.append(f"{task.name}: group {group.name!r} mixes runs of different {key}: {each}")
        for run in group.runs:
            if run.env_steps < run.config.env_steps:
                notes.append(f"{run.path} stands at {run.env_steps:,} of {run.config.env_steps:,} env_steps")
    runs = [run for run in task.runs if run.metrics]
    shortest = min(runs, key=_frames, default=None)
    if shortest and _frames(shortest) < 0.9 * max(map(_frames, runs)):
        notes.append(
            f"{task.name}: all scores are those up to {shortest.env_steps:,} env_steps, where {shortest.path} stands; "
            "without this run they would be later ones"
        )
    return notes


def _frames(run: Run) -> int:
    """Returns the number of environment frames that a run has seen, at most the number in its config."""
    return min(run.env_steps, run.config.env_steps) * run.config.action_repeat


# Output ---------------------------------------------------------------------------------------------------------------


def _write(
    folder: Path, report: Report, pictures: Sequence[page.Picture], formats: Sequence[str], library: str, command: str
) -> None:
    """Writes the page and the files of the panels into `folder`. Raises UserError when they cannot be written.

    library: plotly.js from `interactive.library`, or "" for a page without it
    """
    files = {}
    for one, name in zip(report.panels, contents.file_names(report.panels), strict=True):
        for kind, content in plots.for_papers(one, report.looks, formats).items():
            files[f"{PANELS}/{name}.{kind}"] = content
    sections = contents.sections(report, pictures, formats)
    panels = interactive.to_json(report.panels, report.looks)
    files[INDEX] = page.render(contents.head(report, command), sections, panels, library).encode()
    for name, content in files.items():
        write_whole(folder / name, functools.partial(Path.write_bytes, data=content))


def _print(report: Report) -> None:
    """Prints notes and the table of scores. The table is up to 220 columns wide if the output is not a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 220)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(scores.TERMINAL.values()):
        table.add_column(name, justify="right" if place > 2 else "left", overflow="fold")
    for row in report.table:
        table.add_row(*(Text(getattr(row, name)) for name in scores.TERMINAL))
    if report.table:
        console.print(table)
