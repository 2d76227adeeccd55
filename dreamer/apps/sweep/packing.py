"""Packs the trials of a sweep into programs: a population of several, or one trial. Imports no jax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dreamer.apps.sweep.trials import Trial
from dreamer.config import Config
from dreamer.fields import get
from dreamer.runtime.population.members import wandb_fields

Pack = Literal["auto", "on", "off"]


class Program(NamedTuple):
    """Trials that one process trains.

    name: that of the program, and of its directory if it has several trials | trials: their names
    """

    name: str
    trials: tuple[str, ...]

    def run_dir(self, trial: str) -> str:
        """Returns the run directory of one of its trials, relative to that of the sweep."""
        return trial if len(self.trials) == 1 else f"{self.name}/{trial}"


class Packing(NamedTuple):
    """The programs of a sweep, and lines that say why trials run alone although they seem able to share a program."""

    programs: tuple[Program, ...]
    notes: tuple[str, ...]


def next_number(programs: Sequence[Program]) -> int:
    """Returns the number of the next program of a sweep that has these."""
    return 1 + max([-1, *(int(program.name.removeprefix("program")) for program in programs)])


def settings_of(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the first trial of each setting; the others differ from it in their seed only."""
    firsts: dict[str, Trial] = {}
    for trial in trials:
        firsts.setdefault(_setting(trial), trial)
    return [*firsts.values()]


def _setting(trial: Trial) -> str:
    return repr(sorted((key, repr(value)) for key, value in trial.values.items()))


def pack(
    trials: Sequence[Trial], needs: Any, most: Callable[[Sequence[Any], Any], int], *, how: Pack, jobs: int,
    first: int = 0,
) -> Packing:  # fmt: skip
    """Packs trials into programs. Trials with equal programs share one, as many as fit into the memory.

    A population refuses two settings that would be the same run, for example if an axis has no effect. Such settings go
    to different programs.

    needs: from `planning.needs_of`, for `settings_of(trials)` | most: `plan.most_members`
    jobs: the number of programs that run at the same time; on a CPU, trials are spread over all of them
    first: the number of the first program
    """
    settings = settings_of(trials)
    plans = dict(zip(map(_setting, settings), needs.plans, strict=True))
    notes: list[str] = []
    groups: dict[str, list[Trial]] = {}
    copies = copies_of(plans)
    on_cpu = needs.machine.platform == "cpu"
    for trial in trials:
        plan = plans[_setting(trial)]
        alone = why_alone(plan, how, on_cpu)
        if alone:
            notes.append(alone)
        home = trial.name if alone else f"program {plan.program} {copies[_setting(trial)]}"
        groups.setdefault(home, []).append(trial)
    programs: list[Program] = []
    for key, group in groups.items():
        size = 1
        if key.startswith("program "):
            fits = most([plans[_setting(trial)] for trial in group], needs.machine)
            spread = math.ceil(len(group) / jobs) if on_cpu else len(group)
            size = max(1, min(fits, spread))
        for part in _parts(group, size):
            programs.append(Program(f"program{first + len(programs)}", tuple(trial.name for trial in part)))
    return Packing(tuple(programs), tuple(dict.fromkeys(notes)))


def copies_of(plans: Mapping[str, Any]) -> dict[str, int]:
    """Returns for each setting how many settings before it would be the same runs. plans {setting: its plan}"""
    seen: dict[Any, int] = {}
    copies: dict[str, int] = {}
    for setting, plan in plans.items():
        same = plan if isinstance(plan, str) else (plan.program, plan.numbers)
        copies[setting] = seen.get(same, 0)
        seen[same] = copies[setting] + 1
    return copies


def why_alone(plan: Any, how: Pack, on_cpu: bool) -> str:
    """Returns why a trial has a program of its own, or "" if it may share one. plan: a Plan, or a text without one."""
    if isinstance(plan, str):
        return f"not planned, so that its trials run alone: {plan}"
    if how == "off":
        return "each trial is a program of its own, as --pack off asks"
    if how == "auto" and on_cpu and not plan.on_device:
        return "trials with environments of gymnasium run side by side: on a CPU, packing them gains nothing"
    return ""


def _parts(group: Sequence[Trial], size: int) -> list[Sequence[Trial]]:
    """Divides a group into parts of nearly equal size, at most `size`."""
    count = math.ceil(len(group) / size)
    bounds = [round(i * len(group) / count) for i in range(count + 1)]
    return [group[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def config_of(program: Program, trials: Mapping[str, Trial], root: Path, run_dir: str = "") -> Config:
    """Returns the config with which `dreamer.train` trains a program.

    root: the directory of the sweep | run_dir: that of a trial that trains alone, relative to root; "": the usual one
    """
    own = [trials[name] for name in program.trials]
    config = own[0].config
    if len(own) == 1:
        log = dataclasses.replace(config.log, **wandb_fields(config.log, own[0].name, root.name, "sweep"))
        return dataclasses.replace(config, run_dir=str(root / (run_dir or program.run_dir(own[0].name))), log=log)
    varied = {key for trial in own for key, value in trial.values.items() if get(config, key) != value}
    members = tuple(
        {"name": trial.name, "seed": trial.seed, **{key: trial.values[key] for key in trial.values if key in varied}}
        for trial in own
    )
    population = dataclasses.replace(config.population, members=members)
    log = dataclasses.replace(config.log, **wandb_fields(config.log, "", root.name, "sweep"))
    return dataclasses.replace(config, run_dir=str(root / program.name), population=population, log=log)


def described(programs: Sequence[Program]) -> str:
    """Returns the packing in words, such as "48 trials: 3 programs of 16"."""
    if not programs:
        return "no trials yet"
    sizes: dict[int, int] = {}
    for program in programs:
        if program.trials:
            sizes[len(program.trials)] = sizes.get(len(program.trials), 0) + 1
    trials = sum(len(program.trials) for program in programs)
    parts = [f"{count} program{'s' if count > 1 else ''} of {size}" for size, count in sorted(sizes.items())[::-1]]
    return f"{trials} trial{'s' if trials > 1 else ''}: {', '.join(parts)}"
