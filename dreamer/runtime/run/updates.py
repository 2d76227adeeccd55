"""The host side of an update: drawing its batch, and writing its results to the replay and the metrics."""

from __future__ import annotations

from typing import Protocol

from dreamer.runtime.log.logger import Logger
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.run.learner import Learner, Pending
from dreamer.steps import Batch, Rows


class Source(Protocol):
    """Where batches are drawn from: the replay, or its rows on the devices."""

    def sample(self, batch_size: int) -> tuple[Batch, Rows]:
        """A batch [B, C+T, ..], and the rows [B, T] of the replay that it was drawn from."""


def draw(source: Source, learner: Learner, batch_size: int) -> tuple[Batch, Rows]:
    """A batch [B, C+T, ..] on the devices, and where its rows [B, T] lie. For one thread at a time.

    Raises UserError when a device has no memory left or fails.
    """
    with learner.as_user_errors("drawing a batch"):
        batch, rows = source.sample(batch_size)
        return learner.place(batch), rows


def write_back(update: Pending, learner: Learner, replay: Replay, logger: Logger) -> None:
    """Writes latents and priorities of an update to the replay, its metrics to the logger; waits for the device.

    Raises UserError when a device has no memory left or fails.
    """
    out = learner.fetch(update)
    replay.refresh(update.rows, out.latent)
    if out.surprise is not None:
        replay.prioritise(update.rows, out.surprise)
    logger.add(out.metrics)
