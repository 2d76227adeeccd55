"""Builds a run from its parts, in the order given in runtime/run/start.py. An ExitStack closes all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from dreamer import agent as agents
from dreamer.config import Config
from dreamer.interfaces import Agent
from dreamer.runtime.devices import programs
from dreamer.runtime.devices.memory import free_memory, share
from dreamer.runtime.devices.mesh import configured_mesh, home
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.lock import RunLock
from dreamer.runtime.files.run_dir import ROWS
from dreamer.runtime.log.episodes import EpisodeTracker
from dreamer.runtime.log.logger import Logger
from dreamer.runtime.log.sinks import Sink
from dreamer.runtime.log.terminal import Display
from dreamer.runtime.replay import capacity, columns, disk_tier, replay
from dreamer.runtime.replay.capacity import Capacity
from dreamer.runtime.replay.flushing import Flushing
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run import calls, evaluation, header, ratio, resume, schedule, start, updates, ways
from dreamer.runtime.run.collector import Collector
from dreamer.runtime.run.device_rows import DeviceRows, describe_observations
from dreamer.runtime.run.environments import Environments
from dreamer.runtime.run.init_from import begin_with
from dreamer.runtime.run.learner import Learner, Pending, PendingUpdates
from dreamer.runtime.run.limiter import Limiter
from dreamer.runtime.run.moving import Moving, Owners
from dreamer.runtime.run.on_device import OnDevice
from dreamer.runtime.run.parts import Parts, Shared
from dreamer.runtime.run.prefetch import Prefetch
from dreamer.runtime.run.resume import Found, Restored
from dreamer.runtime.run.retention import Retention
from dreamer.runtime.run.start import Created, Decision
from dreamer.runtime.run.stopping import Stopping
from dreamer.runtime.run.ways import Room, Way
from dreamer.runtime.run.writeback import Writeback


class Session(NamedTuple):
    """The parts of a run that are made first.

    stack: closes everything that was opened, in reverse order | display: prints to the terminal
    stopping: handles signals | sinks: the caller's sinks for metrics, images and videos
    mesh: the devices that learn; None: those of the config. A population gives each member a device.
    """

    stack: contextlib.ExitStack
    display: Display
    stopping: Stopping
    sinks: Sequence[Sink]
    mesh: Mesh | None = None


class Built(NamedTuple):
    """The parts that are made before a new run directory is created or the run's checkpoint is loaded.

    size: the planned size of the replay | record: whether evaluations record videos
    way: how the run goes
    """

    environments: Environments
    agent: Agent
    learner: Learner
    size: Capacity
    limiter: Limiter
    record: bool
    way: Way


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


class Opened(NamedTuple):
    """A run that is open but has not started.

    created: the new run directory; None: the directory already contained the run
    resumed_at: the step of the checkpoint to resume from; NEVER (-1): there is none
    eval_due: the step of the next evaluation
    lines: lines to print about what was restored and what was not
    """

    parts: Parts
    created: Created | None
    resumed_at: int
    eval_due: int
    lines: tuple[str, ...]


def open_session(config: Config, stack: contextlib.ExitStack, sinks: Sequence[Sink] = ()) -> Session:
    """Opens the display of a run, and the handlers of its signals. stack: closes both."""
    display = stack.enter_context(Display(config.env_steps, every=config.log.every, trains=config.replay_ratio > 0))
    return Session(stack, display, stack.enter_context(Stopping(display.message)), sinks)


def open_run(decision: Decision, session: Session) -> Opened:
    """Locks the run directory, builds or restores the run in memory, then writes to the disk. Returns the open run.

    The order is given in runtime/run/start.py. session: its stack closes everything that this function opens.
    Raises UserError if the run cannot start or resume. The disk is then unchanged.
    """
    return open_built(*build_run(decision, session), session)


def build_run(decision: Decision, session: Session, shared: Shared | None = None) -> tuple[Decision, Built]:
    """Locks a directory that contains the run already, and builds the parts that need no checkpoint.

    shared: what the run shares with the other members of its population; None: it belongs to none
    Returns the arguments of `open_built`. Raises UserError if the run cannot start. The disk is then unchanged.
    """
    if decision.used:
        decision = _lock(decision, session)
    return decision, _build(decision, session, shared)


def open_built(decision: Decision, built: Built, session: Session, shared: Shared | None = None) -> Opened:
    """Restores a run that `build_run` has built, then writes to the disk. Returns the open run.

    shared: as in `build_run`. Raises UserError if the run cannot start or resume. The disk is then unchanged.
    """
    config, display = decision.config, session.display
    created = None if decision.used else _create(decision, session)
    if created:
        decision = decision._replace(config=dataclasses.replace(config, run_dir=str(created.path)))
    elif not decision.found:
        display.message("no checkpoint yet: the run starts from the beginning")
    display.header([f"run: {decision.run_dir}", header.METRICS])
    memory = _restore(decision, built, session, shared)
    session.stopping.begun()
    parts = _change(decision, built, memory, session, shared)
    display.losses(built.agent.scales)
    display.phase("collecting")
    return Opened(parts, created, decision.resumed_at, _eval_due(decision.config, memory.restored), memory.lines)


def _lock(decision: Decision, session: Session) -> Decision:
    """Locks a directory that already contains the run, decides again what to do, and returns the new decision."""
    session.stack.enter_context(RunLock(decision.run_dir, session.display.message, session.stopping.fail))
    return start.decide(
        decision.given, decision.env, decision.resume, decision.step, trust=decision.trust, own_lock=True
    )


def _create(decision: Decision, session: Session) -> Created:
    """Creates the directory of a new run, locks it, and checks again that it contains no run."""
    own_name = not decision.given.run_dir
    return session.stack.enter_context(
        Created(decision.run_dir, own_name, session.display.message, session.stopping.fail)
    )


# Into memory ----------------------------------------------------------------------------------------------------------


def _build(decision: Decision, session: Session, shared: Shared | None) -> Built:
    """Makes environments, agent and weights, and computes the size of the replay. Changes nothing on the disk."""
    config, found = decision.config, decision.found
    start.check_sinks(config)
    rate = ratio.updates_per_step(config.replay_ratio, config.replay.batch_size, config.replay.batch_length)
    environments = _make_environments(decision, session)
    workers = environments.workers
    if found:
        resume.check_spec(found, workers.spec, str(decision.env))
    record, why_not = evaluation.can_record(
        decision.env, config.env_options, config.eval.video,
        evaluation.like_training(config.workers, workers.backend), workers.folder,
    )  # fmt: skip
    agent = shared.agent if shared else None
    agent = agent or agents.make(config.agent, workers.spec, priorities=config.replay.priority > 0)
    size = _plan_replay(decision, environments, agent, shared)
    mesh = session.mesh or configured_mesh(config.devices, config.replay.batch_size)
    platforms = [device.platform for device in mesh.devices.flat]
    row_bytes = columns.row_bytes(columns.columns_of(workers.spec, agent.storage))
    needed = size.steps * row_bytes
    room = Room(share(mesh, needed), free_memory(home(mesh)), mesh.size)
    way, line = ways.choose(config, workers.backend, platforms, room)
    learner = Learner(
        agent, workers.spec, seed=config.seed, batch_size=config.replay.batch_size, lockstep=way != "thread",
        mesh=mesh, part=shared.part if shared else None,
    )  # fmt: skip
    batch_rows = config.replay.batch_size * (config.replay.context + config.replay.batch_length)
    several = calls.choose(
        config, way, due=rate * workers.streams, population=shared is not None, free=free_memory(home(mesh)),
        batch_bytes=share(mesh, batch_rows * row_bytes),
    )  # fmt: skip
    limiter = Limiter(rate, workers.streams, several.updates)
    built = Built(environments, agent, learner, size, limiter, record, way)
    session.display.header([*_introduction(config, built), *filter(None, [line, several.line, why_not])])
    if not found and config.init_from:
        taken = begin_with(learner.state, config.init_from, config.init_parts, config.init_missing)
        learner.load(taken.state, 0)
        session.display.header(taken.lines)
    return built


def _make_environments(decision: Decision, session: Session) -> Environments:
    environments = Environments(decision.config, decision.env, session.display.message)
    session.stack.callback(environments.close)
    # An environment in this process may have changed the current folder, where plug-ins are found.
    os.chdir(environments.workers.folder)
    session.stopping.on_signal(environments.shorten_timeouts)
    return environments


def _plan_replay(decision: Decision, environments: Environments, agent: Agent, shared: Shared | None) -> Capacity:
    """Returns the size of the replay. For a resumed run, `resume.ring_length` sets the length of the rings."""
    config, workers = decision.config, environments.workers
    # One long-lived agent may produce most of an environment's rows, so each ring is sized for all agents together.
    size = replay.size_replay(
        workers.spec, agent.storage, config.replay, streams=workers.streams,
        env_steps=config.env_steps * workers.spec.agents, run_dir=config.run_dir,
        free=shared.free if shared else None,
    )  # fmt: skip
    if not decision.found:
        return size
    length = resume.ring_length(decision.found, size.rows_per_stream, decision.longer)
    return dataclasses.replace(size, rows_per_stream=length, bound="the resumed run")


def _introduction(config: Config, built: Built) -> list[str]:
    """Returns the lines that introduce the run, to print before the memory for the replay is allocated."""
    workers, size = built.environments.workers, built.size
    most = capacity.rows_bound(
        size, columns.row_bytes(built.agent.storage), keep=config.checkpoint.keep, env_steps=config.env_steps,
        keep_every=config.checkpoint.keep_every,
    )  # fmt: skip
    rows = capacity.describe_rows(most, disk_tier.free_space(config.run_dir))
    lines = [*header.describe(config, workers.spec, built.learner), workers.describe(), size.describe(), rows]
    if config.replay.on_device:
        lines.append(describe_observations(workers.spec, size.steps))
    return lines


def _restore(decision: Decision, built: Built, session: Session, shared: Shared | None) -> Memory:
    """Makes an empty replay and loads the run's checkpoint into memory, if there is one. Only reads the disk."""
    storage = _open_storage(decision, built, session)
    loaded = _load_checkpoint(decision, decision.found, built, storage, shared) if decision.found else None
    workers = built.environments.workers  # loading may have replaced the workers
    collector = Collector(
        built.agent, built.learner.part, workers, storage.replay, seed=decision.config.seed,
        policy=shared.first.collector.policy if shared and shared.first else None,
    )  # fmt: skip
    tracker = EpisodeTracker(workers.streams)
    if not loaded:
        return Memory(storage, collector, tracker, None, ())
    resume.load_rest(loaded.restored, storage.replay, collector, tracker, built.limiter)
    lines = resume.describe(loaded.restored, storage.replay, loaded.lost, workers.envs)
    return Memory(storage, collector, tracker, loaded.restored, (*loaded.lines, *lines))


def _open_storage(decision: Decision, built: Built, session: Session) -> Storage:
    """Opens the files of the run for reading, and makes an empty replay."""
    config, stack, workers = decision.config, session.stack, built.environments.workers
    identity = decision.found.files.run if decision.found else uuid.uuid4().hex
    checkpoints = stack.enter_context(
        Checkpoints(decision.run_dir, config.checkpoint.keep, config.checkpoint.keep_every)
    )
    rings = Replay(
        workers.spec, built.agent.storage, config.replay, streams=workers.streams, seed=config.seed,
        env_steps=config.env_steps, size=built.size, run_dir=decision.run_dir,
    )  # fmt: skip
    stack.callback(rings.close)
    store = stack.enter_context(RowStore(decision.run_dir / ROWS, identity))
    session.stopping.on_failure(store.stop)
    return Storage(identity, checkpoints, rings, store)


def _load_checkpoint(decision: Decision, found: Found, built: Built, storage: Storage, shared: Shared | None) -> Loaded:
    """Restores rows, train state and environments from the checkpoint `found`. Only reads the disk."""
    learner, environments = built.learner, built.environments
    with resume.advising(decision.run_dir, found.step):
        restored = resume.load_rows(found, storage.store, storage.replay, decision.trust)
        lines = start.check_lines(found, restored, decision.run_dir)
        state, _ = storage.checkpoints.restore(learner.state, found.step)
        restored, _, lost = resume.restore_envs(
            restored, storage.store, storage.replay, environments.workers,
            decision.config.lockstep or built.way == "device",
            environments.replace, drop_later=shared is not None,
        )  # fmt: skip
    learner.load(state, found.manifest.updates)
    return Loaded(restored, lost, lines)


# Change ---------------------------------------------------------------------------------------------------------------


def _change(decision: Decision, built: Built, memory: Memory, session: Session, shared: Shared | None) -> Parts:
    """Writes the first files of the run, makes the components that are still missing, and returns all components."""
    config, stack, report = decision.config, session.stack, session.display.message
    learner, (identity, checkpoints, rings, store) = built.learner, memory.storage
    going_on = start.change(decision, memory.restored, store, steps=rings.steps, run=identity, report=report)
    if going_on and not shared:  # a population resumes from a common checkpoint, which the user did not choose
        chosen = decision.step is not None and decision.found is not None and bool(decision.found.newer)
        going_on = going_on._replace(rewound=chosen)
    source = DeviceRows(learner.mesh, built.environments.workers.spec, rings) if config.replay.on_device else rings
    logger = stack.enter_context(
        Logger(decision.run_dir, config.log, dataclasses.asdict(config), resumed=going_on, sinks=session.sinks)
    )
    # Closed before the replay. In turns nothing may depend on the timing of a thread.
    in_turns = built.way != "thread"
    draw = functools.partial(updates.draw, source, learner, config.replay.batch_size)
    ahead = calls.drawn_ahead(built.limiter.updates, config.replay.prefetch)
    batches = Prefetch(draw, depth=0 if in_turns else ahead)
    stack.callback(batches.close)
    write_back = functools.partial(updates.write_back, learner=learner, replay=rings, logger=logger)
    writeback = Writeback[Pending | PendingUpdates](write_back, threaded=not in_turns)
    stack.callback(writeback.close)
    flushing = stack.enter_context(
        Flushing(store, rings, every=config.replay.flush, most=capacity.rows_between_flushes(rings.size))
    )
    device = None
    if built.way == "device":
        workers: Any = built.environments.workers
        owners = Owners(learner, rings, workers, memory.collector, memory.tracker, built.limiter, logger)
        device = OnDevice(built.agent, Moving(built.agent, owners, config.seed))
        stack.callback(device.close)
    return Parts(
        config=config, env=decision.env, identity=identity, display=session.display, stopping=session.stopping,
        environments=built.environments, agent=built.agent, record=built.record,
        policy=shared.first.policy if shared and shared.first else programs.jit_act(built.agent),
        learner=learner, replay=rings, collector=memory.collector, tracker=memory.tracker, limiter=built.limiter,
        batches=batches, writeback=writeback, store=store, flushing=flushing, checkpoints=checkpoints,
        retention=Retention(decision.run_dir, checkpoints, store, decision.resumed_at, report), logger=logger,
        way=built.way, device=device,
    )  # fmt: skip


def _eval_due(config: Config, restored: Restored | None) -> int:
    """Returns the step of the next evaluation; if `eval.every` is 0, the last step of the run."""
    if restored and config.eval.every:
        return restored.head["loop"]["eval_due"]
    return schedule.first_evaluation(config.eval.every, config.env_steps)
