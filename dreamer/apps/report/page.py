"""Renders the page of a report: one self-contained HTML file that needs no network. Imports no jax."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import NamedTuple

from dreamer.apps.report import palette

GENERATOR = '<meta name="generator" content="dreamer report">'
LIGHT = {
    "paper": "#ffffff", "card": "#f7f8fa", "ink": "#16181d", "soft": "#555b66", "grid": "#dde0e6", "link": "#0a5bb5",
}  # fmt: skip
DARK = {
    "paper": "#121417", "card": "#1a1d22", "ink": "#e6e8ec", "soft": "#a4abb6", "grid": "#32363e", "link": "#7db8f5",
}  # fmt: skip
SHORT = 24  # the most characters of a cell whose text is not wrapped
SHOWN = 6  # pictures and videos that are shown; the others are folded


class Table(NamedTuple):
    """Text in rows and columns."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG picture, or an MP4 video if `video` is True. content: the bytes of the file | caption: the text below."""

    content: bytes
    caption: str
    video: bool = False


class Plot(NamedTuple):
    """A panel on the page. svg: the drawing, an SVG element | files: {format: path of a file with this drawing}."""

    title: str
    task: str
    svg: str
    caption: str
    files: dict[str, str]


class Legend(NamedTuple):
    """The legend of panels. lines: for each line its name, its style, and text such as ", 5 seeds".

    controls: whether the controls of all interactive panels stand beside it. The first legend of a page has them.
    """

    lines: Sequence[tuple[str, palette.Style, str]]
    controls: bool = True


class Fold(NamedTuple):
    """Paragraphs that appear when the reader clicks on the summary."""

    summary: str
    paragraphs: Sequence[str]


class Notes(NamedTuple):
    """A bulleted list. lines: its entries."""

    lines: Sequence[str]


Part = str | Table | Legend | Fold | Notes | Sequence[Picture] | Sequence[Plot]


class Section(NamedTuple):
    """A section of the page.

    parts: the contents from top to bottom | level: 2 or 3, for the HTML heading h2 or h3
    anchor: the HTML id, to which links can point; "": none
    """

    title: str
    parts: Sequence[Part]
    level: int = 2
    anchor: str = ""


class Head(NamedTuple):
    """The top of the page.

    lines: text below the title | command: the command that made the page; "": none is shown | notes: how many there are
    """

    title: str
    lines: Sequence[str]
    command: str = ""
    notes: int = 0


def render(head: Head, sections: Sequence[Section], panels: str = "", library: str = "") -> str:
    """Returns the whole page as HTML.

    panels: the panels as JSON | library: plotly.js from `interactive.library`; "": the page has no script
    """
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(head.title)} - dreamer report</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n"
        f"{_head(head)}\n{body}\n{_scripts(panels, library) if library else ''}</body>\n</html>\n"
    )


def _style() -> str:
    """Returns the style sheet of the page, which begins with the colours of the light and the dark scheme."""
    light, dark = (
        " ".join(f"--{name}: {color};" for name, color in {**page, **lines}.items())
        for page, lines in ((LIGHT, palette.light()), (DARK, palette.dark()))
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{_own_file('page.css')}"
    )


def _scripts(panels: str, library: str) -> str:
    return (
        f'<script type="application/json" id="panels">{panels}</script>\n'
        f'<script type="text/plain" id="library">{library}</script>\n<script>\n{_own_file("page.js")}</script>\n'
    )


def _own_file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _head(head: Head) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in head.lines)
    command = f'<code class="command">{escape(head.command)}</code>' if head.command else ""
    words = f"{head.notes} note{'s' if head.notes > 1 else ''}"
    notes = f'<p class="warn"><a href="#notes">{words}</a> on these runs</p>' if head.notes else ""
    return f'<header class="about">\n<h1>{escape(head.title)}</h1>{lines}{command}</header>\n{notes}'


def _section(section: Section) -> str:
    tag = f"h{section.level}"
    anchor = f' id="{escape(section.anchor)}"' if section.anchor else ""
    return "\n".join([f"<{tag}{anchor}>{escape(section.title)}</{tag}>", *map(_part, section.parts)])


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{escape(part)}</p>"
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Legend):
        return _bar(part)
    if isinstance(part, Fold):
        return _fold(part.summary, "".join(f"<p>{escape(text)}</p>" for text in part.paragraphs))
    if isinstance(part, Notes):
        return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in part.lines)}</ul>"
    plots = [one for one in part if isinstance(one, Plot)]
    if plots:
        return f'<div class="grid">\n{"".join(map(_plot, plots))}</div>'
    return _gallery([one for one in part if isinstance(one, Picture)])


def _fold(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def _table(table: Table) -> str:
    numeric = [any(_is_number(row[place]) for row in table.rows) for place in range(len(table.header))]
    head = "".join(
        f"<th{' class=number' if right else ''}>{escape(cell)}</th>"
        for cell, right in zip(table.header, numeric, strict=True)
    )
    rows = "\n".join(
        f"<tr>{''.join(_cell(*cell) for cell in zip(table.header, row, numeric, strict=True))}</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table>\n<tr class="head">{head}</tr>\n{rows}\n</table></div>'


def _cell(name: str, text: str, number: bool) -> str:
    kind = " class=number" if number else " class=short" if len(text) <= SHORT else ""
    return f'<td{kind} data-label="{escape(name)}">{escape(text)}</td>'


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d,]+(\.\d+)?(e[-+]?\d+)?", text) is not None


def _bar(legend: Legend) -> str:
    """Returns the HTML of a legend, and of the controls of the interactive panels if it has them."""
    buttons = "".join(_button(*line) for line in legend.lines)
    if not legend.controls:
        return f'<div class="legend">{buttons}</div>'
    return (
        f'<div class="bar"><div class="legend">{buttons}</div><div class="controls" hidden>'
        '<label>smoothing <input type="range" min="0" max="0.95" step="0.05" value="0"><output>off</output></label>'
        '<label>bands <select><option value="both">seeds and episodes</option><option value="seeds">seeds</option>'
        '<option value="episodes">episodes</option><option value="none">none</option></select></label></div></div>'
    )


def _button(name: str, style: palette.Style, words: str) -> str:
    dashes = f' stroke-dasharray="{palette.SVG_DASHES[style.dash]}"' if style.dash != "solid" else ""
    swatch = (
        f'<svg viewBox="0 0 26 10" aria-hidden="true"><path d="M0 5H26" stroke="var(--{style.color})" '
        f'stroke-width="3"{dashes}></path></svg>'
    )
    return (
        f'<button type="button" aria-pressed="true" data-line="{escape(name)}">{swatch}{escape(name)}'
        f"{escape(words)}</button>"
    )


def _plot(plot: Plot) -> str:
    task = f"<small>{escape(plot.task)}</small> " if plot.task else ""
    links = " ".join(f'<a href="{escape(path)}">{kind.upper()}</a>' for kind, path in plot.files.items())
    return (
        f'<figure><h3>{escape(plot.title)} {task}</h3><div class="plot">{plot.svg}</div>'
        f"<figcaption>{escape(plot.caption)} {links}</figcaption></figure>\n"
    )


def _gallery(pictures: Sequence[Picture]) -> str:
    def grid(some: Sequence[Picture]) -> str:
        return f'<div class="grid media">{"".join(map(_figure, some))}</div>'

    first, rest = pictures[:SHOWN], pictures[SHOWN:]
    return grid(first) + (_fold(f"{len(rest)} more", grid(rest)) if rest else "")


def _figure(picture: Picture) -> str:
    kind = "video/mp4" if picture.video else "image/png"
    source = f"data:{kind};base64,{base64.b64encode(picture.content).decode()}"
    caption = escape(picture.caption)
    shown = (
        f'<video src="{source}" controls muted loop playsinline></video>'
        if picture.video
        else f'<img src="{source}" alt="{caption}">'
    )
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>\n"
