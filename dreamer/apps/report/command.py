"""`dreamer report`: the curves of runs side by side with published ones, and their final scores. No jax.

Runs are grouped by their configs (`runs.tasks`), a panel is drawn for each task and metric, and one HTML page
holds panels, scores, the settings that differ and the newest pictures of each run. Published curves are CSV files in a
folder (`references`), in which the task "dmc:cheetah-run" is called dmc_cheetah_run. Run directories are only read.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dreamer import shipped
from dreamer.apps.report import page, plots, references, scores
from dreamer.apps.report.curves import EVALUATION, TRAINING, Panel, panel
from dreamer.apps.report.runs import Group, Run, Task, differences, find_runs, read_run, settings, show, tasks
from dreamer.errors import UserError, nearest
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.files.run_dir import PICTURES
from dreamer.runtime.files.safe_files import open_regular

INDEX = "index.html"
MEGABYTE = 1_000_000
NEWEST = (
    ("openloop_*.png", "what the world model dreamed"),
    ("openloop_*.mp4", "what the world model dreamed"),
    ("episode_*.mp4", "what the agent does"),
)


class Report(NamedTuple):
    """The contents of a report.

    panels: {task: the panels of its metrics, with their PNGs} | table: rows of scores.HEADER | notes: one line each
    """

    tasks: list[Task]
    panels: dict[str, list[tuple[Panel, bytes]]]
    table: list[tuple[str, ...]]
    notes: list[str]


def report_runs(
    paths: Sequence[str], *, groups: Sequence[Sequence[str]] = (), metrics: Sequence[str] = (), out: str = "report",
    references_dir: str = "", bin_width: float = 0.0, media_mb: float = 40.0,
) -> Path:  # fmt: skip
    """Reads runs, writes `out`/index.html and a PNG of each panel, prints the scores; returns the page's path.

    paths: run directories or folders of them. groups: words NAME=PATH PATH .., each the runs of one group.
    Raises UserError when there is no run, a run is damaged, a metric is unknown, or `out` cannot be written.
    """
    loose = read_all(path for one in paths for path in find_runs(one))
    named = [_named_group(words) for words in groups]
    everyone = [*loose, *(run for group in named for run in group.runs)]
    if not everyone:
        raise UserError("dreamer report needs runs: dreamer report runs/NAME runs/OTHER, or a folder of them")
    folder = Path(out).expanduser()
    _check_folder(folder, everyone)
    report = make(loose, named, metrics, references_dir, bin_width)
    pictures, left_out = newest_pictures(report.tasks, int(media_mb * MEGABYTE))
    report.notes.extend(left_out)
    _write(folder, report, pictures)
    _tell(report)
    print(f"page: {folder / INDEX}")
    return folder / INDEX


def make(
    loose: Sequence[Run], named: Sequence[Group], metrics: Sequence[str], references_dir: str, bin_width: float
) -> Report:
    """The report of runs that group themselves and of named groups, without pictures. Raises UserError."""
    everyone = [*loose, *(run for group in named for run in group.runs)]
    wanted = chosen_metrics(metrics, everyone)
    notes = list(dict.fromkeys(note for run in everyone for note in run.notes))
    begun = [Group(group.name, [run for run in group.runs if run.metrics]) for group in named]
    of_tasks = tasks([run for run in loose if run.metrics], begun)
    folder = _references(references_dir)
    notes += [note for task in of_tasks for note in _remarks(task)]
    known = {references.task_key(task.env) for task in of_tasks}
    published = references.read(folder, known.__contains__)
    colors = {name: number for number, name in enumerate(_group_names(of_tasks))}
    panels: dict[str, list[tuple[Panel, bytes]]] = {task.name: [] for task in of_tasks}
    found = []
    for task in of_tasks:
        behind = references.of_task(published, task)
        for metric in wanted:
            drawn = panel(task, metric, behind, bin_width)
            if drawn is None:
                notes.append(f"{task.name}: no run has {metric}")
                continue
            notes += drawn.missing
            panels[task.name].append((drawn, plots.draw(drawn, colors)))
            if metric in (EVALUATION, TRAINING):
                found += scores.scores(task, drawn)
    ends = references.normalisation(folder)
    return Report(of_tasks, panels, scores.rows(found) + scores.over_tasks(found, ends), notes)


def read_all(paths: Iterable[Path]) -> list[Run]:
    """The runs at these paths, each once."""
    return [read_run(path) for path in {path.resolve(): path for path in paths}.values()]


def chosen_metrics(wanted: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The metrics of returns that any run has, then the requested metrics; * stands for any characters."""
    known = sorted({name for run in runs for name in run.metrics})
    if not known:
        paths = ", ".join(str(run.path) for run in runs)
        raise UserError(f"nothing to report, no metrics were logged yet: {paths}")
    chosen = [name for name in (EVALUATION, TRAINING) if name in known]
    for name in wanted:
        found = fnmatch.filter(known, name)
        if not found:
            hint = nearest(name, known)
            hint = hint if hint.startswith("; did") else f"; they have {len(known)} others, such as {known[0]}"
            raise UserError(f"--metrics: no run has {name!r}{hint}")
        chosen += found
    if not chosen:
        raise UserError(
            f"nothing to report: no run has {EVALUATION} or {TRAINING} yet; --metrics draws others, such as {known[0]}"
        )
    return list(dict.fromkeys(chosen))


def newest_pictures(of_tasks: Sequence[Task], budget: int) -> tuple[dict[Path, list[page.Picture]], list[str]]:
    """The newest pictures of each kind of each run, at most `budget` bytes in all, and a note on those left out."""
    shown: dict[Path, list[page.Picture]] = {}
    left_out = []
    for run in (run for task in of_tasks for group in task.groups for run in group.runs):
        if run.path in shown:
            continue
        shown[run.path] = []
        for pattern, words in NEWEST:
            file = max((file for file in (run.path / PICTURES).glob(pattern) if _own(file, run.path)), default=None)
            if file is None:
                continue
            size = file.stat().st_size
            if size > budget:
                left_out.append(f"{file} ({size / MEGABYTE:.1f} MB)")
                continue
            content = _read(file)
            budget -= len(content)
            steps = int(re.sub(r"\D", "", file.stem) or 0)
            shown[run.path].append(page.Picture(content, f"{words}, at {steps:,} env steps", file.suffix == ".mp4"))
    note = f"pictures left out, --media-mb would have to be larger: {', '.join(left_out)}"
    return shown, [note] if left_out else []


# Checks and remarks ---------------------------------------------------------------------------------------------------


def _named_group(words: Sequence[str]) -> Group:
    """The group of a flag --group NAME=PATH PATH .."""
    name, equals, first = words[0].partition("=") if words else ("", "", "")
    if not (name and equals and first):
        found = f", not {words[0]!r}" if words else ""
        raise UserError(f"flag --group needs NAME=RUN [RUN ..], such as --group small=runs/a runs/b{found}")
    return Group(name, read_all(path for one in (first, *words[1:]) for path in find_runs(one)))


def _references(given: str) -> Path:
    """The folder of published curves: the given one, else the shipped one. UserError when it does not exist."""
    folder = Path(given).expanduser() if given else shipped.folder("experiments") / "references"
    if not folder.is_dir():
        raise UserError(f"no references at {folder}: there is no such directory")
    return folder


def _check_folder(folder: Path, runs: Sequence[Run]) -> None:
    """Raises UserError when the output folder lies in a run, or holds a page of another origin."""
    here = folder.resolve()
    for run in runs:
        if here.is_relative_to(run.path.resolve()):
            raise UserError(f"--out {folder} lies in the run {run.path}, which is only read; choose another folder")
    index = folder / INDEX
    if index.exists() and page.GENERATOR not in index.read_text(errors="replace"):
        raise UserError(f"{index} was not made by dreamer report; choose another --out, or remove it")


def _remarks(task: Task) -> list[str]:
    """Remarks on groups for a reader of the curves: duplicate seeds, mixed settings, unfinished runs."""
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
    runs = [run for group in task.groups for run in group.runs]
    shortest = min(runs, key=_frames)
    if _frames(shortest) < 0.9 * max(map(_frames, runs)):
        steps = f"{shortest.env_steps:,} env_steps, where {shortest.path} stands"
        notes.append(f"{task.name}: all scores are those up to {steps}; without it they are those of later")
    return notes


def _frames(run: Run) -> int:
    """The frames that a run has seen, at most its configured number."""
    return min(run.env_steps, run.config.env_steps) * run.config.action_repeat


def _group_names(of_tasks: Sequence[Task]) -> list[str]:
    return list(dict.fromkeys(group.name for task in of_tasks for group in task.groups))


def _own(file: Path, run_dir: Path) -> bool:
    """Whether a file is a regular file of the run itself, not a link."""
    inside = Path(os.path.realpath(file)).is_relative_to(os.path.realpath(run_dir))
    return inside and file.is_file() and not file.is_symlink()


def _read(file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            return opened.read()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None


# The page -------------------------------------------------------------------------------------------------------------


def _write(folder: Path, report: Report, pictures: dict[Path, list[page.Picture]]) -> None:
    """Writes the PNGs and the page. Raises UserError when they cannot be written."""
    files = {}
    for of_task in report.panels.values():
        for one, png in of_task:
            name = re.sub(r"\W+", "_", f"{one.task} {one.metric}").strip("_")
            while f"{name}.png" in files:
                name += "_"
            files[f"{name}.png"] = png
    count = len({run.path for task in report.tasks for group in task.groups for run in group.runs})
    title = f"{count} run{'s' if count > 1 else ''} in {len(report.tasks)} task{'s' if len(report.tasks) > 1 else ''}"
    files[INDEX] = page.render(title, _sections(report, pictures)).encode()
    for name, content in files.items():
        write_whole(folder / name, functools.partial(Path.write_bytes, data=content))


def _sections(report: Report, pictures: dict[Path, list[page.Picture]]) -> list[page.Section]:
    when = f"Made {time.strftime('%Y-%m-%d %H:%M')}."
    made = [page.Section("Final scores", [when, page.Table(scores.HEADER, report.table), *SCORES_EXPLAINED])]
    curves: list[page.Section] = [page.Section("Curves", [])]
    for task in report.tasks:
        own = [page.Picture(png, one.metric, curve=True) for one, png in report.panels[task.name]]
        curves.append(page.Section(task.name, [own], 3))
    made[:0] = curves
    made += [page.Section("Settings", []), *(_settings(task) for task in report.tasks)]
    made.append(page.Section("Runs", [_run_table(report.tasks)]))
    if report.notes:
        made.append(page.Section("Notes", report.notes))
    made.append(page.Section("Newest pictures", []))
    for path, own in pictures.items():
        made.append(page.Section(str(path), [own] if own else ["This run has no pictures, or they were left out."], 3))
    return made


SCORES_EXPLAINED = (
    "Mean, standard error and IQM are over seeds, each of which counts with the mean of its episodes. IQM: the "
    "interquartile mean, without the lowest and the highest quarter; with fewer than four seeds the mean. The interval "
    "is a percentile bootstrap over seeds, stratified by task (Agarwal et al. 2021, arXiv 2108.13264).",
    "All groups of a task are compared in one span, which ends where the run stands that has come least far. A "
    "training score is the mean of what was logged in the last tenth before it; the span begins earlier where a seed "
    "has nothing there, or where the bins of the published score beside it are longer. Episodes behind training "
    "scores are not counted in the logs.",
)


def _settings(task: Task) -> page.Section:
    """The settings in which the runs of a task differ, a column for each group."""
    runs = [run for group in task.groups for run in group.runs]
    differing = differences(runs)
    if not differing:
        return page.Section(task.name, [f"All {len(runs)} runs agree in all settings but seed, places and logs."], 3)
    columns = [[settings(run.config) for run in group.runs] for group in task.groups]
    rows = [
        (key, *(" | ".join(dict.fromkeys(show(one.get(key, "-")) for one in own)) for own in columns))
        for key in differing
    ]
    return page.Section(task.name, [page.Table(("setting", *(group.name for group in task.groups)), rows)], 3)


def _run_table(of_tasks: Sequence[Task]) -> page.Table:
    header = ("run", "task", "group", "seed", "env steps", "of", "updates", "hours", "evaluations")
    rows = [
        (
            str(run.path), task.name, group.name, str(run.config.seed), f"{run.env_steps:,}",
            f"{run.config.env_steps:,}", f"{run.updates:,}", f"{run.seconds / 3600:.2f}",
            str(len(run.metrics[EVALUATION].x)) if EVALUATION in run.metrics else "none",
        )
        for task in of_tasks for group in task.groups for run in group.runs
    ]  # fmt: skip
    return page.Table(header, rows)


# The terminal ---------------------------------------------------------------------------------------------------------


def _tell(report: Report) -> None:
    """Prints notes and scores; in a pipe, lines of the table are not wrapped."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 220)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for name in scores.HEADER:
        table.add_column(name, justify="right" if name in scores.HEADER[3:] else "left", overflow="fold")
    for row in report.table:
        table.add_row(*map(Text, row))
    console.print(table)
