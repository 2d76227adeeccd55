"""Groups runs by task and settings, and names tasks, groups and runs by their differences. No jax."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dreamer.apps.report.runs import Run
from dreamer.coerce import Dumper
from dreamer.config import Config
from dreamer.fields import SAME_GROUP, get, has_mark, keys

TASK = ("env", "env_options")
ONE_GROUP = "all runs"
MOST_NAMED = 3  # settings in the name of a group
LONGEST = 60  # characters of the settings beside the name of a single run


class Group(NamedTuple):
    """Runs that differ only in their seed, or that the user has put into one group."""

    name: str
    runs: list[Run]


class Task(NamedTuple):
    """One environment with its options, and the groups that were trained in it."""

    name: str
    env: str
    options: Mapping[str, Any]
    groups: list[Group]

    @property
    def runs(self) -> list[Run]:
        """The runs of all groups. A run that is in two groups is listed twice."""
        return [run for group in self.groups for run in group.runs]


def tasks(runs: Sequence[Run], named: Sequence[Group] = ()) -> list[Task]:
    """The tasks in the order of their names. Each task has the groups of `runs`, then the groups `named` by the user.

    A group of `runs` holds the runs of one task whose configs agree in all fields except those marked SAME_GROUP. The
    group's name lists the settings in which the groups of a task differ, and is the same in every task.
    """
    given = [(group.name, run) for group in named for run in group.runs]
    names = task_names([*runs, *(run for _, run in given)])
    found: dict[str, tuple[Run, dict[str, list[Run]]]] = {}
    for name, run in [*zip(group_names(runs), runs, strict=True), *given]:
        _, groups = found.setdefault(names[_task_key(run)], (run, {}))
        groups.setdefault(name, []).append(run)
    return [
        Task(name, run.config.env, run.config.env_options, [Group(*group) for group in groups.items()])
        for name, (run, groups) in sorted(found.items())
    ]


# Names ----------------------------------------------------------------------------------------------------------------


def task_names(runs: Sequence[Run]) -> dict[str, str]:
    """{key of a task: its name}. A name is the environment and the options that differ: "dmc:x {image: true}"."""
    options: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run in runs:
        options.setdefault(run.config.env, {})[_task_key(run)] = run.config.env_options
    names = {}
    for env, by_key in options.items():
        for key, own in by_key.items():
            differing = {
                name: value for name, value in own.items()
                if any(name not in other or other[name] != value for other in by_key.values())
            }  # fmt: skip
            names[key] = f"{env} {_flow(differing)}" if differing else env
    return names


def group_names(runs: Sequence[Run]) -> list[str]:
    """The name of each run's group: the settings that differ within a task, with the run's values.

    A group of one run has the name of the run, followed by these settings if they are short.
    """
    varying = _varying(runs)
    own = [tuple(show(settings(run.config).get(key, "-")) for key in varying) for run in runs]
    counts, names = Counter(own), run_names(runs)
    together = [run for run, values in zip(runs, own, strict=True) if counts[values] > 1]
    every = {key for run in runs for key in settings(run.config)}

    def parts(run: Run, keys: Sequence[str]) -> tuple[str, ...]:
        values = settings(run.config)
        return tuple(f"{short_key(key, every)}={show(values[key])}" for key in keys if key in values)

    shared = _varying(together) or varying
    several = list(dict.fromkeys(parts(run, shared) for run in together))
    return [
        _single(names[run.path], parts(run, varying)) if counts[values] == 1 else _several(parts(run, shared), several)
        for run, values in zip(runs, own, strict=True)
    ]


def _varying(runs: Sequence[Run]) -> list[str]:
    """The settings that differ within a task. The first setting splits the runs most evenly."""
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(_task_key(run), []).append(run)
    most_common: dict[str, int] = {}
    for members in by_task.values():
        for key, values in differences(members).items():
            count = Counter(map(show, values)).most_common(1)[0][1]
            most_common[key] = most_common.get(key, 0) + count
    return sorted(most_common, key=most_common.__getitem__)


def _single(name: str, parts: Sequence[str]) -> str:
    """The name of a group of one run. parts: the settings that differ, with their values."""
    words = ", ".join(parts)
    return f"{name} ({words})" if parts and len(parts) <= MOST_NAMED and len(words) <= LONGEST else name


def _several(parts: tuple[str, ...], every: Sequence[tuple[str, ...]]) -> str:
    """The name of a group of several runs. If the first settings of some groups agree, a number distinguishes them."""
    if not parts:
        return ONE_GROUP
    words = ", ".join(parts[:MOST_NAMED])
    if len(parts) <= MOST_NAMED:
        return words
    alike = [other for other in every if other[:MOST_NAMED] == parts[:MOST_NAMED]]
    number = f"{alike.index(parts) + 1}: " if len(alike) > 1 else ""
    return f"{number}{words} and {len(parts) - MOST_NAMED} more"


def run_names(runs: Sequence[Run]) -> dict[Path, str]:
    """{path of a run: its name}. The name is the shortest end of the path that no other run's path has."""
    paths = {run.path.resolve(): run.path for run in runs}
    names = {}
    for real, path in paths.items():
        parts = real.parts
        for count in range(1, len(parts) + 1):
            tail = parts[-count:]
            if sum(other.parts[-count:] == tail for other in paths) == 1:
                break
        names[path] = "/".join(tail)
    return {run.path: names[paths[run.path.resolve()]] for run in runs}


def short_key(key: str, every: Iterable[str]) -> str:
    """The shortest end of a dotted key that no other key in `every` has: "units" or "behavior.units"."""
    parts = key.split(".")
    others = [other for other in every if other != key]
    for count in range(1, len(parts)):
        tail = ".".join(parts[-count:])
        if not any(other == tail or other.endswith(f".{tail}") for other in others):
            return tail
    return key


# Settings -------------------------------------------------------------------------------------------------------------


def settings(config: Config) -> dict[str, Any]:
    """The settings, by dotted key, that define a group."""
    return {
        key: get(config, key) for key in keys(config) if key not in TASK and not has_mark(config, key, SAME_GROUP)
    }


def differences(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """The settings that differ: {dotted key: the value of each run}. The value None: the run has no such setting."""
    all_settings = [settings(run.config) for run in runs]
    names = dict.fromkeys(key for one in all_settings for key in one)
    values = {key: [one.get(key) for one in all_settings] for key in names}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def show(value: Any) -> str:
    """A setting in a few characters: 0.0003, 4e-05, [2, 3], true, auto."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _task_key(run: Run) -> str:
    """The key of a run's task: the environment and its options."""
    return f"{run.config.env} {_flow(run.config.env_options)}"


def _flow(options: Mapping[str, Any]) -> str:
    """Options on one line, such as "{image: true}"."""
    return yaml.dump(dict(options), Dumper=Dumper, default_flow_style=True, width=1000).strip()
