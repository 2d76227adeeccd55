"""The components of a run, in one record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.config import Config
from dreamer.interfaces import Agent
from dreamer.plugins import EnvName
from dreamer.runtime.devices.programs import PolicyPart
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.learning.collector import Collector
from dreamer.runtime.learning.learner import Learner, Pending, PendingUpdates
from dreamer.runtime.learning.limiter import Limiter
from dreamer.runtime.learning.on_device import OnDevice
from dreamer.runtime.learning.prefetch import Prefetch
from dreamer.runtime.learning.writeback import Writeback
from dreamer.runtime.log.episodes import EpisodeTracker
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.log.terminal import Display
from dreamer.runtime.replay.capacity import Free
from dreamer.runtime.replay.flushing import Flushing
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run.environments import Environments
from dreamer.runtime.run.retention import Retention
from dreamer.runtime.run.stopping import Stopping
from dreamer.runtime.run.ways import Way
from dreamer.runtime.workers import Workers
from dreamer.steps import Batch, Rows


@dataclasses.dataclass(frozen=True)
class Parts:
    """The components of a run, opened and closed by runtime/run/build.py.

    config: the config, with the absolute run directory | env: the name of the environment, or a function that makes it
    identity: the random id of the run, which its files contain | policy: `programs.jit_act(agent)`, for evaluations
    way: how the run collects and trains | device: the fused loop, if the run uses it
    record: whether evaluations record videos | batches: draws the batches for the learner
    writeback: handles the results of updates
    process: the number of this process, if several train the run together
    data {metric: value}: what is logged about the datasets of the run; {}: it has none
    """

    config: Config
    env: EnvName
    identity: str
    display: Display
    stopping: Stopping
    environments: Environments
    agent: Agent
    policy: Callable[..., Any]
    record: bool
    learner: Learner
    replay: Replay
    collector: Collector
    tracker: EpisodeTracker
    limiter: Limiter
    batches: Prefetch[tuple[Batch, Rows]]
    writeback: Writeback[Pending | PendingUpdates]
    store: RowStore
    flushing: Flushing
    checkpoints: Checkpoints
    retention: Retention
    logger: Logger
    way: Way = "thread"
    device: OnDevice | None = None
    process: int = 0
    data: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        """Returns the absolute run directory."""
        return Path(self.config.run_dir)

    @property
    def workers(self) -> Workers:
        """Returns the training environments."""
        return self.environments.workers


class Shared(NamedTuple):
    """What the members of a population share. All are built first, then opened one after the other.

    free: the host memory and the disk for all their replays
    agent, part: those of the first member that was built, which serve all; None: none is built
    first: the parts of the first member that is open, whose compiled functions serve all; None: none is open
    """

    free: Free
    agent: Agent | None = None
    part: PolicyPart | None = None
    first: Parts | None = None
