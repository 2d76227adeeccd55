"""The configuration of the replay. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from dreamer.errors import UserError
from dreamer.fields import MAY_CHANGE, SAME_GROUP, Mark, at_least, between, check_field, marked

SHARE = Mark("the share of the sequences drawn by the sampling method of this name")


@dataclasses.dataclass(frozen=True)
class Config:
    """The size of the replay, and how batches are drawn from it."""

    capacity_steps: Annotated[int, at_least(1)] = 1_000_000
    """Maximum number of rows, all environments together."""
    capacity_gb: Annotated[float, at_least(0)] = 0
    """Maximum host memory, in GB (10^9 bytes); 0 = at most half of the free memory, which the members
    of a population share."""
    batch_size: Annotated[int, at_least(1)] = 16
    """Sequences per update."""
    batch_length: Annotated[int, at_least(2)] = 64
    """Trained rows per sequence."""
    context: Annotated[int, between(0, 1)] = 1
    """Rows before the trained ones: 1 starts sequences from a stored latent, 0 from the initial latent."""
    prefill: Annotated[int, at_least(0)] = 0
    """Rows to collect before the first update, all environments together; 0 = as many as one batch needs."""
    online: bool = True
    """Train on each freshly collected sequence once, before drawing others."""
    uniform: Annotated[float, between(0, 1), SHARE] = 1.0
    """Share of sequences drawn uniformly; uniform + priority + recency = 1."""
    priority: Annotated[float, between(0, 1), SHARE] = 0.0
    """Share of sequences drawn in proportion to the world model's loss on them; sequences never trained on come
    first."""
    recency: Annotated[float, between(0, 1), SHARE] = 0.0
    """Share of sequences drawn by age, with weight 1 / rank ** recency_exponent; the newest has rank 1."""
    priority_exponent: Annotated[float, between(0, 1)] = 0.8
    """The priority of a row is its loss to the power of this exponent."""
    priority_maxfrac: Annotated[float, between(0, 1)] = 0.5
    """Weight of the largest priority in a sequence against the mean priority: max * this + mean * (1 - this)."""
    recency_exponent: Annotated[float, at_least(0)] = 1.0
    """Exponent of the rank in the weights of recency; 0 gives all sequences the same weight."""
    data_share: Annotated[float, between(0, 1)] = 0.25
    """Share of each batch that is drawn from `data`, uniformly, in a run that also collects."""
    tier: Literal["memory", "disk"] = "memory"
    """Where observations are kept: in memory, or on the disk in files of the run directory, so that the replay can be
    larger than the memory."""
    disk_gb: Annotated[float, at_least(0)] = 0
    """Maximum disk space of `tier: disk`, in GB (10^9 bytes); 0 = at most half of the free space."""
    on_device: Annotated[bool, MAY_CHANGE] = False
    """Keep a copy of the observations on each learning device, so that rows are sent once and not with each batch."""
    prefetch: Annotated[int, at_least(0), MAY_CHANGE] = 1
    """Number of batches that a thread draws and sends to the device in advance; 0 with `lockstep`."""
    flush: Annotated[float, at_least(0), MAY_CHANGE, SAME_GROUP] = 5.0
    """Maximum seconds between two files of rows. A killed run loses at most the rows that it collected in this time.
    A file is written earlier after many new rows; 0 = only after many new rows."""

    def __post_init__(self) -> None:
        shares = self.shares
        for name, share in shares.items():
            check_field(self, name, share, name)
        total = sum(shares.values())
        if abs(total - 1) > 1e-6:
            raise UserError(f"{' + replay.'.join(shares)} must be 1, not {total:g}")

    @property
    def shares(self) -> dict[str, float]:
        """Returns {sampling method: share of the sequences that it draws}."""
        return {name: getattr(self, name) for name in marked(self, SHARE)}
