"""Chooses the devices on which the members of a population train, and moves the members there."""

from __future__ import annotations

from collections.abc import Sequence

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.devices import placement
from dreamer.runtime.devices.mesh import configured_devices
from dreamer.runtime.fused import population as fused
from dreamer.runtime.fused import spread
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.fused.spread import Spread
from dreamer.runtime.population.room import check_room
from dreamer.runtime.run.moving import Moving


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


def describe(where: Spread, members: int) -> list[str]:
    """Returns a line that says how the members are spread; none for a single device."""
    devices, each = where.devices, where.each
    if len(devices) == 1:
        return []
    most = f"{each} on each" if members == each * len(devices) else f"at most {each} on each"
    return [f"members: {members} on {len(devices)} x {devices[0].device_kind}, {most}"]


def take(where: Spread, names: Sequence[str], moving: Sequence[Moving]) -> Loop:
    """Moves the members to their devices and returns them as one Loop.

    names, moving: of each member. Raises UserError if a device has too little memory, or if the members are not at the
    same point.
    """
    parts, counters = [], []
    for number, device in enumerate(where.devices):
        first = number * where.each
        loops: list[Loop] = []
        # On a CPU, all devices share the memory of the machine.
        last = len(moving) if device.platform == "cpu" else min(first + where.each, len(moving))
        for at, one in enumerate(moving[first : first + where.each], first + 1):
            loops.append(one.take())
            check_room(loops[0], last - at, device)
        counters += [(loop.ring.added, loop.ring.taken, loop.acted, loop.started, loop.debt) for loop in loops]
        loops += loops[-1:] * (where.each - len(loops))
        check_room(loops[0], len(loops), device)  # for the joined arrays, beside those of each member
        parts.append(fused.stack(loops))
    check_counters(names, placement.to_host(counters))
    return spread.join(where, parts)


def check_counters(names: Sequence[str], counters: Sequence[Sequence[int]]) -> None:
    """Raises UserError if the members are not at the same point, because then one program cannot advance them."""
    for name, own in zip(names, counters, strict=True):
        if tuple(map(int, own)) != tuple(map(int, counters[0])):
            raise UserError(f"the members {names[0]} and {name} have collected different rows; resume them one by one")
