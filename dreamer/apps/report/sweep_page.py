"""Builds the title and the sections of the page of a sweep, in the order in which a reader wants them.

This module imports no jax.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dreamer import __version__
from dreamer.apps.report import chart_plots, sweep_charts
from dreamer.apps.report.contents import capital, file_names, panel_title, some
from dreamer.apps.report.curves import Panel, unit
from dreamer.apps.report.groups import show
from dreamer.apps.report.importance import EXPLAINED, Importance
from dreamer.apps.report.output import PANELS
from dreamer.apps.report.page import Fold, Head, Legend, Notes, Picture, Plot, Section, Table
from dreamer.apps.report.palette import Style
from dreamer.apps.report.plots import bins, explanation, label, on_page
from dreamer.apps.report.ranking import Ranking, Result, Setting, unfinished
from dreamer.apps.report.scores import NONE, WORDS, duration, text
from dreamer.apps.report.sweep import Sweep, Trial, counts
from dreamer.apps.report.sweep_axes import Axis, value_of
from dreamer.apps.report.sweep_charts import Chart

RANKING_EXPLAINED = (
    "A setting is a set of values; its trials differ in their seed only. Final: the mean over seeds of their final "
    "scores. IQM: the interquartile mean over seeds, without the lowest and the highest quarter; with fewer than four "
    "seeds the mean. The interval is a percentile bootstrap over seeds. P(best > this): the probability of "
    "improvement, that a seed of the best setting scores higher than a seed of this one, over all pairs of seeds "
    "(Mann-Whitney), with its bootstrap interval (Agarwal et al. 2021, arXiv 2108.13264).",
    "Only finished trials have a score; while none has finished, those that train are compared over the steps that all "
    "of them have reached. Settings of which a trial diverged, failed or was stopped early come after all others, "
    "because the mean of the seeds that are left would flatter them.",
    "The best of many settings owes a part of its score to luck: its seeds both chose it and measure it. New seeds "
    "tell how good it is.",
)
CAUSES = {"running": NONE, "not started": NONE, "dead": "no process trains it"}
CURVES_EXPLAINED = "Each line shows all trials that have a score and this value, whatever their other values."


class TaskReport(NamedTuple):
    """What a report shows of one task of a sweep.

    settings_share: the share of the variance between settings
    curves: (key of an axis, its panels with a line for each value)
    """

    ranking: Ranking
    axes: list[Axis]
    importances: list[Importance]
    settings_share: float
    charts: list[Chart]
    curves: list[tuple[str, list[Panel]]]

    @property
    def drawn(self) -> list[Panel | Chart]:
        """All panels and charts, in the order of the page."""
        return [*self.charts, *(panel for _, panels in self.curves for panel in panels)]


class SweepReport(NamedTuple):
    """The contents of the report of a sweep. looks: {name of a line in the panels: its style}"""

    sweep: Sweep
    tasks: list[TaskReport]
    looks: Mapping[str, Style]
    notes: list[str]
    frames: bool = False

    @property
    def drawn(self) -> list[Panel | Chart]:
        """The panels and charts of all tasks, in the order of the page."""
        return [one for task in self.tasks for one in task.drawn]


def names_of_files(report: SweepReport) -> list[str]:
    """Returns the file name, without extension, of each panel and chart in `report.drawn`."""
    titles = [
        panel_title(one) if isinstance(one, Panel) else f"{task.ranking.task} {one.title}"
        for task in report.tasks for one in task.drawn
    ]  # fmt: skip
    return file_names(titles)


def head(report: SweepReport, command: str) -> Head:
    """Returns the top of the page: the name of the sweep, its trials, its presets, the date and the version."""
    sweep = report.sweep
    settings = sum(len(task.ranking.results) + len(task.ranking.unscored) for task in report.tasks)
    trials = f"{len(sweep.trials)} trials of {settings} settings: {counts(sweep.trials)}"
    lines = [f"{some([task.ranking.task for task in report.tasks])}. {trials}."]
    if sweep.base:
        lines.append(f"Base: {', '.join(sweep.base)}.")
    lines.append(f"Made on {time.strftime('%Y-%m-%d %H:%M %Z')} by dreamer {__version__}.")
    return Head(f"Sweep {sweep.root.resolve().name}", lines, command, len(report.notes))


def sections(report: SweepReport, pictures: Sequence[Picture], formats: Sequence[str]) -> list[Section]:
    """Returns the sections of the page. pictures: of the best settings | formats: those of the files of the panels."""
    names = iter(names_of_files(report))
    made = []
    for number, task in enumerate(report.tasks):
        made += _of_task(report, task, names, formats, several=len(report.tasks) > 1, first=number == 0)
    if pictures:
        made.append(Section("Newest videos and pictures of the best setting", [pictures]))
    made += _trials(report)
    if report.notes:
        made.append(Section("Notes", [Notes(report.notes)], anchor="notes"))
    return made


def ranking_table(task: TaskReport) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the ranking. Settings without a score come last."""
    header = [
        "rank", *(axis.name for axis in task.axes), "seeds", "final", "IQM", "95 % interval", "P(best > this)",
    ]  # fmt: skip
    rows = []
    for rank, one in enumerate(task.ranking.results, 1):
        setting = one.setting
        rows.append([f"{rank}", *_values(setting.trials[0], task.axes), _seeds(setting), *_statistics(one)])
    for setting in task.ranking.unscored:
        rows.append([NONE, *_values(setting.trials[0], task.axes), _seeds(setting), *[NONE] * 4])
    return header, rows


def measured(ranking: Ranking, frames: bool) -> str:
    """Returns what the scores are, as text: "last evaluation, at 1,000 env steps"."""
    start, end = ranking.at
    at = f"{end:,.0f}" if start >= end else f"{start:,.0f} to {end:,.0f}"
    return f"{WORDS[ranking.metric]}, at {at} {unit(frames)}"


def _values(trial: Trial, axes: Sequence[Axis]) -> list[str]:
    return [show(value_of(trial, axis.key)) for axis in axes]


def _seeds(setting: Setting) -> str:
    scored, every = len(setting.scored), len(setting.trials)
    return f"{every}" if scored == every else f"{scored} of {every}"


def _statistics(result: Result) -> list[str]:
    """Returns the cells of a row of the ranking that are computed from scores."""
    better = NONE if result.improvement is None else f"{result.improvement:.2f}"
    if result.improvement_interval:
        better += " ({:.2f} to {:.2f})".format(*result.improvement_interval)
    interval = " to ".join(map(text, result.interval)) if result.interval else "none: 1 seed"
    return [text(result.mean), text(result.iqm), interval, better]


def _of_task(
    report: SweepReport, task: TaskReport, names: Iterator[str], formats: Sequence[str], several: bool, first: bool
) -> list[Section]:
    """Returns the sections of one task. several: whether the titles name the task | first: whether it is the first."""
    suffix = f": {task.ranking.task}" if several else ""
    waiting = unfinished([trial for one in _settings(task) for trial in one.trials])
    words = f"Scores: {measured(task.ranking, report.frames)}."
    if waiting:
        words += f" {waiting} trials can still get a score."
    table = Table(*ranking_table(task))
    made = [Section(f"Ranking{suffix}", [words, table, Fold("How settings are ranked", RANKING_EXPLAINED)])]
    if task.axes:
        fold = Fold("What importance means", EXPLAINED)
        made.append(Section(f"Importance of each axis{suffix}", [_importance_table(task), fold]))
    if task.charts:
        made.append(Section(f"Settings{suffix}", [[_chart(one, next(names), formats) for one in task.charts]]))
    panels = [panel for _, own in task.curves for panel in own]
    controls = [Legend([])] if first else []
    made.append(Section(f"Curves{suffix}", [*controls, CURVES_EXPLAINED, " ".join(explanation(panels))]))
    for key, own in task.curves:
        plots = [_panel(panel, report.looks, next(names), formats) for panel in own]
        made.append(Section(key, [_legend(own, report.looks), plots], 3))
    return made


def _settings(task: TaskReport) -> list[Setting]:
    return [*(one.setting for one in task.ranking.results), *task.ranking.unscored]


def _importance_table(task: TaskReport) -> Table:
    """Makes the table of importance: for each axis its share, the share by chance, its best and its worst value."""
    rows = []
    for one in task.importances:
        ordered = sorted(one.means, key=lambda mean: -mean[1])
        (best, high, _), (worst, low, _) = ordered[0], ordered[-1]
        rows.append(
            (one.axis.key, _share(one.eta), _share(one.chance), f"{best}: {text(high)}", f"{worst}: {text(low)}")
        )
    if not math.isnan(task.settings_share):
        groups, trials = len(task.ranking.results), len(task.ranking.scored())
        rows.append(("all settings", _share(task.settings_share), _share((groups - 1) / (trials - 1)), NONE, NONE))
    header = ("axis", "share of variance (eta squared)", "by chance", "best value: mean", "worst value: mean")
    return Table(header, rows)


def _share(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.2f}"


def _chart(chart: Chart, name: str, formats: Sequence[str]) -> Plot:
    files = {kind: f"{PANELS}/{name}.{kind}" for kind in formats}
    return Plot(chart.title, "", chart_plots.on_page(chart), sweep_charts.explanation(chart), files)


def _panel(panel: Panel, looks: Mapping[str, Style], name: str, formats: Sequence[str]) -> Plot:
    files = {kind: f"{PANELS}/{name}.{kind}" for kind in formats}
    return Plot(capital(label(panel)), "", on_page(panel, looks), bins(panel), files)


def _legend(panels: Sequence[Panel], looks: Mapping[str, Style]) -> Legend:
    """Makes the legend of the panels of an axis. It tells the number of trials of each line."""
    most: dict[str, int] = {}
    for panel in panels:
        for line in panel.lines:
            most[line.name] = max(most.get(line.name, 0), len(line.curve.seeds))
    lines = [(name, looks[name], f", {count} trial{'s' if count > 1 else ''}") for name, count in most.items()]
    return Legend(lines, controls=False)


def _trials(report: SweepReport) -> list[Section]:
    """Makes the tables of the trials that have not finished, or have no score, and of all trials."""
    scores = {trial.path: score for task in report.tasks for trial, score in task.ranking.scored()}
    missing = [
        (one.name, one.status, _steps(one), one.cause or CAUSES.get(one.status, "it has no score"))
        for one in report.sweep.trials if one.status != "finished" or one.path not in scores
    ]  # fmt: skip
    made = []
    if missing:
        table = Table(("trial", "status", "env steps", "cause"), missing)
        made.append(Section("Trials that have not finished, or have no score", [table]))
    axes = list({axis.key: axis for task in report.tasks for axis in task.axes}.values())
    rows = [
        (
            one.name, *_values(one, axes), f"{one.seed}", one.status, text(scores.get(one.path, math.nan)),
            _steps(one), duration(one.run.seconds) if one.run else NONE, str(one.path),
        )
        for one in report.sweep.trials
    ]  # fmt: skip
    header = ("trial", *(axis.name for axis in axes), "seed", "status", "score", "env steps", "wall-clock", "folder")
    return [*made, Section("All trials", [Table(header, rows)])]


def _steps(trial: Trial) -> str:
    """Returns how far a trial has come, as text: "400 of 1,000"."""
    if not trial.run:
        return NONE
    steps, end = trial.run.env_steps, trial.run.config.length
    return f"{steps:,}" if steps >= end else f"{steps:,} of {end:,}"
