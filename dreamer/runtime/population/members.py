"""The members of a population: runs that differ in their seeds and in numbers of the agent. Imports no jax."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.config import Config as RunConfig
from dreamer.config import overlay, similar_key
from dreamer.errors import UserError
from dreamer.fields import get, type_of
from dreamer.layers import layer


class Member(NamedTuple):
    """A member of a population.

    name: that of its run directory, made from its differences | config: that of its run
    values {key: value}: its own values of the axes
    """

    name: str
    config: RunConfig
    values: Mapping[str, Any]


def count(config: RunConfig) -> int:
    """Returns the number of members; 1 means that the run is not a population."""
    if config.population.members:
        return len(config.population.members)
    sizes = [len(values) for values in flattened(config.population.axes).values() if isinstance(values, list | tuple)]
    return max(math.prod(sizes) * config.population.seeds, 2 if config.population.axes else 1)


def members_of(config: RunConfig) -> list[Member]:
    """Returns the members of a population: all combinations of the values in `population.axes`, each with all seeds.

    Each member is a run on one device.
    Raises UserError for an axis that is not a field of the agent, or whose values are not a list of valid values.
    """
    given, axes = config.population, flattened(config.population.axes)
    if given.members:
        return _listed(config)
    for key, values in axes.items():
        _check_axis(config, key, values)
    named, members = short_names(axes), []
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        for seed in range(config.seed, config.seed + given.seeds):
            parts = [f"{named[key]}={value}" for key, value in values.items()]
            name = "-".join([*parts, *([f"seed{seed}"] if given.seeds > 1 or not parts else [])])
            members.append(_member(config, name, seed, values, "population.axes"))
    return members


def _member(config: RunConfig, name: str, seed: int, values: Mapping[str, Any], origin: str) -> Member:
    own = overlay(config, layer(values, origin=origin))
    run_dir, none = str(Path(config.run_dir) / name), type(config.population)()
    one = dataclasses.replace(own.devices, count=1, fsdp=1)
    log = dataclasses.replace(own.log, **wandb_fields(own.log, name, Path(config.run_dir).name, "population"))
    alone = dataclasses.replace(own, seed=seed, run_dir=run_dir, devices=one, population=none, log=log)
    return Member(name, alone, {key: get(own, key) for key in values})


def wandb_fields(log: Any, name: str, group: str, tag: str) -> dict[str, Any]:
    """Returns the fields of a log's config that tell one of many runs from the others in Weights & Biases.

    log: the config of the log of all | name: that of the run; "": its members add their own names
    group: that of all runs, if the config gives none | tag: added to those of the config
    """
    if log.wandb == "off":
        return {}
    names = [part for part in (log.wandb_name, name) if part]
    tags = dict.fromkeys((*log.wandb_tags, tag))
    return {"wandb_name": "-".join(names), "wandb_group": log.wandb_group or group, "wandb_tags": tuple(tags)}


def _listed(config: RunConfig) -> list[Member]:
    """Returns the members that `population.members` lists. Raises UserError."""
    given = config.population
    if given.axes or given.seeds > 1:
        raise UserError("population.members lists all members; leave out population.axes and population.seeds")
    members = []
    for number, listed in enumerate(given.members):
        origin = f"population.members[{number}]"
        values = flattened({key: value for key, value in listed.items() if key not in ("name", "seed")})
        for key in values:
            _check_axis(config, key, [None], origin)
        seed = listed.get("seed", config.seed)
        name = str(listed.get("name", f"member{number}"))
        if not re.fullmatch(r"[\w.=+][\w.=+-]*", name, re.ASCII) or name in (".", ".."):
            raise UserError(f"{origin}: the name {name!r} is not a plain name of a directory")
        members.append(_member(config, name, seed, values, origin))
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise UserError(f"population.members: two members have one name: {', '.join(names)}")
    return members


def flattened(axes: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns {dotted key: values} of axes that may be nested as in a preset."""
    found: dict[str, Any] = {}
    for name, value in axes.items():
        found |= flattened(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return found


def short_names(axes: Collection[str]) -> dict[str, str]:
    """Returns for each dotted key its last words, as few as make the name unique."""
    words = {key: key.split(".") for key in axes}
    short = {}
    for key, own in words.items():
        sizes = range(1, len(own) + 1)
        unique = [n for n in sizes if sum(other[-n:] == own[-n:] for other in words.values()) == 1]
        short[key] = ".".join(own[-unique[0] :])
    return short


def _check_axis(config: RunConfig, key: str, values: Any, origin: str = "population.axes") -> None:
    if type_of(config, key) is None:
        near = similar_key(config, key)
        raise UserError(f"{origin}: unknown key {key!r}" + (f"; did you mean {near!r}?" if near else ""))
    if not key.startswith("agent."):
        hint = "population.seeds gives each member a seed of its own" if key == "seed" else "dreamer sweep varies it"
        raise UserError(f"{origin}: {key} is not a number of the agent, which alone members can vary; {hint}")
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"population.axes.{key} must be a list of values, not {values!r}")
    if len({repr(value) for value in values}) < len(values):
        raise UserError(f"population.axes.{key} names a value twice: {list(values)}")
