"""Every field of the configuration as Markdown, from the dataclasses: type, range, default and meaning."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

import yaml

from docs.extension.markdown import code, escaped
from dreamer import shipped
from dreamer.coerce import Dumper, describe, plain
from dreamer.config import Config
from dreamer.fields import MAY_CHANGE, Range, declared, has_mark


def page() -> str:
    """A section for each group of fields, the groups in the order of the configuration."""
    config = Config()
    return "\n\n".join(_section(config, path, group) for path, group in groups(config))


def presets() -> str:
    """A table of the shipped presets."""
    rows = [f"| {code(name)} | {escaped(shipped.preset_line(file))} |" for name, file in shipped.presets().items()]
    return "\n".join(["| preset | what it is |", "|---|---|", *rows])


def groups(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, config) of a config and of all configs in it, parents first."""
    yield path, config
    for name in declared(config):
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from groups(value, f"{path}.{name}" if path else name)


def _section(config: Config, path: str, group: Any) -> str:
    title, meaning = path or "The run", inspect.getdoc(type(group)) or ""
    named = getattr(group, "name", None)
    entries = [_entry(config, path, group, name) for name in declared(group)]
    kind = f" The fields are those of {code(named)}." if named else ""
    return "\n\n".join([f"## {title}", escaped(meaning) + kind, *filter(None, entries)])


def _entry(config: Config, path: str, group: Any, name: str) -> str:
    """A field as an entry of a definition list; "" for a group, which has a section of its own."""
    value = getattr(group, name)
    if dataclasses.is_dataclass(value):
        return ""
    key = f"{path}.{name}" if path else name
    facts = [escaped(_kind(declared(group)[name])), *_ranges(group, name), f"default {code(_shown(value))}"]
    if has_mark(config, key, MAY_CHANGE):
        facts.append("may change at a resume")
    meaning = " ".join(meanings(type(group)).get(name, "").split())
    meaning = meaning[:1].upper() + meaning[1:].removesuffix(".") + "."
    return f"(config-{key})=\n{code(key)}\n: {escaped(meaning)}\n\n  *{', '.join(facts)}*"


def _kind(kind: Any) -> str:
    """A type in a word where there is one: "a whole number (int)" as "int"."""
    words = re.sub(r"\ban? [\w ]+ \((\w+)\)|true or false \((bool)\)|text \(str\)", _short, describe(kind))
    return words.replace("a list, each ", "list of ")


def _short(words: re.Match) -> str:
    return words[1] or words[2] or "text"


def _ranges(group: Any, name: str) -> list[str]:
    notes = getattr(get_type_hints(type(group), include_extras=True)[name], "__metadata__", ())
    found = [note for note in notes if isinstance(note, Range)]
    return [f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:.10g}" for low, high in found]


def _shown(value: Any) -> str:
    """A default as it would stand in a preset."""
    text = yaml.dump(plain(value), Dumper=Dumper, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...") or "''"


@functools.cache
def meanings(kind: type) -> dict[str, str]:
    """{field: the text below it} of a dataclass, from its source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            found[field.target.id] = str(ast.literal_eval(below.value))
    return found
