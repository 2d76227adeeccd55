"""The trials of a sweep: one config for each combination of values and seed. Imports no jax."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.apps.sweep.spec import Axis, Sweep, axes_of, base_layers, seeds_of
from dreamer.config import Config, check_names, stack
from dreamer.errors import UserError
from dreamer.fields import get
from dreamer.layers import layer
from dreamer.runtime.log.wandb_runs import wandb_ready
from dreamer.runtime.population.members import short_names

MOST = 100_000  # trials of a sweep
LONGEST = 120  # characters of a name


class Trial(NamedTuple):
    """One training of a sweep.

    name: made from its differences; that of its run directory | values {key: value}: its own, without the seed
    config: the config of its run, without a run directory
    """

    name: str
    values: Mapping[str, Any]
    seed: int
    config: Config


def trials_of(
    sweep: Sweep, config: Config, trust: bool = False, settings: Sequence[Mapping[str, Any]] | None = None
) -> list[Trial]:
    """Returns all trials, in the order of the axes, each with all seeds. config: the base config.

    trust: whether values may name code outside dreamer
    settings: the combinations of values; None: those that the search makes, none for tpe
    Raises UserError if a value is wrong, or if a package for logging is missing, before anything starts.
    """
    axes = axes_of(sweep, config)
    seeds = seeds_of(sweep, config)
    settings = combinations(sweep, axes) if settings is None else settings
    if len(settings) * len(seeds) > MOST:
        raise UserError(f"the sweep has {len(settings) * len(seeds):,} trials; at most {MOST:,} are possible")
    short = short_names([one.key for one in axes])
    base = base_layers(sweep, trust)
    trials: list[Trial] = []
    for values in settings:
        own = layer(dict(values), origin="axes")
        check_names([own], given={}, trust=trust)
        made = stack([*base, own], note=_refuse)
        values = {key: _exact(made, key, value) for key, value in values.items()}
        for seed in seeds:
            words = [f"{short[key]}={written(value)}" for key, value in values.items()]
            name = shortened("-".join([*words, *([f"seed{seed}"] if len(seeds) > 1 or not words else [])]))
            trials.append(Trial(name, values, seed, dataclasses.replace(made, seed=seed)))
    for mode in sorted({trial.config.log.wandb for trial in trials} - {"off"}):
        wandb_ready(mode)
    if len({trial.name for trial in trials}) < len(trials):
        raise UserError("two trials of the sweep are equal: an axis lists a value twice, or too few can be drawn")
    return trials


def _refuse(note: str) -> None:
    raise UserError(f"axes: two of them do not fit together: {note}")


def _exact(config: Config, key: str, value: Any) -> Any:
    """Returns the value that the config has, such as 1.0 for 1, if it is plain."""
    found = get(config, key)
    return value if dataclasses.is_dataclass(found) else found


def combinations(sweep: Sweep, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Returns the combinations of values, {key: value} each. Raises UserError if the search does not fit the axes."""
    bundled = bundles(sweep, axes)
    if sweep.search == "grid":
        if sweep.samples:
            raise UserError("samples belongs to a random search: set search: random, or leave samples out")
        loose = [one.key for one in axes if one.values is None]
        if loose:
            raise UserError(f"axes.{loose[0]} is a distribution, which a grid cannot list; set search: random")
        parts = [[dict(zip([a.key for a in own], row, strict=True)) for row in rows_of(own)] for own in bundled]
        return [{k: v for part in chosen for k, v in part.items()} for chosen in itertools.product(*parts)]
    if not sweep.samples:
        raise UserError(f"search: {sweep.search} needs samples, the number of combinations to try")
    if sweep.search == "tpe":
        return []
    found: dict[str, dict[str, Any]] = {}
    for number in range(20 * sweep.samples):
        rng = np.random.default_rng((sweep.draw_seed, number))
        values = {key: value for own in bundled for key, value in drawn(own, rng).items()}
        found.setdefault(json.dumps(values, sort_keys=True), values)
        if len(found) == sweep.samples:
            return [*found.values()]
    raise UserError(f"the axes have {len(found)} combinations, fewer than samples: {sweep.samples}; lower samples")


def bundles(sweep: Sweep, axes: Sequence[Axis]) -> list[list[Axis]]:
    """Returns the axes in groups that advance together, in the order of the axes."""
    by_key = {one.key: one for one in axes}
    owner: dict[str, tuple[str, ...]] = {}
    for group in sweep.zip:
        for key in group:
            if key not in by_key:
                raise UserError(f"zip: {key} is not an axis; the axes are {', '.join(by_key) or 'none'}")
            if key in owner:
                raise UserError(f"zip: {key} is in two groups")
            owner[key] = group
        sizes = {key: len(by_key[key].values or ()) for key in group}
        if len(set(sizes.values())) > 1 or 0 in sizes.values():
            counts = ", ".join(f"{key} has {size}" for key, size in sizes.items())
            raise UserError(f"zip: axes that advance together need lists of one length: {counts}")
    groups = dict.fromkeys(owner.get(one.key, (one.key,)) for one in axes)
    return [[by_key[key] for key in group] for group in groups]


def rows_of(own: Sequence[Axis]) -> list[tuple[Any, ...]]:
    """Returns the values of axes that advance together, a tuple for each step."""
    return list(zip(*(one.values or () for one in own), strict=True))


def drawn(own: Sequence[Axis], rng: np.random.Generator) -> dict[str, Any]:
    """Draws values of axes that advance together, {key: value}."""
    if len(own) == 1:
        return {own[0].key: own[0].draw(rng)}
    rows = rows_of(own)
    return dict(zip([one.key for one in own], rows[int(rng.integers(len(rows)))], strict=True))


def written(value: Any) -> str:
    """Returns a value as text that can be part of a directory's name. Different values give different texts."""
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    plain = re.sub(r"[^A-Za-z0-9._+]+", "_", text).strip("_") if not re.fullmatch(r"[A-Za-z0-9._+-]+", text) else text
    return plain if plain == text else f"{plain[:40]}_{_digest(json.dumps(value, default=str))}"


def shortened(name: str) -> str:
    """Returns a name that a file system accepts: a long one ends in a digest of the whole."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}_{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
