"""Sections of the Markdown files beside the code, with links that hold on the site."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Files of the checkout that are pages of the site, or parts of one.
PAGES = {
    "experiments/README.md#environment-suites": "suites.md",
    "experiments/README.md": "results.md",
    "experiments/references/README.md": "published-curves.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/SCALING.md": "scaling.md",
    "README.md": "quickstart.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")


def text(what: str, docs: Path) -> str:
    """The text of "FILE", "FILE after HEADING" or "FILE after HEADING before HEADING"; the file's title is left out.

    FILE: from the root of the checkout, the parent of `docs`. Links are as in a page of `docs`.
    Errors: ValueError when there is no such heading.
    """
    name, _, section = what.partition(" after ")
    source = (docs.parent / name).read_text()
    after, _, before = section.partition(" before ")
    start = _place(source, f"## {after}", name) if after else source.index("\n")
    end = _place(source, f"## {before}", name) if before else len(source)
    folder = (docs.parent / name).parent
    return LINK.sub(lambda link: _moved(link, folder, docs), source[start:end]).strip()


def linked(source: str, page: Path, docs: Path) -> str:
    """A page of the site whose links to included files lead to the pages that show them; to itself: the name alone."""

    def moved(link: re.Match) -> str:
        path, hash_, anchor = link[3].partition("#")
        shown = _page(os.path.relpath(os.path.normpath(page.parent / path), docs.parent), anchor) if path else None
        if shown is None:
            return link.group()
        if docs / shown == page:
            return f"`{link[2]}`"
        return f"[{link[2]}]({os.path.relpath(docs / shown, page.parent)}{hash_}{anchor})"

    return LINK.sub(moved, source)


def _page(name: str, anchor: str) -> str | None:
    """The page that shows a place of a file of the checkout, None without one."""
    return PAGES.get(f"{name}#{anchor}", PAGES.get(name))


def _place(source: str, heading: str, name: str) -> int:
    found = re.search(rf"^{re.escape(heading)}$", source, re.MULTILINE)
    if not found:
        raise ValueError(f"{name} has no heading {heading!r}")
    return found.start()


def _moved(link: re.Match, folder: Path, docs: Path) -> str:
    """A link of a file in `folder` as one of a page in `docs`; one to a folder becomes the folder's name."""
    picture, label, target = link.groups()
    path, hash_, anchor = target.partition("#")
    if "://" in target or not path:
        return link.group()
    place = os.path.normpath(folder / path)
    name = os.path.relpath(place, docs.parent)
    if os.path.isdir(place):
        return f"`{name}/`" if label.rstrip("/") in name else f"{label} in `{name}/`"
    if page := _page(name, anchor):
        return f"[{label}]({page}{hash_}{anchor})"
    return f"{picture}[{label}]({os.path.relpath(place, docs)}{hash_}{anchor})"
