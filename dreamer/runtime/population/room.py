"""Checks whether a population fits into the memory of the device, before it takes this memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from dreamer.errors import UserError
from dreamer.runtime.devices.memory import free_memory
from dreamer.runtime.fused.loop import Loop


def check_room(loop: Loop, members: int, device: jax.Device | None = None) -> None:
    """Raises UserError if a device has no memory for the Loops of so many more members.

    loop: that of one member | device: None: the first one
    """
    needed, free = bytes_of(loop), free_memory(device)
    if members * needed > free:
        raise UserError(
            f"the population does not fit: each member takes {needed / 1e9:.3g} GB on the device, and {free / 1e9:.3g} "
            f"GB are free, enough for {free // needed} of {members} more members; lower replay.capacity_steps, or "
            "train fewer members"
        )


def check_states(state: Any, members: int) -> None:
    """Raises UserError if the device has no memory for the train states of all members. state: that of the first."""
    # Each member has a place in the joined states, and keeps the copy from which it was last saved.
    needed, free = (2 * members - 1) * bytes_of(state), free_memory()
    if needed > free:
        fits = max(1, int((free / bytes_of(state) + 1) / 2))
        raise UserError(
            f"the population does not fit: the train states of {members} members take {needed / 1e9:.3g} GB on the "
            f"device, and {free / 1e9:.3g} GB are free, enough for {fits}; train fewer members"
        )


def check_temporaries(program: Any, together: int, devices: Sequence[jax.Device] = ()) -> None:
    """Raises UserError if a device has no memory for what the program computes on the way.

    devices: those that run the program; (): the first one
    """
    devices = devices or jax.local_devices()[:1]
    analysis = program.memory_analysis()
    temporary, free = analysis.temp_size_in_bytes if analysis else 0, min(map(free_memory, devices))
    if devices[0].platform == "cpu":
        temporary *= len(devices)  # all of them use the memory of the machine
    if temporary > free:
        fits = max(1, int(together * free / temporary))
        raise UserError(
            f"the population does not fit: an update of {together} members at a time takes {temporary / 1e9:.3g} GB, "
            f"and {free / 1e9:.3g} GB are free; set population.together to {fits} or less"
        )


def bytes_of(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
