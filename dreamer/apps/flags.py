"""Converts the flags of a command line to keys and values of a config, and prints the help of a config.

This module imports no jax.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_origin

import yaml

from dreamer import shipped
from dreamer.coerce import Dumper, describe, is_sequence, parse
from dreamer.config import Layer, Note, layer, overlay, similar_key, tell
from dreamer.errors import UserError
from dreamer.fields import type_of


class Flag(NamedTuple):
    """A flag as typed: its text, its dotted key, the words after it. inline: whether it was typed as --flag=word."""

    text: str
    key: str
    words: list[str]
    inline: bool


def own_words(config: Any, flags: Sequence[Flag]) -> tuple[list[Flag], list[str]]:
    """Returns the flags with only the words that belong to them, and the other words.

    Usually, only the first word after a flag belongs to it. A switch takes this word only if it is "true" or "false",
    and --resume takes any word but a preset. --help and --no-NAME take no words. A flag for a list, or for a value of
    any type, takes the first word and all others up to the next .yaml file; so does an unknown flag.
    """
    owned, free = [], []
    for flag in flags:
        count = 0 if flag.inline else _count_own(type_of(config, flag.key), flag)
        kept = flag.words[: 1 if flag.inline else count]
        owned.append(flag._replace(words=kept))
        free += flag.words[len(kept) :]
    return owned, free


def _count_own(kind: Any, flag: Flag) -> int:
    """Returns how many of the words after a flag belong to it. kind: the type of its value; None: it is unknown."""
    first = flag.words[0] if flag.words else ""
    negated = kind is None and flag.key.rpartition(".")[2].startswith("no_")
    if flag.key in ("help", "help_all") or negated:
        return 0
    if kind is bool:
        return int(first.lower() in ("true", "false"))
    if flag.key == "resume":
        return int(not is_preset(first))
    if kind is None or kind is Any or is_sequence(kind):
        ends = (number for number, word in enumerate(flag.words) if number and word.endswith((".yaml", ".yml")))
        return next(ends, len(flag.words))
    return 1


def joined(flags: Sequence[Flag], key: str) -> list[Flag]:
    """Returns the flags with all that set the list `key` made one, with the words of all of them in order."""
    own = [flag for flag in flags if flag.key == key and flag.words]
    if len(own) < 2:
        return [*flags]
    one = own[0]._replace(words=[word for flag in own for word in flag.words], inline=False)
    return [*(flag for flag in flags if flag not in own), one]


def is_preset(word: str) -> bool:
    """Whether a word names a preset: a .yaml file, or a preset that comes with dreamer."""
    return word.endswith((".yaml", ".yml")) or word in shipped.presets()


def scan(args: Sequence[str]) -> tuple[list[str], list[Flag]]:
    """Returns the words before the first flag, and the flags, each with the words that follow it."""
    words: list[str] = []
    flags: list[Flag] = []
    for arg in args:
        if not arg.startswith("-") or re.match(r"-[\d.]", arg) or arg in ("-", "-inf"):
            (flags[-1].words if flags else words).append(arg)
            continue
        text, equals, value = ("--help" if arg == "-h" else arg).partition("=")
        if not re.match(r"--[A-Za-z]", text):
            hint = f"did you mean '-{text}'?" if re.match(r"-[A-Za-z]{2}", text) else "flags are written --name value"
            raise UserError(f"unknown flag {text}; {hint}")
        flags.append(Flag(text, text[2:].replace("-", "_"), [value] if equals else [], bool(equals)))
    return words, flags


def apply(
    config: Any, flags: Sequence[Flag], before: Sequence[Layer] = (), note: Note = tell
) -> tuple[Any, list[str]]:
    """Returns `config` changed by `flags`, and the words that belong to no flag. Raises UserError with the flag's name.

    before: the layers that `config` was made from. note: called with a line that lists dropped values. See `overlay`.
    """
    values, origins, strays = {}, {}, []
    for flag in flags:
        key, value, rest = _bind(flag, config)
        values[key], origins[key] = value, flag.text
        strays += rest
    return overlay(config, layer(values, "the command line", origins), before=before, note=note), strays


def _bind(flag: Flag, config: Any) -> tuple[str, Any, list[str]]:
    """Returns the key and the value of a flag, and the words after the flag that do not belong to it."""
    kind = type_of(config, flag.key)
    if kind is None:
        return _bind_negated(flag, config)
    if dataclasses.is_dataclass(kind):
        first = dataclasses.fields(kind)[0].name.replace("_", "-")
        raise UserError(f"flag {flag.text} is a group of settings, such as {flag.text}.{first}; --help lists them")
    if kind is bool and not flag.inline and (not flag.words or flag.words[0].lower() not in ("true", "false")):
        return flag.key, True, flag.words
    if flag.key == "resume" and not flag.words:
        return flag.key, "yes", []
    if not flag.words:
        raise UserError(f"flag {flag.text} needs a value: {describe(kind)}")
    if not flag.inline and (is_sequence(kind) or kind is Any):
        return flag.key, parse(flag.words, kind), []
    if _is_mapping(kind) and (option := re.match(r"([A-Za-z_]\w*)=(.*)", flag.words[0])):
        raise UserError(f"flag {flag.text} {flag.words[0]}: write {flag.text}.{option[1]} {option[2] or 'VALUE'}")
    return flag.key, parse(flag.words[:1], kind), flag.words[1:]


def _bind_negated(flag: Flag, config: Any) -> tuple[str, Any, list[str]]:
    """Like `_bind`, but for flags such as --no-lockstep and --log.no-tensorboard, which set a field to false.

    Raises UserError for any other flag, because no field has its name.
    """
    parent, _, last = flag.key.rpartition(".")
    key = f"{parent}.{last[3:]}".lstrip(".")
    if last.startswith("no_") and type_of(config, key) is bool and not flag.inline:
        return key, False, flag.words
    near = "help" if flag.key in "help" else similar_key(config, flag.key)
    hint = f"did you mean '--{near.replace('_', '-')}'?" if near else "--help lists them"
    raise UserError(f"unknown flag {flag.text}; {hint}")


def show_help(settings: Any, usage: str, description: str) -> int:
    """Prints every field of `settings` with type, default and meaning. Returns 0."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_mapping_rule)
    try:
        tyro.cli(
            type(settings), default=settings, args=["--help"], prog=usage, description=description, registry=registry
        )
    except SystemExit:
        return 0
    raise AssertionError("tyro.cli returns from --help by SystemExit")


def _is_mapping(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (dict, Mapping)


def _mapping_rule(info: Any) -> Any:
    """Makes the help of tyro show a dict field as one row, whatever it contains. Returns None for any other field."""
    import tyro

    if not _is_mapping(info.type):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="'{KEY: VALUE, ...}'",
        instance_from_str=lambda words: parse(words, dict),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [yaml.dump(value, Dumper=Dumper, default_flow_style=True).strip()],
    )
