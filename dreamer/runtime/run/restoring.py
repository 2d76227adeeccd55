"""Makes the replay of a run, and loads the checkpoint into it and into the parts that are made already."""

from __future__ import annotations

from typing import NamedTuple

from dreamer.runtime.devices import placement
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.run_dir import ROWS, folder_of
from dreamer.runtime.learning.collector import Collector
from dreamer.runtime.log.episodes import EpisodeTracker
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run import datasets, process_files, resume, start
from dreamer.runtime.run.assembling import Built
from dreamer.runtime.run.directory import Session
from dreamer.runtime.run.parts import Shared
from dreamer.runtime.run.process import Place
from dreamer.runtime.run.resume import Found, Restored
from dreamer.runtime.run.start import Decision


class Storage(NamedTuple):
    """The replay and the files of a run.

    identity: the random id of the run, which its files contain | store: the files with rows and the host's state
    """

    identity: str
    checkpoints: Checkpoints
    replay: Replay
    store: RowStore


class Loaded(NamedTuple):
    """A checkpoint in memory.

    lost: {number of an environment: the reason why it starts a new episode} | lines: lines to print
    """

    restored: Restored
    lost: dict[int, str]
    lines: list[str]


class Memory(NamedTuple):
    """A new or restored run in memory, before any of its files is written or moved.

    restored: what was read from the checkpoint; None: the run starts from the beginning
    lines: lines to print about what was restored and what was not
    """

    storage: Storage
    collector: Collector
    tracker: EpisodeTracker
    restored: Restored | None
    lines: tuple[str, ...]


def restore(decision: Decision, built: Built, session: Session, shared: Shared | None, identity: str) -> Memory:
    """Makes an empty replay and loads the run's checkpoint into memory, if there is one. Only reads the disk.

    identity: the random id of the run
    Raises UserError if the checkpoint is damaged or does not fit the run.
    """
    place = session.host.place
    storage = _open_storage(decision, built, session, identity)
    loaded = _load_checkpoint(decision, decision.found, built, storage, shared, place) if decision.found else None
    workers = built.environments.workers  # loading may have replaced the workers
    collector = Collector(
        built.agent, built.learner.part, workers, storage.replay, seed=decision.config.seed,
        policy=shared.first.collector.policy if shared and shared.first else None, process=place.index,
    )  # fmt: skip
    tracker = EpisodeTracker(workers.streams)
    if not loaded:
        if built.datasets:
            initial = placement.to_host(built.agent.pack(built.agent.initial_carry(1).state))
            latent = {name: value[0] for name, value in initial.items()} if storage.replay.config.context else {}
            datasets.fill_all(storage.replay, built.datasets, latent)
        return Memory(storage, collector, tracker, None, ())
    resume.load_rest(loaded.restored, storage.replay, collector, tracker, built.limiter)
    lines = resume.describe(loaded.restored, storage.replay, loaded.lost, workers.envs)
    return Memory(storage, collector, tracker, loaded.restored, (*loaded.lines, *lines))


def _open_storage(decision: Decision, built: Built, session: Session, identity: str) -> Storage:
    """Opens the files of the run for reading, and makes an empty replay."""
    place, stack, workers = session.host.place, session.stack, built.environments.workers
    config, folder = place.config(decision.config), folder_of(decision.run_dir, place.index)
    checkpoints = stack.enter_context(
        Checkpoints(decision.run_dir, config.checkpoint.keep, config.checkpoint.keep_every)
    )
    more = {"old": built.old} if built.old else {}
    own = session.kinds.replay(
        workers.spec, built.agent.storage, config.replay, streams=built.size.streams, seed=config.seed,
        env_steps=config.env_steps, size=built.size, run_dir=folder, reads=built.agent.reads, **more,
    )  # fmt: skip
    stack.callback(own.close)
    store = stack.enter_context(RowStore(folder / ROWS, identity))
    session.stopping.on_failure(store.stop)
    return Storage(identity, checkpoints, own, store)


def _load_checkpoint(
    decision: Decision, found: Found, built: Built, storage: Storage, shared: Shared | None, place: Place
) -> Loaded:  # fmt: skip
    """Restores rows, train state and environments from the checkpoint `found`. Only reads the disk."""
    learner, environments = built.learner, built.environments
    with resume.advising(decision.run_dir, found.step):
        if moved := process_files.moves(found, place):
            restored = process_files.load_moved(
                found, decision.run_dir, place, storage.store, storage.replay, environments.workers.spec.agents,
                decision.trust,
            )  # fmt: skip
        else:
            restored = resume.load_rows(found, storage.store, storage.replay, decision.trust)
        lines = start.check_lines(found, restored, decision.run_dir) if place.first else []
        state, _ = storage.checkpoints.restore(placement.local_copy(learner.state), found.step)
        restored, _, lost = resume.restore_envs(
            restored, storage.store, storage.replay, environments.workers,
            decision.config.lockstep or built.way in ("device", "data"),
            environments.replace, drop_later=shared is not None or place.count > 1 or moved,
        )  # fmt: skip
    learner.load(state, found.manifest.updates)
    return Loaded(restored, lost, lines)
