"""`dreamer report SWEEP`: ranks the settings of a sweep, and shows what each axis changes. Imports no jax.

The page begins with a ranking. Then follow the importance of each axis, charts of all settings, and curves for each
value of each axis. Trials that diverged, failed, died or have not ended are listed. Nothing is written into the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamer.apps.report import best as preset
from dreamer.apps.report import (
    chart_plots,
    importance,
    interactive,
    media,
    output,
    page,
    palette,
    plots,
    ranking,
    sweep_charts,
    sweep_page,
)
from dreamer.apps.report.curves import EVALUATION, Panel, panel
from dreamer.apps.report.groups import Group, Task
from dreamer.apps.report.metrics import chosen_metrics
from dreamer.apps.report.palette import Style
from dreamer.apps.report.ranking import Ranking
from dreamer.apps.report.sweep import Sweep, counts, read_sweep
from dreamer.apps.report.sweep_axes import Axis, slices, varied
from dreamer.apps.report.sweep_page import SweepReport, TaskReport
from dreamer.errors import UserError

MOST_ROWS = 20  # of the ranking in the terminal
ALL = "All trials"


def report_sweep(
    root: str, *, metrics: Sequence[str] = (), out: str = "report", bin_width: float = 0.0, media_mb: float = 40.0,
    frames: bool = False, static: bool = False, formats: Sequence[str] = ("svg", "pdf"), command: str = "",
    best: str = "",
) -> Path:  # fmt: skip
    """Reads a sweep, writes `out`/index.html and the panels' files, and prints the ranking. Returns the page's path.

    The arguments are those of `command.report_runs`. Raises UserError when the sweep is damaged or has no score yet, a
    metric is unknown, plotly is missing, or a file cannot be written.
    """
    sweep = read_sweep(root)
    folder = Path(out).expanduser()
    output.check_folder(folder, sweep.runs)
    report = make(sweep, metrics, bin_width, frames)
    if best:
        preset.check(best, len(report.tasks))
    library = "" if static else interactive.library()
    first = [one.run for task in report.tasks for one in task.ranking.results[0].setting.scored if one.run]
    pictures, left_out = media.newest(first, int(media_mb * media.MEGABYTE))
    report.notes.extend(left_out)
    files: dict[str, bytes] = {}
    for one, name in zip(report.drawn, sweep_page.names_of_files(report), strict=True):
        drawn = (
            plots.for_papers(one, report.looks, formats)
            if isinstance(one, Panel)
            else chart_plots.for_papers(one, formats)
        )
        files |= {f"{output.PANELS}/{name}.{kind}": content for kind, content in drawn.items()}
    data = interactive.to_json(report.drawn, report.looks)
    sections = sweep_page.sections(report, pictures, formats)
    html = page.render(sweep_page.head(report, command), sections, data, library)
    index = output.write(folder, {**files, output.INDEX: html.encode()})
    _print(report)
    if best:
        made = preset.write(best, report.tasks[0].ranking, sweep.root.resolve().name)
        print(f"best setting: {made}; to train it: dreamer train {made}")
    print(f"page: {index}")
    return index


def make(sweep: Sweep, metrics: Sequence[str] = (), bin_width: float = 0.0, frames: bool = False) -> SweepReport:
    """Makes the report of a sweep, without videos and pictures. The arguments are those of `report_sweep`.

    Raises UserError when no trial has a score, or a metric is unknown.
    """
    notes = [note for run in sweep.runs for note in run.notes]
    if sweep.gone:
        notes.append(f"{sweep.gone} trials that the sweep had before its file was changed are left out")
    tasks: list[TaskReport] = []
    looks: dict[str, Style] = {}
    parts = ranking.by_task(sweep)
    for name, part in parts:
        try:
            ranked = ranking.rank(name, part, frames)
        except UserError as error:
            if len(parts) == 1:
                raise
            notes.append(str(error))
            continue
        notes += _remarks(ranked)
        axes = varied(part)
        curves, found = _curves(axes, ranked, metrics, bin_width, frames)
        looks |= found
        notes += [note for _, panels in curves for panel in panels for note in panel.missing]
        shares = importance.importances(axes, ranked)
        charts = sweep_charts.charts(axes, ranked)
        tasks.append(TaskReport(ranked, axes, shares, importance.between_settings(ranked), charts, curves))
    if not tasks:
        raise UserError(f"{sweep.root}: no trial has an evaluation yet: {counts(sweep.trials) or 'it has no trials'}")
    return SweepReport(sweep, tasks, looks, list(dict.fromkeys(notes)), frames)


def _remarks(ranked: Ranking) -> list[str]:
    """Returns notes about scores that are not those of evaluations of finished trials."""
    notes = []
    if ranked.metric != EVALUATION:
        notes.append(f"{ranked.task}: no trial has an evaluation; the scores are those of training episodes")
    if not any(trial.status == "finished" for trial, _ in ranked.scored()):
        notes.append(f"{ranked.task}: no trial has finished; the scores are those up to {ranked.at[1]:,.0f} steps")
    return notes


def _curves(
    axes: Sequence[Axis], ranked: Ranking, metrics: Sequence[str], bin_width: float, frames: bool
) -> tuple[list[tuple[str, list[Panel]]], dict[str, Style]]:
    """Returns (key of an axis, its panels with a line for each value), and {name of a line: its style}.

    Without axes, all trials are one line.
    """
    trials = [trial for trial, _ in ranked.scored()]
    runs = [trial.run for trial in trials if trial.run]
    wanted, _ = chosen_metrics(metrics, runs)
    curves: list[tuple[str, list[Panel]]] = []
    looks: dict[str, Style] = {}
    named = [
        (axis.key, axis.name, [(f"{axis.name}={one.label}", one.trials) for one in slices(axis, trials)])
        for axis in axes
    ]
    for key, name, parts in named or [(ALL, ALL.lower(), [(ALL.lower(), tuple(trials))])]:
        groups = [Group(label, [trial.run for trial in own if trial.run]) for label, own in parts]
        looks |= {group.name: palette.of_group(number) for number, group in enumerate(groups)}
        task = Task(f"{ranked.task}: {name}", runs[0].config.env, runs[0].config.env_options, groups)
        drawn = [panel(task, metric, width=bin_width, frames=frames) for metric in wanted]
        curves.append((key, [one._replace(member="trial") for one in drawn if one]))
    return curves, looks


def _print(report: SweepReport) -> None:
    """Prints notes, and the best settings of each task as a table."""
    output.print_notes(report.notes)
    for task in report.tasks:
        header, rows = sweep_page.ranking_table(task)
        print(f"{task.ranking.task}: {sweep_page.measured(task.ranking, report.frames)}")
        output.print_table(header, rows[:MOST_ROWS], left=1 + len(task.axes))
        if len(rows) > MOST_ROWS:
            print(f"{len(rows) - MOST_ROWS} more settings are on the page")
