"""The fields of nested config dataclasses by dotted key. Imports no jax."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints


def declared(config: Any) -> Mapping[str, Any]:
    """{field: declared type} of a config dataclass, in order."""
    kind: Any = type(config)
    return _declared_of(kind)


@functools.cache
def _declared_of(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind) if item.init}


def get(config: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = config[part] if isinstance(config, Mapping) else getattr(config, part)
    return config


def type_of(config: Any, key: str) -> Any:
    """The declared type of the field at a dotted key; None when there is no such field.

    Any for an entry of a dict field; its class for a nested config.
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
    """The dotted keys of all leaves, in order."""
    for item in declared(config):
        key = f"{path}.{item}" if path else item
        value = getattr(config, item)
        if dataclasses.is_dataclass(value):
            yield from keys(value, key)
        else:
            yield key
