"""The page of a report: one self-contained HTML file that needs no network. No jax."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

GENERATOR = '<meta name="generator" content="dreamer report">'
STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8882; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 88rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
figure img, figure video { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
.curve { width: 40rem; } .shot { width: 26rem; }
figcaption { font-size: .85rem; opacity: .8; max-width: 40rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--faint); }
td.number { text-align: right; white-space: nowrap; }
code { font-size: .9em; overflow-wrap: anywhere; }
"""


class Picture(NamedTuple):
    """A PNG or, with `video`, an mp4, and the words below it. curve: one of the panels, drawn larger."""

    content: bytes
    caption: str
    video: bool = False
    curve: bool = False


class Table(NamedTuple):
    """Text in rows and columns."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A heading of the first or second level with its contents, top to bottom."""

    title: str
    parts: Sequence[str | Table | Sequence[Picture]]
    level: int = 2


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole page as HTML. Text of a section becomes a paragraph."""
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n"
        "</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    tag = f"h{section.level}"
    parts = [_part(part) for part in section.parts]
    return "\n".join([f"<{tag}>{escape(section.title)}</{tag}>", *parts])


def _part(part: str | Table | Sequence[Picture]) -> str:
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, Table):
        return _table(part)
    return f'<div class="row">{"".join(_figure(picture) for picture in part)}</div>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "\n".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table.rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{rows}\n</table></div>'


def _cell(text: str) -> str:
    number = text.replace(",", "").replace(".", "").removeprefix("-").isdigit()
    return f"<td{' class=number' if number else ''}>{escape(text)}</td>"


def _figure(picture: Picture) -> str:
    kind = "video/mp4" if picture.video else "image/png"
    source = f"data:{kind};base64,{base64.b64encode(picture.content).decode()}"
    caption = escape(picture.caption)
    shown = (
        f'<video src="{source}" controls muted loop playsinline></video>'
        if picture.video
        else f'<img src="{source}" alt="{caption}">'
    )
    size = "curve" if picture.curve else "shot"
    return f'<figure class="{size}">{shown}<figcaption>{caption}</figcaption></figure>\n'
