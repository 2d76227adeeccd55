"""Converts values from YAML or command-line flags to declared types, strictly and without loss. Imports no jax."""

from __future__ import annotations

import enum
import math
import os
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import yaml

from dreamer.errors import nearest

MOST_NESTED = 50  # levels of lists and mappings in one value
MOST_BITS = 10_000  # of a whole number, about 3,000 digits: Python converts at most 4,300 digits to text
_FLOAT = r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
# YAML 1.2's scalars: 7e-4 is a float; off, yes and 12:30 are text. PyYAML itself follows YAML 1.1.
_SCALARS = [
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9_]*)"),
    ("tag:yaml.org,2002:float", _FLOAT),
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|"),
    ("tag:yaml.org,2002:merge", r"<<"),
]


class NotPlain(ValueError):
    """Raised for a value that no config can hold.

    inside: the path of the wrong part in the value, such as ".goal[1]" | reason: what is wrong, such as "is a Goal"
    """

    def __init__(self, inside: str, reason: str):
        super().__init__(f"value whose {inside} {reason}" if inside else f"value that {reason}")
        self.inside, self.reason = inside, reason


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2. Raises an error for a duplicate key."""

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper. Quotes text that YAML 1.1 or 1.2 would misread, and keeps lists on one line."""

    yaml_implicit_resolvers: dict = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern in _SCALARS:
    for _yaml in (Loader, Dumper):
        _yaml.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), None)
Dumper.add_representer(list, lambda self, data: self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True))


def parse(texts: list[str], kind: Any) -> Any:
    """Converts the texts after a command-line flag to the value that a YAML preset would hold.

    kind: the type of the setting. If it is a text type, each text is kept unchanged; otherwise each is read as YAML.
    Several texts make a list. A single text is put into a list if `kind` is a list or tuple type, unless it is one in
    YAML already.
    """
    values = [text if _wants_text(kind) else _read(text) for text in texts]
    return values[0] if len(values) == 1 and (isinstance(values[0], list) or not is_sequence(kind)) else values


def _read(text: str) -> Any:
    try:
        value = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return text if value is None and text not in ("null", "~") else value  # "#fff" is a comment to YAML


def _wants_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(choice, str) for choice in get_args(kind))
    if is_union(kind):
        return all(_wants_text(member) for member in get_args(kind) if member is not type(None))
    return kind is str


def coerce(value: Any, kind: Any) -> Any:
    """Converts `value` to the type `kind` without loss: 1e6 is a valid int and "7e-4" a float; 1 is not a bool.

    Numbers and arrays of numpy and jax count as Python's; paths count as text. The type Any accepts what `plain`
    accepts. Raises ValueError(the expected value in words, a hint), or its subclass NotPlain for a part of a value that
    no config can hold. The hint may be absent.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return plain(value)
    value = _native(value)
    if origin is Literal:
        for choice in args:
            if type(choice) is type(value) and choice == value:
                return value
        raise ValueError(describe(kind), nearest(str(value), map(str, args)) if len(args) > 1 else "")
    if is_union(kind):
        return _first_fit(value, args, kind)
    if kind in (int, float):
        return _number(value, kind)
    if is_sequence(kind):
        return _sequence(value, kind)
    if kind in (dict, Mapping) or origin in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise ValueError(describe(kind))
        if not args or args[1] is Any:
            return plain(value)
        return {name: coerce(item, args[1]) for name, item in value.items()}
    if not isinstance(value, kind):
        raise ValueError(describe(kind))
    return str.__str__(value) if kind is str else value


def plain(value: Any, inside: str = "", level: int = 0) -> Any:
    """Converts `value` to YAML's types: null, bool, numbers, text, lists, and mappings.

    Tuples and arrays become lists, numpy numbers become Python's, and paths become text; nothing is rounded. Keys of
    mappings are text or whole numbers. Raises NotPlain for nan, huge integers and all other types.
    inside: the path of `value` in a larger value, such as ".goal[1]" | level: the nesting depth of `value`
    """
    value = _native(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise NotPlain(inside, "is a whole number too large to be written down")
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise NotPlain(inside, "is nan, which does not equal itself; leave it out or use null")
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list | tuple | Mapping) and level >= MOST_NESTED:
        raise NotPlain("", f"is nested deeper than {MOST_NESTED} levels, or holds itself")
    if isinstance(value, list | tuple):
        return [plain(item, f"{inside}[{number}]", level + 1) for number, item in enumerate(value)]
    if isinstance(value, Mapping):
        return _plain_mapping(value, inside, level)
    raise NotPlain(inside, f"is a {_class_name(value)}; a config holds numbers, text, bools, null, lists and mappings")


def _plain_mapping(value: Mapping, inside: str, level: int) -> dict:
    out: dict[Any, Any] = {}
    for name, item in value.items():
        name = _native(name)
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise NotPlain(inside, f"has the key {show(name)}, a {_class_name(name)}; keys are text or whole numbers")
        name = plain(name, inside)
        out[name] = plain(item, f"{inside}.{name}", level + 1)
    if len({str(name) for name in out}) < len(value):
        raise NotPlain(inside, "has two keys with the same text")
    return out


def _native(value: Any) -> Any:
    """Converts numpy and jax values, paths, and members of IntEnum and StrEnum to Python's built-in types.

    Arrays become lists, paths become text, and enum members become their values. Returns any other value unchanged.
    """
    if type(value).__module__.partition(".")[0] in ("jax", "jaxlib") and hasattr(value, "__array__"):
        value = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufUO":
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, enum.Enum) and isinstance(value, int | str):
        return value.value
    return value


def _class_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _number(value: Any, kind: type) -> int | float:
    if isinstance(value, str):
        try:
            value = float(value) if kind is float or not re.fullmatch(r"[+-]?[\d_]+", value) else int(value)
        except ValueError:
            raise ValueError(describe(kind)) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(describe(kind))
    if kind is float:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(describe(kind)) from None
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(describe(kind))
    if not -(2**63) <= value < 2**63:
        raise ValueError("a whole number of at most 64 bits (int)")
    return int(value)


def _sequence(value: Any, kind: Any) -> Any:
    make, args = get_origin(kind) or kind, get_args(kind)
    if not isinstance(value, list | tuple):
        raise ValueError(describe(kind))
    if not args:
        return make(value)
    if make is list or args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    try:
        return make(coerce(item, each) for item, each in zip(value, args, strict=True))
    except ValueError:
        raise ValueError(describe(kind)) from None


def _first_fit(value: Any, members: tuple, kind: Any) -> Any:
    for member in members:  # an exact type wins over one that needs a conversion
        if isinstance(member, type) and type(value) is member:
            return value
    for member in members:
        try:
            return coerce(value, member)
        except ValueError:
            continue
    raise ValueError(describe(kind))


def describe(kind: Any) -> str:
    """Returns a type in words that can follow "must be", such as "a whole number (int)"."""
    origin, args = get_origin(kind), get_args(kind)
    words = {
        bool: "true or false (bool)", int: "a whole number (int)", float: "a number (float)", str: "text (str)",
        type(None): "null", Any: "any YAML", dict: "a mapping", Mapping: "a mapping", list: "a list", tuple: "a list",
    }  # fmt: skip
    if origin is Literal:
        return "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    if is_union(kind):
        return " or ".join(describe(member) for member in args)
    if origin is tuple and args[-1] is not Ellipsis:
        return f"a list of {len(args)}, each {describe(args[0])}"
    if origin in (tuple, list):
        return f"a list, each {describe(args[0])}"
    return words.get(origin or kind) or f"a {getattr(kind, '__name__', kind)}"


def is_sequence(kind: Any) -> bool:
    """Whether a type is a list or tuple type."""
    return (get_origin(kind) or kind) in (list, tuple)


def is_union(kind: Any) -> bool:
    """Whether a type is a union, X | Y."""
    return get_origin(kind) in (Union, types.UnionType)


def show(value: Any) -> str:
    """Returns the repr of a value on one line of at most 60 characters, for an error message."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr may fail, for example for a whole number of 5,000 digits
        text = f"a {_class_name(value)}"
    return text if len(text) <= 60 else text[:57] + "..."
