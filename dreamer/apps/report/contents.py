"""Builds the title and the sections of a report's page, in the order in which a reader wants them. Imports no jax."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dreamer import __version__
from dreamer.apps.report import scores
from dreamer.apps.report.curves import EVALUATION, Line, Panel
from dreamer.apps.report.groups import Task, differences, run_names, settings, show
from dreamer.apps.report.output import PANELS
from dreamer.apps.report.page import Fold, Head, Legend, Notes, Picture, Plot, Section, Table
from dreamer.apps.report.palette import Style
from dreamer.apps.report.plots import bins, explanation, label, on_page
from dreamer.apps.report.runs import Run

NAMED = 4  # the most tasks or runs that the top of the page names
SCORES_EXPLAINED = (
    "Final: the mean over seeds, each of which counts with the mean of its episodes, and its standard error. IQM: the "
    "interquartile mean over seeds, without the lowest and the highest quarter; with fewer than four seeds the mean. "
    "The interval is a percentile bootstrap over seeds, stratified by task (Agarwal et al. 2021, arXiv 2108.13264).",
    "All groups of a task are compared over the same steps, up to those that all its runs have reached. A "
    "training score is the mean of what was logged in the last tenth of these steps. This span begins earlier where a "
    "seed has logged nothing in it, or where the bins of a published curve are longer. Episodes behind training "
    "scores are not counted in the logs. Wall-clock: the mean over seeds.",
)


class Report(NamedTuple):
    """The contents of a report.

    panels: the panels (plots) of all tasks, in the order of the page | looks: {name of a line in the panels: its style}
    table: the rows of the table of final scores | notes: remarks for the reader
    """

    tasks: list[Task]
    panels: list[Panel]
    looks: Mapping[str, Style]
    table: list[scores.Row]
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        """The runs of all tasks, each once."""
        return list({run.path.resolve(): run for task in self.tasks for run in task.runs}.values())


def head(report: Report, command: str) -> Head:
    """Returns the top of the page. The title names the tasks; below it are the runs, the date and the version."""
    names = list(run_names(report.runs).values())
    count = f"{len(names)} run{'s' if len(names) > 1 else ''}"
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    lines = [f"{count}: {some(names)}", f"Made on {when} by dreamer {__version__}."]
    return Head(some([task.name for task in report.tasks]), lines, command, len(report.notes))


def some(names: Sequence[str]) -> str:
    """Joins up to four names, and counts the others: "a, b, c, d and 3 more"."""
    more = len(names) - NAMED
    return ", ".join(names) if more < 1 else f"{', '.join(names[:NAMED])} and {more} more"


def sections(report: Report, pictures: Sequence[Picture], formats: Sequence[str]) -> list[Section]:
    """Returns the sections of the page: scores, videos, curves, settings, runs, notes. Leaves out empty sections.

    formats: those of the panels' files, to which the page links
    """
    names = file_names([*map(panel_title, report.panels)])
    made = []
    if report.table:
        made.append(Section("Scores", [_score_table(report.table), Fold("How scores are computed", SCORES_EXPLAINED)]))
    if pictures:
        made.append(Section("Newest videos and pictures", [pictures]))
    if report.panels:
        one_task = len(report.tasks) == 1
        plots = [
            Plot(
                capital(label(panel)), "" if one_task else panel.task, on_page(panel, report.looks), bins(panel),
                {kind: f"{PANELS}/{name}.{kind}" for kind in formats},
            )
            for panel, name in zip(report.panels, names, strict=True)
        ]  # fmt: skip
        made.append(Section("Curves", [_legend(report), " ".join(explanation(report.panels)), plots]))
    made += [Section("Settings", []), *(_settings(task) for task in report.tasks)]
    made.append(Section("Runs", [_run_table(report.tasks)]))
    if report.notes:
        made.append(Section("Notes", [Notes(report.notes)], anchor="notes"))
    return made


def file_names(titles: Sequence[str]) -> list[str]:
    """Returns a file name without extension for each title. No two of them are the same."""
    names: list[str] = []
    for title in titles:
        name = re.sub(r"\W+", "_", title).strip("_")
        while name in names:
            name += "_"
        names.append(name)
    return names


def panel_title(panel: Panel) -> str:
    """Returns a title that tells a panel from the others: its task and its metric."""
    return f"{panel.task} {panel.metric}"


def _score_table(table: Sequence[scores.Row]) -> Table:
    """Makes the table of scores, without empty columns. The standard error stands in the column of the mean."""
    rows = [
        row._replace(mean=row.mean if row.error == scores.NONE else f"{row.mean} ± {row.error}") for row in table
    ]
    kept = [name for name in scores.COLUMNS if any(getattr(row, name) != scores.NONE for row in rows)]
    if len({row.task for row in rows}) == 1:
        kept.remove("task")
    return Table([scores.COLUMNS[name] for name in kept], [[getattr(row, name) for name in kept] for row in rows])


def _legend(report: Report) -> Legend:
    """Makes the legend that all panels share. It tells the number of seeds of each line."""
    counts: dict[str, set[int]] = {}
    for panel in report.panels:
        for line in panel.lines:
            counts.setdefault(line.name, set()).add(_seeds(line))
    lines = []
    for name, look in sorted(report.looks.items(), key=lambda item: item[1].color.startswith("p")):
        if name in counts:
            few, many = min(counts[name]), max(counts[name])
            number = f"{few}" if few == many else f"{few} to {many}"
            lines.append((name, look, f", {number} seeds" if many > 1 else ""))
    return Legend(lines)


def _seeds(line: Line) -> int:
    return len(line.curve.seeds)


def _settings(task: Task) -> Section:
    """Makes a section with a table of the settings in which the runs of a task differ. Each group has a column."""
    parts: list[str | Table] = []
    if task.options:
        parts.append("Environment options: " + ", ".join(f"{key}={show(value)}" for key, value in task.options.items()))
    differing = differences(task.runs)
    if differing:
        columns = [[settings(run.config) for run in group.runs] for group in task.groups]
        rows = [
            (key, *(" | ".join(dict.fromkeys(show(one.get(key, "-")) for one in own)) for own in columns))
            for key in differing
        ]
        parts.append(Table(("setting", *(group.name for group in task.groups)), rows))
    elif len(task.runs) > 1:
        parts.append(f"All {len(task.runs)} runs agree in all settings but seed, places and logs.")
    else:
        parts.append(f"One run; its settings are in {task.runs[0].path}/config.yaml.")
    return Section(task.name, parts, 3)


def _run_table(tasks: Sequence[Task]) -> Table:
    header = ("run", "task", "group", "seed", "env steps", "of", "updates", "wall-clock", "evaluations")
    rows = [
        (
            str(run.path), task.name, group.name, str(run.config.seed), _taken(run, run.env_steps),
            _taken(run, run.config.env_steps), f"{run.updates:,}", scores.duration(run.seconds),
            str(len(run.metrics[EVALUATION].x)) if EVALUATION in run.metrics else "0",
        )
        for task in tasks for group in task.groups for run in group.runs
    ]  # fmt: skip
    return Table(header, rows)


def _taken(run: Run, env_steps: int) -> str:
    return scores.NONE if run.config.updates else f"{env_steps:,}"


def capital(text: str) -> str:
    """Returns the text with a capital first letter. The name of a metric, which has a /, stays unchanged."""
    return text if "/" in text else text[:1].upper() + text[1:]
