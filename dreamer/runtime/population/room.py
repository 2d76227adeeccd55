"""Checks whether a population fits into the memory of the device, before it takes this memory."""

from __future__ import annotations

from typing import Any

import jax

from dreamer.errors import UserError
from dreamer.runtime.devices.memory import free_memory
from dreamer.runtime.fused.loop import Loop


def check_room(loop: Loop, members: int) -> None:
    """Raises UserError if the device has no memory for the Loops of so many more members. loop: that of one member."""
    needed, free = bytes_of(loop), free_memory()
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


def check_temporaries(program: Any, together: int) -> None:
    """Raises UserError if the device has no memory for what the program computes on the way."""
    analysis = program.memory_analysis()
    temporary, free = analysis.temp_size_in_bytes if analysis else 0, free_memory()
    if temporary > free:
        fits = max(1, int(together * free / temporary))
        raise UserError(
            f"the population does not fit: an update of {together} members at a time takes {temporary / 1e9:.3g} GB, "
            f"and {free / 1e9:.3g} GB are free; set population.together to {fits} or less"
        )


def bytes_of(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
