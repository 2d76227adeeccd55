"""The configuration of a population. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from dreamer.fields import MAY_CHANGE, at_least, between


@dataclasses.dataclass(frozen=True)
class Config:
    """Members that train together in one program. Each member is a run, in a folder of `run_dir`."""

    seeds: Annotated[int, at_least(1)] = 1
    """Number of seeds, counted from `seed`; more than 1 trains a population."""
    axes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values to combine, by key: agent.horizon: [100, 333]. Numbers of the agent that change no shape."""
    members: tuple[dict[str, Any], ...] = ()
    """A list of members, in place of seeds and axes: the values of each member by key, including its seed."""
    together: Annotated[int, at_least(0), MAY_CHANGE] = 0
    """Number of members that a device trains at the same time; its others wait for their turn. 0 = one on a CPU, all on
    other devices."""
    exploit_every: Annotated[int, at_least(0), MAY_CHANGE] = 0
    """Population-based training: environment steps after which the worst members continue from the best; 0 = never."""
    exploit_share: Annotated[float, between(0, 0.5), MAY_CHANGE] = 0.25
    """Share of the members that count as the worst, and as the best."""
    explore_factor: Annotated[float, at_least(1), MAY_CHANGE] = 1.2
    """A member that continues from another one takes its numbers of `axes`, multiplied or divided by this factor."""
