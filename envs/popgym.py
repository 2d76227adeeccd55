"""POPGym: `make("RepeatPreviousEasy")`. Small tasks that need memory, in three difficulties: Easy, Medium, Hard.

Spaces are those of the suite: Autoencode has a Tuple observation; Battleship and MineSweeper have MultiDiscrete
actions.
"""

from __future__ import annotations

import gymnasium

from ._suite import Plain, extra, find_task


def make(task: str) -> gymnasium.Env:
    """Makes one task in one difficulty. Episodes have returns from -1 to 1. Raises ValueError and ImportError."""
    with extra("popgym"):
        import popgym.envs  # noqa: F401 its import registers them
    known = {name.removeprefix("popgym-")[:-3]: name for name in sorted(gymnasium.registry) if "popgym-" in name}
    return Plain(gymnasium.make(known[find_task("popgym", task, known)], disable_env_checker=True))
