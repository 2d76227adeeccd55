"""Chooses the devices on which the members of a population train, and moves the members there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.devices import placement
from dreamer.runtime.devices.mesh import configured_devices
from dreamer.runtime.fused import population as fused
from dreamer.runtime.fused import spread
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.fused.spread import Spread
from dreamer.runtime.learning.moving import Moving
from dreamer.runtime.run import header


def spread_of(config: Config, members: int) -> Spread:
    """Returns how so many members are spread over the devices of the config.

    Raises UserError if there are fewer devices than the config asks for, or if one member would need several.
    """
    if config.devices.fsdp > 1:
        raise UserError(
            f"devices.fsdp {config.devices.fsdp} splits one agent over several devices, but a member of a population "
            "trains on one device; leave it out"
        )
    return spread.spread(members, configured_devices(config.devices))


def together(wanted: int, each: int) -> int:
    """Returns how many of the `each` members of a device train at a time. wanted: as in the config; 0: the default."""
    return wanted or (1 if jax.default_backend() == "cpu" else each)


def describe(where: Spread, members: int) -> list[str]:
    """Returns a line that says how the members are spread; none for a single device."""
    devices, each = where.devices, where.each
    if len(devices) == 1:
        return []
    most = f"{each} on each" if members == each * len(devices) else f"at most {each} on each"
    return [f"members: {members} on {len(devices)} x {devices[0].device_kind}, {most}"]


def take(where: Spread, moving: Sequence[Moving]) -> tuple[list[Loop], list[Any]]:
    """Moves the members to their devices. Returns their Loops, joined on each device, and the counters of each member.

    moving: of each member. Raises UserError if a member cannot continue in the fused loop.
    """
    parts, counters = [], []
    for number in range(len(where.devices)):
        first = number * where.each
        loops = [one.take() for one in moving[first : first + where.each]]
        counters += [(loop.ring.added, loop.ring.taken, loop.acted, loop.started, loop.debt) for loop in loops]
        loops += loops[-1:] * (where.each - len(loops))
        parts.append(fused.stack(loops))
    return parts, placement.to_host(counters)


def check_counters(root: Path, names: Sequence[str], counters: Sequence[Sequence[int]]) -> None:
    """Raises UserError if the members are not at the same point, because then one program cannot advance them.

    This happens at a resume if some members have lost environments, and so keep rows that the others collect again.
    root: the directory of the population | counters: from `take`
    """
    points = [tuple(map(int, own)) for own in counters]
    for name, own in zip(names, points, strict=True):
        if own != points[0]:
            raise UserError(
                f"the members {names[0]} and {name} cannot train together: they continue from {points[0][0]:,} and "
                f"{own[0]:,} rows of each stream, because environments of one have started new episodes; resume each "
                f"member alone: {header.to_go_on(root / name)}"
            )
