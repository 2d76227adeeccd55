"""The file of a sweep: a base config, and axes with the values to try. Imports no jax.

    base: [quickstart, {env_steps: 5000}]
    axes:
      agent.optimizer.learning_rate: [3e-4, 1e-3]
      agent.behavior.entropy: {loguniform: [1e-4, 1e-2]}
    seeds: 4
    search: random
    samples: 10
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from dreamer import shipped
from dreamer.coerce import show
from dreamer.config import Config, check_names, overlay, similar_key, stack
from dreamer.errors import UserError, nearest
from dreamer.fields import at_least, get, type_of
from dreamer.layers import Layer, dotted, layer, read_preset

DIGITS = 6  # of a number that is drawn, so that the name of its trial gives it exactly
LARGEST_RANGE = 10_000  # values


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The contents of a sweep's file."""

    base: tuple[Any, ...] = ()
    """Presets and mappings of settings, applied from left to right."""
    axes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values to try, by config key: a list, {range: [first, last, step]}, {choice: [..]}, {uniform: [low, high]},
    {loguniform: [low, high]}, {normal: [mean, std]}, or {integers: [low, high]}."""
    zip: tuple[tuple[str, ...], ...] = ()
    """Groups of axes whose lists advance together."""
    seeds: Any = 1
    """Number of seeds, counted from the seed of the base, or a list of seeds."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """grid: all combinations of the values; random: `samples` combinations, drawn at random; tpe: `samples`
    combinations, each suggested by Optuna from the results of earlier ones (--on ray)."""
    samples: Annotated[int, at_least(0)] = 0
    """Number of combinations that a random search or tpe tries; each is trained with all seeds."""
    draw_seed: Annotated[int, at_least(0)] = 0
    """Seed of the search, and of population-based training."""
    metric: str = ""
    """What tpe and schedulers compare, a metric that dreamer logs; empty: the return of evaluations, or, if there are
    none, the mean return of the last tenth of the training so far."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller metric is better."""


class Axis(NamedTuple):
    """The values of one config key.

    values: all values, in order; None: the axis is a distribution | draw(rng) -> one value
    """

    key: str
    values: tuple[Any, ...] | None
    draw: Callable[[np.random.Generator], Any]


def read(path: str) -> Sweep:
    """Reads a sweep file. Raises UserError if it is missing, or if a key or value is wrong.

    path: a file, or the name of a sweep that comes with dreamer, such as "cartpole"
    """
    name = str(shipped.sweeps().get(path, path))
    if not Path(name).is_file() and not name.endswith((".yaml", ".yml")):
        raise UserError(f"no sweep {path!r}: a sweep is a file in .yaml{nearest(path, shipped.sweeps())}")
    return overlay(Sweep(), _whole_axes(read_preset(name)))


def _whole_axes(given: Layer) -> Layer:
    """Returns the layer with `axes` as {dotted key: values}. Raises UserError if an axis is given twice."""
    axes = given.values.get("axes", {})
    if not isinstance(axes, Mapping):
        where = given.where("axes")
        raise UserError(f"axes must be a mapping of config keys to values, not {show(axes)} (from {where})")
    flat: dict[str, Any] = {}
    for key, value in _flattened(axes):
        if key in flat:
            raise UserError(f"axes: {key} is given twice (from {given.where('axes')})")
        flat[key] = value
    for key in flat:
        above = [other for other in flat if key.startswith(f"{other}.")]
        if above:
            raise UserError(f"axes: {above[0]} and {key} both set the same field (from {given.where('axes')})")
    return given._replace(values={**given.values, "axes": flat})


def _flattened(axes: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in axes.items():
        key = f"{path}{name}"
        nested = isinstance(value, Mapping) and not (len(value) == 1 and set(value) <= set(KINDS))
        found += _flattened(value, f"{key}.") if nested else [(key, value)]
    return found


def base_layers(sweep: Sweep, trust: bool) -> list[Layer]:
    """Returns the layers of the base config. trust: whether its presets may name code outside dreamer."""
    layers = []
    for one in sweep.base:
        if not isinstance(one, str | Mapping):
            raise UserError(f"base must list presets and mappings of settings, not {show(one)}")
        layers.append(read_preset(one) if isinstance(one, str) else layer(one, origin="base"))
    check_names(layers, given={}, trust=trust)
    return layers


def base_config(sweep: Sweep, trust: bool = False) -> Config:
    """Returns the config that all trials share. Raises UserError."""
    config = stack(base_layers(sweep, trust))
    default = type(config.population)()
    taken = next((key for key in ("seeds", "axes") if get(config.population, key) != get(default, key)), None)
    if taken:
        raise UserError(f"base sets population.{taken}; a sweep makes its own populations: use {taken} of the sweep")
    if config.run_dir:
        raise UserError("base sets run_dir; the trials of a sweep have directories of their own below --run-dir")
    return config


def seeds_of(sweep: Sweep, config: Config) -> tuple[int, ...]:
    """Returns the seeds of each setting. Raises UserError if they are not seeds, or if `axes` names seeds too."""
    given = sweep.axes.get("seed", sweep.seeds)
    if "seed" in sweep.axes and sweep.seeds != 1:
        raise UserError("axes.seed and seeds both set the seeds; give one of them")
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return tuple(range(config.seed, config.seed + given))
    listed = axis("seed", given).values if isinstance(given, Mapping) else given
    if not isinstance(listed, list | tuple) or not listed or not all(type(seed) is int for seed in listed):
        raise UserError(f"seeds must be a number of seeds, 1 or more, or a list of seeds, not {show(given)}")
    if len(set(listed)) < len(listed):
        raise UserError(f"seeds names a seed twice: {list(listed)}")
    return tuple(listed)


def axes_of(sweep: Sweep, config: Config) -> list[Axis]:
    """Returns the axes, without the seed. Raises UserError if a key is unknown or values cannot be read.

    Axes that advance together may repeat a value; in all others it would make two equal trials.
    """
    axes = [_checked(axis(key, value), config) for key, value in sweep.axes.items() if key != "seed"]
    zipped = {key for group in sweep.zip for key in group}
    for one in axes:
        values = one.values or ()
        if one.key not in zipped and len({repr(value) for value in values}) < len(values):
            raise UserError(f"axes.{one.key} names a value twice: {list(values)}")
    return axes


def _checked(one: Axis, config: Config) -> Axis:
    if one.key.split(".")[0] in ("run_dir", "population", "log", "checkpoint"):
        raise UserError(f"axes: {one.key} does not change what is trained, so that its trials would be equal")
    # A plug-in brings fields of its own; trials check keys below an axis that names a plug-in.
    if type_of(config, one.key) is None and not one.key.startswith("agent."):
        near = similar_key(config, one.key)
        raise UserError(f"axes: unknown key {one.key!r}" + (f"; did you mean {near!r}?" if near else ""))
    return one


def axis(key: str, given: Any) -> Axis:
    """Returns an axis from its values in the file. Raises UserError."""
    if isinstance(given, list | tuple):
        given = {"choice": given}
    if not (isinstance(given, Mapping) and len(given) == 1 and set(given) <= set(KINDS)):
        kinds = ", ".join(KINDS)
        raise UserError(f"axes.{key} must be a list of values, or one of {kinds}, not {show(given)}")
    [(kind, numbers)] = given.items()
    return KINDS[kind](key, numbers)


def _choice(key: str, values: Any) -> Axis:
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"axes.{key} must list at least one value, not {show(values)}")
    return Axis(key, tuple(values), lambda rng: values[int(rng.integers(len(values)))])


def _range(key: str, given: Any) -> Axis:
    numbers = _numbers(key, "range", given, (2, 3))
    first, last, step = (*numbers, 1)[:3]
    count = math.floor((last - first) / step + 1e-9) + 1 if step else 0
    if not 1 <= count <= LARGEST_RANGE:
        raise UserError(f"axes.{key}: range {list(given)} must have 1 to {LARGEST_RANGE:,} values")
    whole = all(isinstance(number, int) for number in (first, last, step))
    return _choice(key, [first + i * step if whole else rounded(first + i * step) for i in range(count)])


def _uniform(key: str, given: Any) -> Axis:
    low, high = _ordered(key, "uniform", given)
    return Axis(key, None, lambda rng: rounded(rng.uniform(low, high)))


def _loguniform(key: str, given: Any) -> Axis:
    low, high = _ordered(key, "loguniform", given)
    if low <= 0:
        raise UserError(f"axes.{key}: loguniform needs numbers above 0, not {list(given)}")
    return Axis(key, None, lambda rng: rounded(math.exp(rng.uniform(math.log(low), math.log(high)))))


def _normal(key: str, given: Any) -> Axis:
    mean, std = _numbers(key, "normal", given, (2,))
    if std < 0:
        raise UserError(f"axes.{key}: the second number of normal is a standard deviation, 0 or more, not {std}")
    return Axis(key, None, lambda rng: rounded(rng.normal(mean, std)))


def _integers(key: str, given: Any) -> Axis:
    low, high = map(int, numbers := _ordered(key, "integers", given))
    if not all(isinstance(number, int) for number in numbers):
        raise UserError(f"axes.{key}: integers needs two whole numbers, not {list(given)}")
    return Axis(key, None, lambda rng: int(rng.integers(low, high + 1)))


KINDS: dict[str, Callable[[str, Any], Axis]] = {
    "choice": _choice, "range": _range, "uniform": _uniform, "loguniform": _loguniform, "normal": _normal,
    "integers": _integers,
}  # fmt: skip


def _ordered(key: str, kind: str, given: Any) -> list[float]:
    numbers = _numbers(key, kind, given, (2,))
    if numbers[0] > numbers[1]:
        raise UserError(f"axes.{key}: {kind} needs the lower number first, not {list(given)}")
    return numbers


def _numbers(key: str, kind: str, given: Any, counts: Sequence[int]) -> list[Any]:
    good = isinstance(given, list | tuple) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in given
    )
    if not good or len(given) not in counts:
        raise UserError(f"axes.{key}: {kind} needs {' or '.join(map(str, counts))} numbers, not {show(given)}")
    return list(given)


def rounded(number: float) -> float:
    """Returns a number with DIGITS digits."""
    return float(f"{number:.{DIGITS}g}")


def named_in(sweep: Sweep) -> dict[str, Any]:
    """Returns the contents of a sweep file as JSON values, for the directory of the sweep."""
    return {item.name: getattr(sweep, item.name) for item in dataclasses.fields(sweep)}


def given_keys(sweep: Sweep) -> set[str]:
    """Returns the dotted keys that mappings in `base` set."""
    return {key for one in sweep.base if isinstance(one, Mapping) for key, _ in dotted(layer(one, "base").values)}
