"""Checks whether a population fits into the memory of the device, before it takes this memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from dreamer.errors import UserError
from dreamer.runtime.devices.memory import free_memory
from dreamer.runtime.fused.spread import Spread, spread
from dreamer.runtime.replay import columns
from dreamer.runtime.run.assembling import Built


def check_room(built: Built, where: Spread, members: int, together: int) -> None:
    """Raises UserError if a device has no memory for its members. Call it before the others are built.

    built: the first member | where: on which device each of the `members` trains
    together: how many members of a device train at a time
    """
    needed, free = member_bytes(built), min(map(free_memory, where.devices))
    on_cpu = where.devices[0].platform == "cpu"  # all of its devices use the memory of the machine
    if needed * (members if on_cpu else where.each) <= free:
        return
    fits = int(free // needed) * (1 if on_cpu else len(where.devices))
    there = "on the device" if len(where.devices) == 1 else "on its device"
    needs = f"each of its {members} members takes {needed / 1e9:.3g} GB {there}, and {free / 1e9:.3g} GB are free"
    hint = "lower replay.capacity_steps"
    if fits:
        group = largest_group(spread(fits, where.devices).each, together)
        hint = f"train {fits} (in groups of {group}, see population.together) or {hint}"
    raise UserError(f"the population does not fit: {needs}, enough for {fits or 'none'}; {hint}")


def member_bytes(built: Built) -> int:
    """Returns the bytes that a member takes on the device when its Loop is copied beside those of all members."""
    workers: Any = built.environments.workers
    row = columns.row_bytes(columns.columns_of(workers.spec, built.agent.storage))
    state, rows = bytes_of(built.learner.state), built.size.steps * row
    return state + 2 * (state + rows + bytes_of(workers.state))


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


def check_temporaries(program: Any, members: int, together: int, devices: Sequence[jax.Device] = ()) -> None:
    """Raises UserError if a device has no memory for the temporary arrays of the program.

    program: compiled for `members` members on each device, of which `together` train at a time
    devices: those that run the program; (): the first one
    """
    devices = devices or jax.local_devices()[:1]
    analysis = program.memory_analysis()
    temporary, free = analysis.temp_size_in_bytes if analysis else 0, min(map(free_memory, devices))
    if devices[0].platform == "cpu":
        temporary *= len(devices)  # all of them use the memory of the machine
    if temporary <= free:
        return
    fits = largest_group(members, int(together * free / temporary))
    hint = f"set population.together to {fits}" if fits else "lower replay.batch_size"
    raise UserError(
        f"the population does not fit: an update of {together} of {members} members at a time takes "
        f"{temporary / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free; {hint}"
    )


def largest_group(members: int, most: int) -> int:
    """Returns the largest number up to `most` that divides `members`; 0 if `most` is 0."""
    return max((size for size in range(1, most + 1) if not members % size), default=0)


def bytes_of(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
