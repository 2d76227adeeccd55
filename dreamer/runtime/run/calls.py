"""Chooses how many updates one call of the device makes, where several are due at once. Imports no jax."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.replay.capacity import in_words
from dreamer.runtime.run.ways import Way

MOST = 8  # updates in one call; what a call costs is then an eighth for each, and latents are not too late
AHEAD = ("thread", "data")  # ways in which more updates may be due than those of a turn, and a thread draws batches
SHARE = 8  # by itself, a run gives at most this part of the free memory to the batches of its calls


class Calls(NamedTuple):
    """The number of updates in one call of the device, and a line to print about it; "": there is nothing to print."""

    updates: int
    line: str = ""


def choose(
    config: Config, way: Way, *, due: Fraction, batch_bytes: int, free: int, population: bool = False,
    processes: int = 1,
) -> Calls:  # fmt: skip
    """Chooses from the config and from the number of updates that are due after one turn of all environments.

    due: that number | batch_bytes: the bytes of one batch on a device | free: the bytes that are free there
    population: whether the run is a member of one | processes: the number that train the run together
    With 0 in the config, a call makes the updates of a turn, or an equal part of them that is at most MOST. If fewer
    than two updates are due after a turn, the program for several is never used, and so never compiled.
    Raises UserError if the config asks for several updates in lockstep, or for more than the memory holds.
    """
    asked = config.updates_per_call
    if config.lockstep and asked > 1:
        raise UserError(f"lockstep makes one update at a time; leave out updates_per_call {asked}")
    if way == "device" or population or processes > 1:
        others = "a population makes its" if population else "several processes make their"
        why = "the loop on the device contains them" if way == "device" else f"{others} updates one at a time"
        return Calls(1, f"updates: updates_per_call {asked} is not used, because {why}" if asked > 1 else "")
    if config.lockstep or not due:
        return Calls(1)
    updates = _asked(asked, way, due) if asked else part_of_turn(due, MOST)
    prefetch = config.replay.prefetch if way in AHEAD else 0
    while not asked and updates > 1 and batch_bytes * held(updates, prefetch) > free // SHARE:
        updates //= 2
    needed = batch_bytes * held(updates, prefetch)
    if updates > 1 and needed > free:
        raise UserError(
            f"updates_per_call {asked}: the batches of its calls take {in_words(needed)}, but only {in_words(free)} "
            "are free on the device; lower it"
        )
    if updates == 1:
        return Calls(1)
    late = updates if way == "turns" else 3 * updates
    return Calls(
        updates,
        f"updates: {updates} in one call of the device where that many are due; latents are written back up to {late} "
        f"updates late; the batches take {in_words(needed)}",
    )


def _asked(asked: int, way: Way, due: Fraction) -> int:
    """Returns the number for a config that gives one. In turns, at most the updates of one turn are due."""
    return asked if way in AHEAD else part_of_turn(due, asked)


def part_of_turn(due: Fraction, most: int) -> int:
    """Returns the largest number of updates, at most `most`, such that few calls make nearly all updates of a turn."""
    return max(1, math.floor(due / math.ceil(due / most)))


def drawn_ahead(updates: int, prefetch: int) -> int:
    """Returns the number of batches that a thread draws in advance: enough for the next call; 0: there is no thread."""
    return max(prefetch, updates) if prefetch else 0


def held(updates: int, prefetch: int) -> int:
    """Returns the most batches on the device: drawn in advance, those of two calls, and those of one as one array."""
    return drawn_ahead(updates, prefetch) + (3 * updates if updates > 1 else 2)
