"""The Sphinx extension of this site: fills the marked places of pages with text made from the code.

A page holds a comment such as `<!-- generated: configuration -->` where that text goes, so that the page also reads
well where nothing is generated. The other files of this folder make the texts and need no Sphinx, but for `readable`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docs.extension import commands, configuration, docstrings, included, metrics

DOCS = Path(__file__).resolve().parents[1]
GENERATED: dict[str, Callable[[], str]] = {
    "configuration": configuration.page,
    "presets": configuration.presets,
    "metrics": metrics.page,
    "commands": commands.page,
}
MARK = re.compile(r"^<!-- (generated|included): (.+) -->$", re.MULTILINE)


def fill(source: str, page: Path) -> str:
    """A page of the site with its marks replaced. KeyError for an unknown name, ValueError for a missing section."""
    source = included.linked(source, page, DOCS)

    def text(mark: re.Match) -> str:
        kind, name = mark.groups()
        return GENERATED[name]() if kind == "generated" else included.text(name, DOCS)

    return MARK.sub(text, source)


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    from docs.extension import readable

    def read(app: Any, name: str, content: list[str]) -> None:
        content[0] = fill(content[0], Path(app.env.doc2path(name)))

    def docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
        lines[:] = docstrings.to_rst(lines)

    def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
        """Fields of named tuples, which the docstring of the tuple describes, and default dtypes of Flax modules."""
        return True if type(thing).__name__ == "_tuplegetter" or getattr(thing, "__name__", "") == "float32" else None

    def signature(app: Any, what: str, name: str, thing: Any, options: Any, text: str | None, result: Any) -> Any:
        """A signature without the arguments that Flax adds to its modules, and with short dtypes."""
        text = text and re.sub(r"(, )?parent: [^=]*_Sentinel.*\)$", ")", text)
        return text and re.sub(r"<class 'jax\.numpy\.(\w+)'>", r"jnp.\1", text), result

    def read_whole(app: Any, page: Any) -> None:
        readable.mark_long_cells(page)
        readable.shorten_types(page)

    app.connect("source-read", read)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("autodoc-process-signature", signature)
    app.connect("doctree-read", read_whole)
    return {"parallel_read_safe": True}
