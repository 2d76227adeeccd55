"""The host's work for an update: draws its batch, and writes its results to the replay and the logger."""

from __future__ import annotations

from typing import Protocol

from dreamer.runtime.learning.learner import Learner, Pending, PendingUpdates
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.replay.replay import Replay
from dreamer.steps import Batch, Rows


class Source(Protocol):
    """A source of batches: the replay, or its rows on the devices."""

    def sample(self, batch_size: int) -> tuple[Batch, Rows]:
        """Draws a batch [B, C+T, ..], and returns it with its rows [B, T] of the replay."""


def draw(source: Source, learner: Learner, batch_size: int) -> tuple[Batch, Rows]:
    """Draws a batch [B, C+T, ..] and places it on the devices. Returns it with its rows [B, T].

    Only one thread at a time may call it. Raises UserError if a device has no memory left or fails.
    """
    with learner.as_user_errors("drawing a batch"):
        batch, rows = source.sample(batch_size)
        return learner.place(batch), rows


def write_back(update: Pending | PendingUpdates, learner: Learner, replay: Replay, logger: Logger) -> None:
    """Waits for the updates of a call. Then writes their latents and priorities to the replay, and logs their metrics.

    Raises UserError if a device has no memory left or fails.
    """
    if isinstance(update, Pending):
        made = [(update.rows, learner.fetch(update))]
    else:
        made = [*zip(update.rows, learner.fetch_several(update), strict=True)]
    for rows, out in made:
        replay.refresh(rows, out.latent)
        if out.surprise is not None:
            replay.prioritise(rows, out.surprise)
        logger.add(out.metrics)
