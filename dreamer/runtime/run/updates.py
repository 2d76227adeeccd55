"""What surrounds an update: the batch that it takes, and what the replay and the metrics get from it."""

from __future__ import annotations

from typing import Protocol

from dreamer.runtime.log.logger import Logger
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.run.learner import Learner, Pending
from dreamer.steps import Batch, Rows


class Source(Protocol):
    """Where batches are drawn from: the replay, or its rows on the devices."""

    def sample(self, batch_size: int) -> tuple[Batch, Rows]:
        """A batch, and the rows of the replay that it was drawn from."""


def draw(source: Source, learner: Learner, batch_size: int) -> tuple[Batch, Rows]:
    """A batch on the devices and where its rows lie. From one thread at a time.

    Raises UserError when a device has no memory left or fails.
    """
    with learner.as_user_errors("drawing a batch"):
        batch, rows = source.sample(batch_size)
        return learner.place(batch), rows


def write_back(update: Pending, learner: Learner, replay: Replay, logger: Logger) -> None:
    """Latents and priorities of an update into the replay, its metrics into the logger; waits for the device.

    Raises UserError when a device has no memory left or fails.
    """
    out = learner.fetch(update)
    replay.refresh(update.rows, out.latent)
    if out.surprise is not None:
        replay.prioritise(update.rows, out.surprise)
    logger.add(out.metrics)
