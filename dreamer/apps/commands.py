"""The commands `eval`, `imagine`, `report`, `sweep`, `check`, `verify` and `data`: their flags and their help.

Each reads its words, and imports what does the work only then, so that the others start fast.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from dreamer.apps.flags import apply, scan, show_help
from dreamer.errors import UserError
from dreamer.fields import at_least, between

EVAL = "Play episodes with the newest checkpoint of the run directory RUN."
CHECK = """Run the environment ENV and tell what would spoil a training run, a verdict a line.
- ENV is a gymnasium id, suite:task or package.module:factory, as for --env of dreamer train.
- Exit code: 0 sound, 1 something is wrong, 2 there is no such environment or flag."""
VERIFY = """Read everything of the run directory RUN that matters and hold it against its seals. Changes nothing.
- Says what is whole, what is damaged, which checkpoint a run can continue from, and what would be lost.
- Exit code: 0 whole, 1 something is damaged, 2 there is no run."""
REPORT = """Write one page with the curves, the final scores and the newest videos of runs.
- RUN is a run directory, or a folder of them. Runs that differ in their seed only are one group.
- RUN may also be the folder of a sweep: the page then ranks its settings.
- Published curves are drawn behind returns where the references have the task."""


@dataclasses.dataclass(frozen=True)
class EvalFlags:
    """The flags of `dreamer eval`."""

    episodes: Annotated[int, at_least(1)] = 20
    """Number of episodes, at most 16 of them side by side."""
    video: str | None = None
    """File for a video, such as episode.mp4: the first episode of each of the first environments, tiled."""
    video_episodes: Annotated[int, between(1, 16)] = 4
    """Number of episodes in the video, at most 16."""
    json: str | None = None
    """File for every episode and the summary, such as scores.json."""
    ranking: Annotated[int, at_least(0)] = 0
    """Rank the predictions of the world model in this many episodes of random actions, such as 1000, and play none."""
    mode: Literal["sample", "mode"] | None = None
    """Sample actions or take the most likely one; None: as in the run's own config."""
    seed: int = 0
    """Seed of environments and actions."""
    env: str = ""
    """Environment to play in, for a run that has none; empty: the run's own."""
    env_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the environment, laid over the run's own; one of them: --env-options.KEY VALUE."""
    trust: bool = False
    """The run may name code that is not dreamer's although you did not make it on this machine."""


@dataclasses.dataclass(frozen=True)
class VerifyFlags:
    """The flags of `dreamer verify`."""

    json: str | None = None
    """File for what was found, such as verdict.json; - prints it in place of the lines."""


@dataclasses.dataclass(frozen=True)
class ReportFlags:
    """The flags of `dreamer report`."""

    group: tuple[str, ...] = ()
    """A group of your own, NAME=RUN [RUN ..]; may be given again for the next."""
    metrics: tuple[str, ...] = ()
    """Metrics to draw beside the returns, such as loss/dyn or loss/*."""
    out: str = "report"
    """Folder for the page, index.html, and for the panels as files, in panels/."""
    references: str = ""
    """Folder of published curves; empty: those that come with dreamer."""
    bin: Annotated[float, at_least(0)] = 0.0
    """Width of the bins on the x axis; 0 = that of the published curve, else chosen."""
    media_mb: Annotated[float, at_least(0)] = 40.0
    """Megabytes of the runs' pictures and videos that the page may hold."""
    frames: bool = False
    """Count environment frames (env steps x action repeat) on the x axis and in scores, in place of env steps."""
    format: tuple[Literal["svg", "pdf", "png"], ...] = ("svg", "pdf")
    """Formats of the files of panels, for papers and slides."""
    static: bool = False
    """Make a small page without hover values and smoothing; needs no plotly."""
    best: str = ""
    """File for the best setting of a sweep as a preset, such as best.yaml; empty: none."""


def eval_command(args: list[str]) -> int:
    """Runs `dreamer eval`. args: one run directory, and flags. Returns the exit code. Raises UserError."""
    if not (given := _read(args, EvalFlags(), "dreamer eval RUN", EVAL)):
        return 0
    runs, options = given
    if not runs:
        raise UserError("dreamer eval needs the directory of a run: dreamer eval runs/NAME --episodes 20")
    if len(runs) > 1:
        raise UserError(f"dreamer eval takes one run directory, not {len(runs)}: stray argument {runs[1]!r}")
    of_run: dict[str, Any] = dict(
        json_file=options.json, seed=options.seed, env_options=options.env_options, trust=options.trust, env=options.env
    )
    if options.ranking:
        from dreamer.apps.evaluate import rank_run

        rank_run(runs[0], episodes=options.ranking, **of_run)
    else:
        from dreamer.apps.evaluate import evaluate_run

        evaluate_run(
            runs[0], episodes=options.episodes, video=options.video, video_episodes=options.video_episodes,
            mode=options.mode, **of_run,
        )  # fmt: skip
    return 0


def imagine_command(args: list[str]) -> int:
    """Runs `dreamer imagine`. args: one run directory, and flags. Returns the exit code. Raises UserError."""
    from dreamer.apps.imagine.flags import HELP, ImagineFlags

    if not (given := _read(args, ImagineFlags(), "dreamer imagine RUN", HELP)):
        return 0
    run = _only(given[0], "imagine", "run directory", "runs/NAME")
    from dreamer.apps.imagine.command import imagine_run

    imagine_run(run, given[1])
    return 0


def report_command(args: list[str]) -> int:
    """Runs `dreamer report`. args: runs, and flags, with one --group for each group. Returns the exit code."""
    words, flags = scan(args)
    if any(flag.key == "help" for flag in flags):
        return show_help(ReportFlags(), "dreamer report RUN...", REPORT)
    options, strays = apply(ReportFlags(), [flag for flag in flags if flag.key != "group"])
    from dreamer.apps.report.command import report_runs

    report_runs(
        words + strays, groups=[flag.words for flag in flags if flag.key == "group"], metrics=options.metrics,
        out=options.out, references_dir=options.references, bin_width=options.bin, media_mb=options.media_mb,
        frames=options.frames, static=options.static, formats=options.format,
        command=shlex.join(["dreamer", "report", *args]), best=options.best,
    )  # fmt: skip
    return 0


def sweep_command(args: list[str]) -> int:
    """Runs `dreamer sweep`. args: one sweep, and flags. Returns the exit code. Raises UserError."""
    from dreamer.apps.sweep.command import HELP, sweep
    from dreamer.apps.sweep.options import SweepFlags

    if not (given := _read(args, SweepFlags(), "dreamer sweep SWEEP", HELP)):
        return 0
    return sweep(_only(given[0], "sweep", "sweep", "cartpole"), given[1])


def check_command(args: list[str]) -> int:
    """Runs `dreamer check`. args: one environment, and flags. Returns the exit code. Raises UserError."""
    from dreamer.apps.check.verdicts import Settings

    if not (given := _read(args, Settings(), "dreamer check ENV", CHECK)):
        return 0
    envs, settings = given
    if not envs:
        raise UserError("dreamer check needs an environment: dreamer check my_lab.envs:make")
    if len(envs) > 1:
        raise UserError(f"dreamer check takes one environment, not {len(envs)}: stray argument {envs[1]!r}")
    from dreamer.apps.check.command import check_env

    return check_env(envs[0], settings)


def verify_command(args: list[str]) -> int:
    """Runs `dreamer verify`. args: one run directory, and flags. Returns the exit code. Raises UserError."""
    if not (given := _read(args, VerifyFlags(), "dreamer verify RUN", VERIFY)):
        return 0
    run = _only(given[0], "verify", "run directory", "runs/NAME")
    from dreamer.apps.verify import verify_run

    return verify_run(run, given[1].json)


def data_command(args: list[str]) -> int:
    """Runs `dreamer data`. args: one dataset, and flags. Returns the exit code. Raises UserError."""
    from dreamer.apps import data

    if not (given := _read(args, data.DataFlags(), "dreamer data PATH", data.HELP)):
        return 0
    return data.describe_data(_only(given[0], "data", "dataset", "minari:NAME"), given[1])


def _read(args: list[str], settings: Any, usage: str, text: str) -> tuple[list[str], Any] | None:
    """Reads what follows a command. Returns its words, and `settings` with the values of the flags.

    With --help, it prints the help, which begins with `usage` and `text`, and returns None. Raises UserError.
    """
    words, flags = scan(args)
    if any(flag.key == "help" for flag in flags):
        show_help(settings, usage, text)
        return None
    settings, strays = apply(settings, flags)
    return words + strays, settings


def _only(words: Sequence[str], command: str, what: str, example: str) -> str:
    """Returns the only word after a command. Raises UserError if there is another number of words."""
    if len(words) != 1:
        raise UserError(f"dreamer {command} takes one {what}, not {len(words)}: dreamer {command} {example}")
    return words[0]
