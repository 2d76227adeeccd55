"""Groups runs by task and settings, and names tasks, groups and runs by their differences. Imports no jax."""

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
MOST_NAMED = 3  # the most settings in the name of a group
LONGEST = 60  # the most characters of the settings beside the name of a single run


class Group(NamedTuple):
    """Runs that differ only in their seed, or that the user has put into one group."""

    name: str
    runs: list[Run]


class Task(NamedTuple):
    """One environment with its options, and the groups of runs that were trained in it."""

    name: str
    env: str
    options: Mapping[str, Any]
    groups: list[Group]

    @property
    def runs(self) -> list[Run]:
        """The runs of all groups. A run that is in two groups is listed twice."""
        return [run for group in self.groups for run in group.runs]

    @property
    def offline(self) -> bool:
        """Whether all runs have learned from data only, so that their x axis counts updates."""
        return all(run.config.updates for run in self.runs)


def tasks(runs: Sequence[Run], named: Sequence[Group] = ()) -> list[Task]:
    """Sorts `runs` into tasks and groups, adds the groups `named` by the user, and returns the tasks in name order.

    A group of `runs` holds the runs of one task whose configs agree in all fields except those marked SAME_GROUP, such
    as the seed. The group's name lists the settings that differ within a task, and is the same in every task.
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
    """Returns {key of a task: its name}, such as "dmc:x {image: true}".

    The name is the environment, followed by the options that differ between tasks of this environment.
    """
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
    """Returns, for each run, the name of its group. The name lists the settings that differ within a task.

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
    """Returns the keys of the settings that differ within a task. The key that splits the runs most evenly is first.

    A setting that only some of the runs have counts if it differs among these. Otherwise the name of the world model or
    behavior that it belongs to says enough.
    """
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(_task_key(run), []).append(run)
    most_common: dict[str, int] = {}
    for members in by_task.values():
        known = [settings(run.config) for run in members]
        for key, values in differences(members).items():
            if len({show(one[key]) for one in known if key in one}) > 1:
                count = Counter(map(show, values)).most_common(1)[0][1]
                most_common[key] = most_common.get(key, 0) + count
    return sorted(most_common, key=most_common.__getitem__)


def _single(name: str, parts: Sequence[str]) -> str:
    """Returns the name of a group of one run. name: the run's name | parts: differing settings as "key=value"."""
    words = ", ".join(parts)
    return f"{name} ({words})" if parts and len(parts) <= MOST_NAMED and len(words) <= LONGEST else name


def _several(parts: tuple[str, ...], every: Sequence[tuple[str, ...]]) -> str:
    """Returns the name of a group of several runs: its first three settings, and the number of other settings.

    A number before the name distinguishes groups that have the same first three settings.
    parts: the settings of the group, as "key=value" | every: the parts of all groups of several runs
    """
    if not parts:
        return ONE_GROUP
    words = ", ".join(parts[:MOST_NAMED])
    if len(parts) <= MOST_NAMED:
        return words
    alike = [other for other in every if other[:MOST_NAMED] == parts[:MOST_NAMED]]
    number = f"{alike.index(parts) + 1}: " if len(alike) > 1 else ""
    return f"{number}{words} and {len(parts) - MOST_NAMED} more"


def run_names(runs: Sequence[Run]) -> dict[Path, str]:
    """Returns {path of a run: its name}. The name is the end of the path, long enough to differ from all other runs."""
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
    """Shortens a dotted key to its last parts, such as "units". They suffice to tell it from all others in `every`."""
    parts = key.split(".")
    others = [other for other in every if other != key]
    for count in range(1, len(parts)):
        tail = ".".join(parts[-count:])
        if not any(other == tail or other.endswith(f".{tail}") for other in others):
            return tail
    return key


# Settings -------------------------------------------------------------------------------------------------------------


def settings(config: Config) -> dict[str, Any]:
    """Returns {dotted key: value} for the settings that define a group: not the task, nor fields marked SAME_GROUP."""
    return {
        key: get(config, key) for key in keys(config) if key not in TASK and not has_mark(config, key, SAME_GROUP)
    }


def differences(runs: Iterable[Run]) -> dict[str, list[Any]]:
    """Returns {dotted key: the value of each run} for the settings that differ; None if a run has no such setting."""
    all_settings = [settings(run.config) for run in runs]
    names = dict.fromkeys(key for one in all_settings for key in one)
    values = {key: [one.get(key) for one in all_settings] for key in names}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def show(value: Any) -> str:
    """Returns the value of a setting as short text: 0.0003, 4e-05, [2, 3], true, auto."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _task_key(run: Run) -> str:
    """Returns the key of a run's task: the environment and all its options."""
    return f"{run.config.env} {_flow(run.config.env_options)}"


def _flow(options: Mapping[str, Any]) -> str:
    """Returns options as one line of YAML, such as "{image: true}"."""
    return yaml.dump(dict(options), Dumper=Dumper, default_flow_style=True, width=1000).strip()
