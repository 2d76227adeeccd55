"""Reads the settings of a preset file, a command line or overrides into a `Layer`. Imports no jax."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from dreamer import hints, shipped
from dreamer import trust as trusting
from dreamer.coerce import Loader, show
from dreamer.errors import UserError

LARGEST, MOST_NODES = 1 << 20, 100_000  # bytes of a preset, and values in it


class Layer(NamedTuple):
    """Settings to apply to a config, as nested `values`, and the places where they were given.

    origins: {dotted key: file and line, or flag, that set the key}; a key without an entry was set by `origin`.
    ours: whether the layer was read from the config of a run that this user made on this machine.
    """

    values: Mapping[str, Any]
    origin: str
    origins: Mapping[str, str]
    ours: bool = False

    def where(self, key: str) -> str:
        """Returns the file and line, or the flag, that set the dotted `key`."""
        return self.origins.get(key, self.origin)


def dotted(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested mappings. An inner mapping is itself yielded before its entries."""
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        yield key, value
        if isinstance(value, Mapping):
            yield from dotted(value, key)


def layer(values: Mapping[str, Any], origin: str, origins: Mapping[str, str] | None = None) -> Layer:
    """Makes a Layer of `values`; keys may be dotted ("agent.world_model.free_nats") or nested.

    origin, origins: see Layer. Raises UserError when `values` is not a mapping, or gives a key both whole and in parts.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{origin} must be a mapping such as {{'seed': 3}}, not {show(values)}")
    nested: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(str(key).split(".")):
            value = {part: value}
        try:
            _merge(nested, value, origin)
        except RecursionError:
            raise UserError(f"{key} is nested too deeply, or holds itself (from {origin})") from None
    return Layer(nested, origin, origins or {})


def read_preset(path: str | os.PathLike) -> Layer:
    """Reads the settings in a preset. Raises UserError when the preset is missing or is not valid YAML.

    path: a file, or the name of a preset that comes with dreamer, such as "quickstart".
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a preset is a file or a name, not {show(path)}; keys and values go into overrides={{...}}")
    name = os.fspath(shipped.presets().get(path, path) if isinstance(path, str) else path)
    try:
        whole = trusting.unsealed(_text_of(name))
    except FileNotFoundError:
        raise UserError(f"no preset file {name!r}{hints.nearest_preset_file(name)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"preset {name!r} cannot be read: {reason}") from None
    return layer_of(whole.text, name, first=1 if whole.run is None else 2)._replace(ours=whole.ours)


def _text_of(name: str) -> str:
    """Returns the text of a file. Raises OSError, or ValueError when the file is too large or not UTF-8."""
    with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe is read without waiting
        data = file.read(LARGEST + 1) or b""
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


def layer_of(text: str, name: str, first: int = 1) -> Layer:
    """Reads the settings in the text of a preset. Raises UserError when the text is not valid YAML.

    name: the name of the file, for messages. first: the number of the line where `text` begins in the file.
    """
    try:
        node = yaml.compose(text, Loader)
        _check_size(node, [MOST_NODES])
        values = yaml.load(text, Loader)
        lines = {key: line + first for key, line in _lines(node)}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + first}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{name}{line}: not valid YAML: {reason}") from None
    if values is None:
        return Layer({}, name, {})
    if not isinstance(values, dict):
        raise UserError(f"{name} must hold a mapping of config keys, not {show(values)}")
    return Layer(values, name, {key: f"{name}:{line}" for key, line in lines.items()})


def _merge(into: dict[str, Any], values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Merges nested `values` into `into` and returns it. Copies each mapping. Raises UserError. origin: see Layer."""
    for key, value in values.items():
        if isinstance(value, Mapping) != isinstance(into.get(key, value), Mapping):
            raise UserError(f"{key} is given both whole and in parts (from {origin})")
        into[key] = _merge(into.get(key, {}), value, origin) if isinstance(value, Mapping) else value
    return into


def _check_size(node: Any, left: list[int]) -> None:
    """Raises ValueError when a YAML document has too many nodes. An alias counts as all nodes that it repeats.

    left: a list that holds the number of nodes still allowed; the function reduces it.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it holds more than {MOST_NODES:,} values")
    for inner in node.value if isinstance(node, yaml.CollectionNode) else ():
        for one in inner if isinstance(inner, tuple) else (inner,):
            _check_size(one, left)


def _lines(node: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Yields (dotted key, line number) of every key of a YAML mapping. Lines are counted from 0."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
        dotted = f"{path}.{key.value}" if path else key.value
        yield dotted, key.start_mark.line
        yield from _lines(value, dotted)
