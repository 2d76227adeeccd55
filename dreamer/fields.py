"""Reads and checks the fields of nested config dataclasses, which are named by dotted keys. Imports no jax.

A mark, such as MAY_CHANGE, is a property of a field. A field's annotation holds its type, its range and its marks:

    envs: Annotated[int, at_least(1)] = 16
    address: Annotated[str, MAY_CHANGE, SAME_GROUP] = ""
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args, get_type_hints

from dreamer.errors import UserError


class Range(NamedTuple):
    """The finite numbers from `low` to `high`, both included; in a list or a tuple each entry must be in the range."""

    low: float
    high: float


def at_least(low: float) -> Range:
    """Returns the Range of all finite numbers from `low` upwards."""
    return Range(low, math.inf)


def between(low: float, high: float) -> Range:
    """Returns the Range of all numbers from `low` to `high`, both included."""
    return Range(low, high)


class Mark(NamedTuple):
    """A property of a config field, whatever its value. A mark on a nested config holds for all of its fields."""

    meaning: str


# A field with MAY_CHANGE does not change which agent is trained, or on which observations.
MAY_CHANGE = Mark("may change when a run is resumed")
SAME_GROUP = Mark("runs that differ only in this field form one group in a report")


def declared(config: Any) -> Mapping[str, Any]:
    """Returns the declared types {field: type} of a config dataclass, in the order of the fields."""
    kind: Any = type(config)
    return _declared_of(kind)


@functools.cache
def _declared_of(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind) if item.init}


def _annotated(config: Any) -> Mapping[str, tuple[Any, ...]]:
    """Returns {field: the ranges and marks in its annotation} of a config dataclass, in the order of the fields."""
    kind: Any = type(config)
    return _annotated_of(kind)


@functools.cache
def _annotated_of(kind: Any) -> Mapping[str, tuple[Any, ...]]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: getattr(hints[name], "__metadata__", ()) for name in _declared_of(kind)}


def get(config: Any, key: str) -> Any:
    """Returns the value at a dotted key of a config, such as "replay.batch_size"."""
    for part in key.split("."):
        config = config[part] if isinstance(config, Mapping) else getattr(config, part)
    return config


def type_of(config: Any, key: str) -> Any:
    """Returns the declared type of the field at a dotted key, or None when there is no such field.

    The type is Any for an entry of a dict field, and the class for a nested config.
    """
    *parents, last = key.split(".")
    for part in parents:
        if not dataclasses.is_dataclass(config) or part not in declared(config):
            return Any if isinstance(config, Mapping) else None
        config = getattr(config, part)
    if not dataclasses.is_dataclass(config):
        return Any if isinstance(config, Mapping) else None
    value = getattr(config, last, None)
    return type(value) if dataclasses.is_dataclass(value) else declared(config).get(last)


def keys(config: Any, path: str = "") -> Iterator[str]:
    """Yields the dotted keys of all fields that are not nested configs, in order. path: a prefix for the keys."""
    for item in declared(config):
        key = f"{path}.{item}" if path else item
        value = getattr(config, item)
        if dataclasses.is_dataclass(value):
            yield from keys(value, key)
        else:
            yield key


def check_bounds(config: Any, path: str = "") -> None:
    """Raises UserError unless every number of `config`, nested configs included, lies in the range of its field.

    path: the dotted key of `config`, for the message. If the `__post_init__` of a
    Config compares fields, it must call this function first.
    """
    for name in declared(config):
        key, value = f"{path}.{name}" if path else name, getattr(config, name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, key)
        else:
            check_field(config, name, value, key)


def check_field(config: Any, name: str, value: Any, key: str) -> None:
    """Raises UserError unless `value` lies in the range of the field `name` of `config`. key: its name in the message.

    A field whose type allows None may be None.
    """
    optional = value is None and type(None) in get_args(declared(config)[name])
    for bound in _annotated(config)[name]:
        if isinstance(bound, Range) and not optional:
            for number in value if isinstance(value, list | tuple) else (value,):
                check_bound(key, number, bound)


def check_bound(key: str, value: Any, bound: Range) -> None:
    """Raises UserError unless `value` is a number in `bound`. key: the name of the value in the message."""
    low, high = bound
    finite = isinstance(value, numbers.Integral) or (isinstance(value, numbers.Real) and math.isfinite(value))
    if not (finite and low <= value <= high):
        allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
        raise UserError(f"{key} must be {allowed}, not {value!r}")


def marked(config: Any, mark: Mark, path: str = "") -> Iterator[str]:
    """Yields the dotted keys of the fields that have the mark. path: a prefix for the keys.

    A nested config with the mark gives one key, its own; the keys inside it are not yielded.
    """
    for name, notes in _annotated(config).items():
        key, value = f"{path}.{name}" if path else name, getattr(config, name)
        if mark in notes:
            yield key
        elif dataclasses.is_dataclass(value):
            yield from marked(value, mark, key)


def has_mark(config: Any, key: str, mark: Mark) -> bool:
    """Whether the field at a dotted key, or a nested config that contains it, has the mark."""
    for part in key.split("."):
        if mark in _annotated(config)[part]:
            return True
        config = getattr(config, part)
    return False
