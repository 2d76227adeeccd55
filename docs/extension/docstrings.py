"""Docstrings, which are plain text with shapes such as [B, T], as reStructuredText that shows them unchanged."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A line that begins with a name and what it is: "key: ..", "obs {k: [E, ..]} | ..", "init(key) -> ..", or "Raises ..".
ENTRY = re.compile(r"\s*\w+(, \w+)*(\(.*\)| ?[\[{].*[\]}])?( \w+)?(:| \| | -> )|\w+\(.*\)$|\s+|->|(Raises|Returns) ")
COLUMNS = re.compile(r"\S {3,}\S")


def to_rst(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring: prose stays prose, lists keep their lines, blocks and columns are shown unchanged."""
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line.rstrip())
        elif paragraphs[-1]:
            paragraphs.append([])
    shown: list[str] = []
    for paragraph in filter(None, paragraphs):
        shown += [*_paragraph(paragraph), ""]
    return shown


def _paragraph(lines: list[str]) -> list[str]:
    if any(COLUMNS.search(line) for line in lines):
        return [".. code-block:: text", "", *(f"    {line}" for line in lines)]
    if all(line.startswith("    ") for line in lines):
        return ["::", "", *lines]
    joined: list[str] = []
    for line in lines:
        if joined and not ENTRY.match(line):
            joined[-1] += f" {line}"
        else:
            joined.append(line)
    if len(joined) == 1:
        return [_escaped(joined[0])]
    return [f"| {' ' * (len(line) - len(line.lstrip()))}{_escaped(line.strip())}" for line in joined]


def _escaped(text: str) -> str:
    """Text without markup but for `code`."""
    parts = re.split(r"`([^`]*)`", text)
    return "".join(f"``{part}``" if i % 2 else re.sub(r"([\\*_|`])", r"\\\1", part) for i, part in enumerate(parts))
