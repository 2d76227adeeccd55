"""The records exchanged by workers, replay and learner. Plain numpy, no jax.

Time alignment:

    row t      = observation o_t | reward r_t and flags that arrived with o_t | action a_t chosen after seeing o_t
    row t + 1  = the environment's answer to a_t

      t        obs          reward   is_first  is_last  is_terminal  action
      0        reset's        0         1         0         0         a_0
      1        after a_0      r_1       0         0         0         a_1
      2        after a_1      r_2       0         1         1 or 0    0          the true last observation
      3        reset's        0         1         0         0         a_3        the next episode

is_last marks the last row of an episode. is_terminal marks a true end, after which the value is 0; a time limit is not
a true end. A batch holds `context` (0 or 1) rows before its T rows. A context row is not trained on: its latent gives
the initial state, and its action is the first previous action.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax on the device


class Step(NamedTuple):
    """One row (time step) of each of E environments.

    obs {k: [E, ..]} | action [E, A] float32, zeros until the collector has chosen it | reward [E] float32
    is_first, is_last, is_terminal [E] bool
    """

    obs: Mapping[str, Array]
    action: Array
    reward: Array
    is_first: Array
    is_last: Array
    is_terminal: Array


class Batch(NamedTuple):
    """B sequences of C + T rows from the replay, in the order of time. The first C rows are context (C is 0 or 1).

    obs {k: [B, C+T, ..]} | action [B, C+T, A] | reward, is_first, is_last, is_terminal [B, C+T]
    latent {name: [B, C, ..]}: the packed latents stored with the context rows; {} if C is 0. Those that the world model
        `reads` are [B, C+T, ..], from all rows
    """

    obs: Mapping[str, Array]
    action: Array
    reward: Array
    is_first: Array
    is_last: Array
    is_terminal: Array
    latent: Mapping[str, Array]


class Rows(NamedTuple):
    """The places in the replay of the T trained rows of each sequence in a batch. Their new latents are written there.

    stream [B] int: the stream of each sequence; a stream holds the rows of one environment, or of one of its agents
    number [B, T] int64: the index of each row in its stream, counted from the start of the run
    """

    stream: np.ndarray
    number: np.ndarray
