"""Fills a replay with the rows of a dataset: `fill`. Imports no jax."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dreamer.data.episodes import Data, Episode
from dreamer.errors import UserError
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.spans import Span, put_rows


def fill(replay: Replay, data: Data, latent: Mapping[str, np.ndarray], *, first: int = 0) -> int:
    """Adds all rows of a dataset to a replay, an episode at a time to its shortest stream. Returns their number.

    first: the first stream that gets rows. In the replay's old rings, new sequences are not queued for training.

    latent {name: [..]}: the packed latent of an initial state, which every row gets until training has replaced it; {}
    if the replay stores none. A piece without a beginning gets is_first in its first row, because the row before it in
    the stream belongs to another episode.
    Raises UserError at the first fault of the dataset, if its columns are not those of the replay, or if the replay is
    too short to hold all rows.
    """
    added = 0
    for episode in data.read():
        stream = first + int(replay.counts[first:].argmin())
        held, most = int(replay.counts[stream]), replay.size.rows_per_stream
        if held + episode.rows > most:
            streams = len(replay.counts) - first
            raise UserError(
                f"{data.path} does not fit into the replay, which holds {most:,} rows in each of {streams} streams: "
                f"{episode.name} has {episode.rows:,} rows, and {most - held:,} are free; raise replay.capacity_steps"
            )
        span = Span(stream, held, held + episode.rows)
        put_rows(replay, [span], _columns(episode, latent), fresh=stream < replay.streams)
        added += episode.rows
    return added


def _columns(episode: Episode, latent: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    is_first = episode.is_first.copy()
    is_first[0] = True
    return {
        **{f"obs/{key}": array for key, array in episode.obs.items()},
        "action": episode.action, "reward": episode.reward, "is_first": is_first, "is_last": episode.is_last,
        "is_terminal": episode.is_terminal,
        **{f"latent/{name}": np.repeat(value[None], episode.rows, 0) for name, value in latent.items()},
    }  # fmt: skip
