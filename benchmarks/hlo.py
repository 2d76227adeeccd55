"""Parses the text of a compiled program: computations, trip counts of loops, sizes of arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "u64": 8,
         "s64": 8, "f64": 8}  # fmt: skip


def computations(text: str) -> dict[str, list[str]]:
    """{name: lines} of the computations; the name of the entry computation begins with "ENTRY "."""
    bodies: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = (head[1] or "") + head[2]
            bodies[name] = []
        elif name is not None:
            bodies[name].append(line)
    return bodies


def entry(bodies: Mapping[str, Sequence[str]]) -> str:
    """The name of the entry computation."""
    return next(name for name in bodies if name.startswith("ENTRY "))


def trips(bodies: Mapping[str, Sequence[str]], loop: str) -> int:
    """The trip count of a loop: its known_trip_count, else the number that its condition compares with, else 1."""
    if known := re.search(r"known_trip_count[^0-9]*(\d+)", loop):
        return int(known[1])
    condition = bodies[re.search(r"condition=%?([\w.\-]+)", loop)[1]]
    numbers = [int(n) for line in condition for n in re.findall(r" s32\[\]\S* constant\((\d+)\)", line)]
    return numbers[0] if len(numbers) == 1 else 1


def nbytes(shapes: str) -> int:
    """The total size in bytes of the array shapes in a text."""
    return sum(
        SIZES[dtype] * math.prod(map(int, filter(None, sizes.split(","))))
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )
