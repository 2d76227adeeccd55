"""Pages that are easy to read: short types, and table cells with text that the style sheet can widen."""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes

LONG = 60  # characters of a table cell that are text to read, not a number or a name


def mark_long_cells(page: nodes.document) -> None:
    """Gives table cells with much text the class "long"."""
    for cell in page.findall(nodes.entry):
        if len(cell.astext()) > LONG:
            cell["classes"].append("long")


def shorten_types(page: nodes.document) -> None:
    """Shows Annotated[T, ..] as T. The ranges are on the page of the configuration."""
    for name in list(page.findall(addnodes.pending_xref)):
        if name.astext() == "Annotated" and name.parent is not None:
            _shorten(name.parent, name.parent.index(name))


def _shorten(signature: nodes.Element, start: int) -> None:
    """Replaces Annotated[T, ..], which begins at child `start`, by T."""
    depth, kept, whole = 0, [], True
    for end in range(start + 1, len(signature)):
        part = signature[end]
        text = part.astext()
        depth += (text in ("[", "(")) - (text in ("]", ")"))
        whole = whole and not (text == "," and depth == 1)
        if depth == 0:
            signature[start : end + 1] = kept
            return
        if whole and end > start + 1:
            kept.append(part)
