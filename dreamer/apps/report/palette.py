"""The colours and dashes of lines. They are the same on the page and in the vector graphics. Imports no jax."""

from __future__ import annotations

from typing import NamedTuple

# Okabe and Ito's colours, which colour-blind readers can distinguish. Their yellow is left out, because it is too pale
# on white paper. DARK has the same hues, lighter, for a dark page.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#111111")
DARK = ("#4ea8e6", "#ff8b42", "#2dcc9b", "#e8a5cb", "#f2b632", "#93d3f7", "#eeeeee")
PUBLISHED_LIGHT = ("#707070", "#959595", "#b4b4b4")
PUBLISHED_DARK = ("#a9a9a9", "#858585", "#6a6a6a")
DASHES = ("solid", "dash", "dot")
SVG_DASHES = {"solid": "", "dash": "6 2.5", "dot": "1.5 2"}


class Style(NamedTuple):
    """The look of a line. color: the name of a CSS variable without "--", such as c0 | dash: an entry of DASHES."""

    color: str
    dash: str


def of_group(number: int) -> Style:
    """Returns the style of a group. number: its index from 0. The styles repeat after 21 groups."""
    return Style(f"c{number % len(LIGHT)}", DASHES[number // len(LIGHT) % len(DASHES)])


def of_published(number: int) -> Style:
    """Returns the style of a published curve. number: its index from 0. The styles repeat after three curves."""
    return Style(f"p{number % len(PUBLISHED_LIGHT)}", "solid")


def light() -> dict[str, str]:
    """Returns {name of a colour: its value on a light page}."""
    return _named(LIGHT, PUBLISHED_LIGHT)


def dark() -> dict[str, str]:
    """Returns {name of a colour: its value on a dark page}."""
    return _named(DARK, PUBLISHED_DARK)


def _named(groups: tuple[str, ...], published: tuple[str, ...]) -> dict[str, str]:
    return {f"c{number}": color for number, color in enumerate(groups)} | {
        f"p{number}": color for number, color in enumerate(published)
    }


# From low to high values. All of them can be told from white and from dark paper.
SCALE = ("#6a3fc0", "#8f3ab5", "#b83289", "#cc4778", "#de5f65", "#ed7953", "#f89540")


def of_share(share: float) -> str:
    """Returns the colour of SCALE at a share from 0 (low) to 1 (high), between its neighbours in proportion."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    first = min(int(place), len(SCALE) - 2)
    parts = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in SCALE[first : first + 2]]
    mixed = (round(low + (high - low) * (place - first)) for low, high in zip(*parts, strict=True))
    return f"#{''.join(f'{part:02x}' for part in mixed)}"
