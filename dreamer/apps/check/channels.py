"""Finds keys whose numbers never change, or change too much, during the random steps. Imports no jax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamer.apps.check.looks import Key, Look
from dreamer.apps.check.verdicts import Verdict, counted, listed, note, ok, warning, wrong
from dreamer.apps.check.walk import Walk
from dreamer.spaces import BYTE

ENOUGH = 10  # with fewer rows, constant values are not reported
LARGE = 1e6
GROWTH = 1000.0  # between the first and the last quarter of the walk
DARK = 32 / 255  # of a picture's range: a picture below it holds classes or a mask, or it is very dark


def check(walk: Walk, keys: Sequence[Key]) -> list[Verdict]:
    """Reports keys that are constant, explode or have an odd scale. If there is no warning, also reports all ranges."""
    if len(walk.rows) < ENOUGH:
        return []
    looks = {key.name: [row.looks[key.name] for row in walk.rows if key.name in row.looks] for key in keys}
    still = [key for key in keys if len({look.mark for look in looks[key.name]}) == 1]
    verdicts: list[Verdict] = []
    if still and len(still) == len(keys):
        text = f"no observation ever changes in {counted(len(walk.rows), 'row')}: the agent sees nothing"
        verdicts.append(wrong("constant", text))
    else:
        verdicts += [_still(key, looks[key.name][0], len(walk.rows)) for key in still]
    for key in keys:
        if key not in still and looks[key.name]:
            verdicts += (_picture if key.reader.space.image else _numbers)(key, looks[key.name])
    bad = {"warning", "wrong"} & {verdict.level for verdict in verdicts}
    return verdicts if bad else [ok("channels", _ranges(looks)), *verdicts]


def _still(key: Key, look: Look, rows: int) -> Verdict:
    """Returns a verdict on a key that never changes: a warning for an image (the camera may be broken), else a note."""
    if key.reader.space.image:
        shade = f"all of it {look.low:g}" if look.low == look.high else "always the same picture"
        return warning("constant", f"picture {key.name!r} never changes in {counted(rows, 'row')}, {shade}")
    return note("constant", f"key {key.name!r} never changes in {counted(rows, 'row')} of random actions")


def _picture(key: Key, looks: list[Look]) -> list[Verdict]:
    high = max(look.high for look in looks)
    black, white = key.reader.space.ends
    if any(look.dtype.kind == "f" and "f" not in key.reader.kinds for look in looks):
        return []  # already reported as the wrong dtype
    if (black, white) == BYTE and high <= 1:
        text = (
            f"picture {key.name!r} holds nothing above {high:g} of 255: looks like floats from 0 to 1 turned into "
            "uint8; multiply by 255 first"
        )
        return [warning("picture-range", text)]
    if (high - black) / (white - black) < DARK:
        text = (
            f"picture {key.name!r} holds nothing above {high:g} of {black:g} to {white:g}: nearly black to the agent; "
            "if these are classes, draw them or declare them as MultiDiscrete"
        )
        return [note("picture-range", text)]
    return []


def _numbers(key: Key, looks: list[Look]) -> list[Verdict]:
    values = [look.value for look in looks if look.value is not None]
    if not values or len({value.shape for value in values}) > 1:
        return []
    table = np.stack(values)
    verdicts = []
    still = np.flatnonzero((table == table[0]).all(0))
    if still.size:
        text = f"{still.size} of {table.shape[1]} numbers of {key.name!r} never change: {listed(still.tolist())}"
        verdicts.append(note("constant-part", text))
    size = np.abs(np.where(np.isfinite(table), table, 0.0))
    quarter = max(1, len(size) // 4)
    first, last = size[:quarter].max(0), size[-quarter:].max(0)
    grown = np.flatnonzero(last > GROWTH * np.maximum(first, 1.0))
    large = np.flatnonzero(size.max(0) > LARGE)
    if grown.size:
        i = int(grown[np.argmax(last[grown])])
        text = (
            f"{key.name!r}[{i}] grows from {first[i]:.3g} to {last[i]:.3g} between the first and the last quarter of "
            "the random steps: the agent will meet values that it has never seen; return differences, or reset it"
        )
        verdicts.append(warning("exploding", text))
    elif large.size:
        i = int(large[np.argmax(size.max(0)[large])])
        text = (
            f"{key.name!r}[{i}] reaches {size[:, i].max():.3g}: symlog makes such values nearly equal; scale them in "
            "the environment"
        )
        verdicts.append(warning("exploding", text))
    return verdicts


def _ranges(looks: dict[str, list[Look]]) -> str:
    spans = [f"{key!r} {_extreme(rows, min):.4g}..{_extreme(rows, max):.4g}" for key, rows in looks.items() if rows]
    return f"values seen: {listed(spans)}"


def _extreme(rows: list[Look], pick) -> float:
    found = [look.low if pick is min else look.high for look in rows if not np.isnan(look.low)]
    return pick(found) if found else float("nan")
