"""Writes the best setting of a sweep as a preset: the differences of its config from the defaults. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dreamer.apps.report.groups import show
from dreamer.apps.report.ranking import Ranking
from dreamer.apps.report.scores import text
from dreamer.coerce import Dumper, Loader
from dreamer.config import PLUGINS, Config, layer, stack, to_yaml
from dreamer.errors import UserError
from dreamer.fields import get
from dreamer.runtime.files.atomic import write_whole

FIRST = "# Best setting of the sweep"  # begins the first line of a preset that this module has written
DROPPED = ("seed", "run_dir", "population")  # what a new run decides itself


def check(path: str, tasks: int) -> None:
    """Raises UserError when `path` cannot be the file of the preset. tasks: the number of tasks of the sweep."""
    file = Path(path).expanduser()
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"--best {path}: the name of a preset ends in .yaml")
    if file.exists() and not file.read_text(errors="replace").startswith(FIRST):
        raise UserError(f"--best {path}: this file exists and is no best setting of a sweep; choose another name")
    if tasks > 1:
        raise UserError(f"--best {path}: the sweep has {tasks} tasks, whose returns cannot be compared")


def write(path: str, ranking: Ranking, name: str) -> Path:
    """Writes the preset of the best setting. Returns its path. name: of the sweep. Raises UserError on disk errors."""
    file = Path(path).expanduser()
    content = preset(ranking, name)
    return write_whole(file, lambda half: half.write_text(content, encoding="utf-8"))


def preset(ranking: Ranking, name: str) -> str:
    """Returns the text of the preset of the best setting. name: of the sweep."""
    best = ranking.results[0]
    run = best.setting.scored[0].run
    assert run is not None
    values = ", ".join(f"{key}={show(value)}" for key, value in best.setting.values.items()) or "no values"
    count = len(best.setting.scored)
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    lines = [f"{FIRST} {name}: {values}", f"Mean final score of {seeds}: {text(best.mean)}"]
    comment = "\n# ".join(" ".join(line.split()) for line in lines)
    settings = differences(run.config)
    body = yaml.dump(settings, Dumper=Dumper, sort_keys=False, width=100) if settings else ""
    return f"{comment}\n{body}"


def differences(config: Config) -> dict[str, Any]:
    """Returns the nested settings of a config that differ from the defaults, without seed, run_dir and population.

    A world model or behavior is compared with its own defaults. One that is not part of dreamer is not imported, so all
    of its settings are returned.
    """
    names = {f"{path}.name": get(config, path).name for path in PLUGINS}
    known = {key: name for key, name in names.items() if not ("." in name or ":" in name)}
    defaults = stack([layer(known, "the best setting")], note=lambda note: None)
    own, usual = (yaml.load(to_yaml(one), Loader) for one in (config, defaults))
    for key in names.keys() - known.keys():
        outer, inner, _ = key.split(".")
        usual[outer].pop(inner)
    changed = _changed(own, usual)
    named: dict[str, Any] = {}
    for key, name in known.items():
        outer, inner, field = key.split(".")
        if name != get(Config(), key):
            named.setdefault(outer, {})[inner] = {field: name}
    return {key: value for key, value in _joined(named, changed).items() if key not in DROPPED}


def _changed(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested entries of `values` that `usual` lacks or has with another value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        before = usual.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if (inner := _changed(value, before)) or (before and not value):
                found[key] = inner
        elif key not in usual or type(value) is not type(before) or value != before:
            found[key] = value
    return found


def _joined(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested mappings merged, with the keys of `first` in front."""
    joined = dict(first)
    for key, value in then.items():
        inner = joined.get(key)
        joined[key] = _joined(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return joined
