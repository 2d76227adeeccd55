"""The settings of the replay. No jax."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from dreamer.errors import UserError
from dreamer.fields import MAY_CHANGE, SAME_GROUP, Mark, at_least, between, check_field, marked

SHARE = Mark("the share of the sequences that the way of sampling of this name draws")


@dataclasses.dataclass(frozen=True)
class Config:
    """The size of the replay, and how batches are drawn from it."""

    capacity_steps: Annotated[int, at_least(1)] = 1_000_000
    """Most rows held, all environments together."""
    capacity_gb: Annotated[float, at_least(0)] = 0
    """Most host memory taken, in GB (10^9 bytes); 0 takes at most half of what is free."""
    batch_size: Annotated[int, at_least(1)] = 16
    """Sequences per update."""
    batch_length: Annotated[int, at_least(2)] = 64
    """Trained rows per sequence."""
    context: Annotated[int, between(0, 1)] = 1
    """Rows before the trained ones: 1 starts sequences from a stored latent, 0 from the initial one."""
    online: bool = True
    """Train on each freshly collected sequence once, before drawing others."""
    uniform: Annotated[float, between(0, 1), SHARE] = 1.0
    """Share of the sequences drawn evenly; uniform + priority + recency = 1."""
    priority: Annotated[float, between(0, 1), SHARE] = 0.0
    """Share of sequences drawn in proportion to the world model's loss on them; sequences never trained on come
    first."""
    recency: Annotated[float, between(0, 1), SHARE] = 0.0
    """Share of sequences drawn by age: weight 1 / rank ** recency_exponent, the newest has rank 1."""
    priority_exponent: Annotated[float, between(0, 1)] = 0.8
    """The priority of a row is its loss to this power."""
    priority_maxfrac: Annotated[float, between(0, 1)] = 0.5
    """A sequence weighs this share of its rows' largest priority plus the remaining share of their mean priority."""
    recency_exponent: Annotated[float, at_least(0)] = 1.0
    """Exponent of the rank in the weights of recency; 0 weighs all sequences alike."""
    tier: Literal["memory", "disk"] = "memory"
    """Where observations are kept; disk: in files of the run directory, so that capacity may exceed memory."""
    disk_gb: Annotated[float, at_least(0)] = 0
    """Most disk taken by `tier: disk`, in GB (10^9 bytes); 0 takes at most half of what is free."""
    on_device: Annotated[bool, MAY_CHANGE] = False
    """Keep a copy of the observations on each device that learns: rows are sent there once, not with each batch."""
    prefetch: Annotated[int, at_least(0), MAY_CHANGE] = 1
    """Batches drawn and sent to the device ahead, by a thread; none with `lockstep`."""
    flush: Annotated[float, at_least(0), MAY_CHANGE, SAME_GROUP] = 5.0
    """Most seconds between two files of rows, so the most that a kill can lose; a file is written earlier when many
    rows have been added. 0 writes by the number of rows alone."""

    def __post_init__(self) -> None:
        shares = self.shares
        for name, share in shares.items():
            check_field(self, name, share, name)
        total = sum(shares.values())
        if abs(total - 1) > 1e-6:
            raise UserError(f"{' + replay.'.join(shares)} must be 1, not {total:g}")

    @property
    def shares(self) -> dict[str, float]:
        """{way of sampling: the share of the sequences that it draws}."""
        return {name: getattr(self, name) for name in marked(self, SHARE)}
