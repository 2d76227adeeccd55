"""Finds arrays that the environment returns and later writes into, and infos whose keys change. Imports no jax."""

from __future__ import annotations

from dreamer.apps.check.verdicts import Verdict, listed, warning
from dreamer.apps.check.walk import Walk


def check(walk: Walk) -> list[Verdict]:
    """Checks the arrays of observations and the keys of infos. Returns verdicts on faults only."""
    return _buffers(walk) + _infos(walk)


def _buffers(walk: Walk) -> list[Verdict]:
    """Reports overwritten arrays. This is only a warning, because the runtime copies each row before the next step."""
    rewritten = [row for row in walk.rows if row.rewritten]
    if not rewritten:
        return []
    keys = sorted({key for row in rewritten for key in row.rewritten})
    text = (
        f"the array of {listed([repr(key) for key in keys])} is overwritten after it was returned "
        f"({rewritten[0].where}; {len(rewritten):,} of {len(walk.rows):,} rows): training copies each row at once, but "
        "wrappers that stack or delay observations, and gymnasium's vector environments, see it change; return a copy"
    )
    return [warning("buffers", text)]


def _infos(walk: Walk) -> list[Verdict]:
    """Reports keys that only some infos have. Ignores resets and last steps, whose infos may have other keys."""
    steps = [row for row in walk.rows if row.step and not row.last]
    always = frozenset.intersection(*(row.info for row in steps)) if steps else frozenset()
    odd = sorted({str(key) for row in steps for key in row.info - always})
    if not odd:
        return []
    first = next(row for row in steps if row.info != always)
    text = (
        f"info has some keys at some steps only: {listed([repr(key) for key in odd])} (found in {first.where}). "
        "Training ignores them, but gymnasium's vector environments and loggers will miss some"
    )
    return [warning("info-keys", text)]
