"""`dreamer report`: shows the curves of runs beside published curves, and the final scores of the runs.

Runs are grouped by their configs (`groups.tasks`). Each metric of each task is drawn in one panel (a plot). One HTML
page holds scores, the newest videos, panels, and the settings that differ (`contents`). A folder beside the page holds
the panels as vector graphics. Published curves are read from the CSV files of a folder (`references`), in which the
task "dmc:cheetah-run" is called "dmc_cheetah_run". Nothing is written into run directories. Imports no jax.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamer import shipped
from dreamer.apps.report import contents, interactive, media, output, page, plots, references, scores, sweep_command
from dreamer.apps.report.contents import Report
from dreamer.apps.report.curves import EVALUATION, TRAINING, Panel, panel
from dreamer.apps.report.groups import Group, Task, differences, show, tasks
from dreamer.apps.report.metrics import chosen_metrics
from dreamer.apps.report.runs import Run, find_runs, read_all
from dreamer.apps.report.sweep import is_sweep
from dreamer.errors import UserError


def report_runs(
    paths: Sequence[str], *, groups: Sequence[Sequence[str]] = (), metrics: Sequence[str] = (), out: str = "report",
    references_dir: str = "", bin_width: float = 0.0, media_mb: float = 40.0, frames: bool = False,
    static: bool = False, formats: Sequence[str] = ("svg", "pdf"), command: str = "", best: str = "",
) -> Path:  # fmt: skip
    """Reads runs, writes `out`/index.html and the files of the panels, and prints scores. Returns the page's path.

    paths: run directories, or folders that contain runs, or one sweep
    groups: for each group ["NAME=PATH", "PATH", ..]
    metrics: names of metrics to draw besides the returns; * stands for any text
    references_dir: the folder of published curves; "": the folder that comes with dreamer
    bin_width: the width of bins on the x axis; 0: chosen for each panel | media_mb: the most megabytes of media
    frames: whether x counts environment frames; False: env steps | static: make a page without plotly
    formats: of the files in which each panel is saved | command: shown on the page as the command that made it
    best: the file for the best setting of a sweep as a preset; "": none is written
    Raises UserError when no run can be read, a metric is unknown, plotly is missing, or `out` cannot be written.
    """
    if any(map(is_sweep, paths)):
        _check_sweep(paths, groups, references_dir)
        return sweep_command.report_sweep(
            paths[0], metrics=metrics, out=out, bin_width=bin_width, media_mb=media_mb, frames=frames, static=static,
            formats=formats, command=command, best=best,
        )  # fmt: skip
    if best:
        raise UserError(f"--best {best} needs a sweep: dreamer report SWEEP --best best.yaml")
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
    output.check_folder(folder, everyone)
    library = "" if static else interactive.library()
    report = make(loose, named, metrics, references_dir, bin_width, frames)
    pictures, left_out = media.newest(report.runs, int(media_mb * media.MEGABYTE))
    report.notes[:0] = unread
    report.notes.extend(left_out)
    names = contents.file_names([*map(contents.panel_title, report.panels)])
    files = {
        f"{output.PANELS}/{name}.{kind}": content
        for one, name in zip(report.panels, names, strict=True)
        for kind, content in plots.for_papers(one, report.looks, formats).items()
    }
    data = interactive.to_json(report.panels, report.looks)
    html = page.render(contents.head(report, command), contents.sections(report, pictures, formats), data, library)
    index = output.write(folder, {**files, output.INDEX: html.encode()})
    output.print_notes(report.notes)
    if report.table:
        cells = [[getattr(row, name) for name in scores.TERMINAL] for row in report.table]
        output.print_table([*scores.TERMINAL.values()], cells, left=3)
    print(f"page: {index}")
    return index


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
        behind = [] if task.offline else references.of_task(published, task)
        levels = references.levels(ends, behind, task) + references.data_levels(task)
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


# Checks and remarks ---------------------------------------------------------------------------------------------------


def _named_group(words: Sequence[str]) -> tuple[Group, list[str]]:
    """Reads the group ["NAME=PATH", "PATH", ..] of a flag --group. Also returns a note about each unreadable run."""
    name, equals, first = words[0].partition("=") if words else ("", "", "")
    if not (name and equals and first):
        found = f", not {words[0]!r}" if words else ""
        raise UserError(f"flag --group needs NAME=RUN [RUN ..], such as --group small=runs/a runs/b{found}")
    runs, unread = read_all(path for one in (first, *words[1:]) for path in find_runs(one))
    return Group(name, runs), unread


def _check_sweep(paths: Sequence[str], groups: Sequence[Sequence[str]], references_dir: str) -> None:
    """Raises UserError when other runs, or flags that have no use for a sweep, are given beside a sweep."""
    root = next(filter(is_sweep, paths))
    if len(paths) > 1:
        other = next((path for path in paths if path != root), root)
        raise UserError(f"{root} is a sweep, and is reported alone, without {other}")
    for flag, given in (("--group", groups), ("--references", references_dir)):
        if given:
            raise UserError(f"{flag} has no use for a sweep; {root} is one")


def _references(given: str) -> Path:
    """Returns the folder of published curves: `given`, or the folder that comes with dreamer if `given` is "".

    Raises UserError when there is no such folder.
    """
    folder = Path(given).expanduser() if given else shipped.folder("experiments") / "references"
    if not folder.is_dir():
        raise UserError(f"no references at {folder}: there is no such directory")
    return folder


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
            if run.env_steps < run.config.length:
                counted = f"{run.config.length:,} {run.config.counted}"
                notes.append(f"{run.path} stands at {run.env_steps:,} of {counted}")
    if not task.offline and any(run.config.updates for run in task.runs):
        notes.append(f"{task.name}: the x axis counts updates for runs that learn from data only, env steps for others")
    runs = [run for run in task.runs if run.metrics]
    shortest = min(runs, key=_frames, default=None)
    if shortest and _frames(shortest) < 0.9 * max(map(_frames, runs)):
        notes.append(
            f"{task.name}: all scores are those up to {shortest.env_steps:,} {shortest.config.counted}, where "
            f"{shortest.path} stands; without this run they would be later ones"
        )
    return notes


def _frames(run: Run) -> int:
    """Returns the number of environment frames that a run has seen, at most the number in its config."""
    return min(run.env_steps, run.config.length) * (1 if run.config.updates else run.config.action_repeat)
