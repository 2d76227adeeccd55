"""Plans the rings of a run's replay: rings that the run fills, and rings that hold the rows of its datasets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.replay import capacity, columns, disk_tier, replay
from dreamer.runtime.replay.capacity import Capacity, Free
from dreamer.runtime.run import resume
from dreamer.runtime.run.datasets import Datasets, rings_for
from dreamer.runtime.run.start import Decision
from dreamer.runtime.workers import Workers
from dreamer.spaces import Space


class Rings(NamedTuple):
    """The rings of a replay. size: the rings that the run fills | old: the number of rings with rows of datasets.

    All have one length. A run that learns from datasets only fills one ring with them, at its start.
    """

    size: Capacity
    old: int = 0


def plan(
    decision: Decision, config: Config, workers: Workers, storage: Mapping[str, Space], free: Free | None,
    datasets: Datasets | None,
) -> Rings:  # fmt: skip
    """Returns the rings of the replay. For a resumed run, they are those of its checkpoint, or longer.

    config: that of the share of this process. free: what this replay and others share; None: all that is free.
    datasets: those of a new run. Raises UserError if the memory is too small, or a dataset too large.
    """
    found = decision.found
    streams = 1 if config.updates else workers.streams
    # One long-lived agent may produce most of an environment's rows, so each ring is sized for all agents together.
    steps = config.env_steps * workers.spec.agents
    if config.updates:
        steps = datasets.rows if datasets else found.files.rows_per_stream if found else 1
    size = replay.size_replay(
        workers.spec, storage, config.replay, streams=streams, env_steps=steps, run_dir=config.run_dir, free=free
    )
    if found:
        length = resume.ring_length(found, size.rows_per_stream, decision.longer)
        size = dataclasses.replace(size, rows_per_stream=length, bound="the resumed run")
        return Rings(size, len(found.files.oldest) - streams if config.data else 0)
    if config.updates and size.rows_per_stream < steps:
        raise UserError(f"data: the datasets have {steps:,} rows, but {size.bound} leaves room for {size.steps:,}")
    if config.updates:
        size = dataclasses.replace(size, bound="data")
    return Rings(size, rings_for(datasets.lengths, size) if datasets and not config.updates else 0)


def describe(config: Config, rings: Rings, storage: Mapping[str, Space]) -> list[str]:
    """Returns lines about the memory and the disk space that the rings need."""
    size, latents, keep = rings.size, columns.row_bytes(storage), config.checkpoint.keep
    steps = size.steps if config.updates else config.env_steps
    most = capacity.rows_bound(
        size, latents, keep=keep, env_steps=steps, keep_every=0 if config.updates else config.checkpoint.keep_every
    )
    old = rings.old * size.rows_per_stream
    most += old * (size.row_bytes + size.disk_row_bytes + (keep + 2) * latents)
    lines = [size.describe(), capacity.describe_rows(most, disk_tier.free_space(config.run_dir))]
    if not old:
        return lines
    more = capacity.in_words(old * size.row_bytes)
    return [f"{lines[0]}; {config.replay.data_share:.0%} of each batch is from data, in {more} more", *lines[1:]]
