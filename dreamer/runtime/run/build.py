"""Builds a run from its parts, in the order given in runtime/run/start.py. An ExitStack closes all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import uuid
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from dreamer import agent as agents
from dreamer.config import NO_ENV, Config
from dreamer.interfaces import Agent
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.devices.memory import free_memory, share
from dreamer.runtime.devices.mesh import configured_mesh, home
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.run_dir import ROWS, folder_of
from dreamer.runtime.learning import ratio, updates
from dreamer.runtime.learning.collector import Collector
from dreamer.runtime.learning.device_rows import DeviceRows, describe_observations
from dreamer.runtime.learning.learner import Learner, Pending, PendingUpdates
from dreamer.runtime.learning.limiter import Limiter
from dreamer.runtime.learning.moving import Moving, Owners
from dreamer.runtime.learning.on_device import OnDevice
from dreamer.runtime.learning.prefetch import Prefetch
from dreamer.runtime.learning.writeback import Writeback
from dreamer.runtime.log.episodes import EpisodeTracker
from dreamer.runtime.log.logger import Resumed
from dreamer.runtime.log.sinks import Sink
from dreamer.runtime.replay import capacity, columns, replay
from dreamer.runtime.replay.capacity import Capacity, Free
from dreamer.runtime.replay.flushing import Flushing
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run import (
    calls,
    datasets,
    directory,
    evaluation,
    header,
    no_workers,
    process_files,
    resume,
    rings,
    schedule,
    start,
    ways,
)
from dreamer.runtime.run.datasets import Datasets
from dreamer.runtime.run.directory import Session
from dreamer.runtime.run.environments import Environments
from dreamer.runtime.run.init_from import begin_with
from dreamer.runtime.run.parts import Parts, Shared
from dreamer.runtime.run.process import ALONE, USUAL, Kinds, Place, Process
from dreamer.runtime.run.resume import Found, Restored
from dreamer.runtime.run.retention import Retention
from dreamer.runtime.run.start import Created, Decision
from dreamer.runtime.run.stopping import Stopping
from dreamer.runtime.run.ways import Room, Way


class Built(NamedTuple):
    """The parts that are made before a new run directory is created or the run's checkpoint is loaded.

    size: the planned size of the replay | record: whether evaluations record videos
    way: how the run goes | old: the number of rings for rows of datasets, see `Rings`
    datasets: those of a new run; None: it has none, or is resumed and has their rows
    """

    environments: Environments
    agent: Agent
    learner: Learner
    size: Capacity
    limiter: Limiter
    record: bool
    way: Way
    old: int = 0
    datasets: Datasets | None = None


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


def open_session(
    config: Config, stack: contextlib.ExitStack, sinks: Sequence[Sink] = (), host: Process = ALONE,
    kinds: Kinds = USUAL,
) -> Session:  # fmt: skip
    """Opens the display of a run, and the handlers of its signals. stack: closes both.

    host, kinds: as in `Session`
    """
    display = stack.enter_context(kinds.display(config))
    stopping = stack.enter_context(Stopping(display.message))
    return Session(stack, display, stopping, sinks, host=host, kinds=kinds)


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
    host = session.host
    if decision.used:
        decision = directory.lock(decision, session)
    if decision.found:
        decision = decision._replace(found=process_files.own_part(decision.found, host.place))
    built, sizes = host.together(
        lambda: _build(decision, session, shared), lambda built: built.size.rows_per_stream
    )  # fmt: skip
    size = built.size if len(sizes) == 1 else dataclasses.replace(built.size, rows_per_stream=min(sizes))
    return decision, built._replace(size=size)


def open_built(decision: Decision, built: Built, session: Session, shared: Shared | None = None) -> Opened:
    """Restores a run that `build_run` has built, then writes to the disk. Returns the open run.

    shared: as in `build_run`. Raises UserError if the run cannot start or resume. The disk is then unchanged.
    """
    config, display, host = decision.config, session.display, session.host
    created = None
    if not decision.used:
        created, path = directory.create(decision, session)
        decision = decision._replace(config=dataclasses.replace(config, run_dir=path))
    elif not decision.found:
        display.message("no checkpoint yet: the run starts from the beginning")
    display.header([f"run: {decision.run_dir}", header.METRICS])
    identity = decision.found.files.run if decision.found else host.from_first(uuid.uuid4().hex)
    memory, _ = host.together(lambda: _restore(decision, built, session, shared, identity))
    host.together(session.stopping.begun)
    going_on = directory.change(decision, memory.restored, memory.storage.store, memory.storage.replay, session)
    parts, _ = host.together(lambda: _change(decision, built, memory, session, shared, going_on))
    display.losses(built.agent.scales)
    display.phase("collecting")
    eval_due = host.from_first(_eval_due(decision.config, memory.restored))
    return Opened(parts, created, decision.resumed_at, eval_due, memory.lines)


# Into memory ----------------------------------------------------------------------------------------------------------


def _build(decision: Decision, session: Session, shared: Shared | None) -> Built:
    """Makes environments, agent and weights, and computes the size of the replay. Changes nothing on the disk."""
    config, found, place = decision.config, decision.found, session.host.place
    own = place.config(config)
    if place.first:
        start.check_sinks(config)
    rate = ratio.updates_per_step(config.replay_ratio, config.replay.batch_size, config.replay.batch_length)
    environments, data = _make_environments(decision, own, session)
    workers = environments.workers
    record, why_not = False, ""
    if decision.env != NO_ENV:
        record, why_not = evaluation.can_record(
            decision.env, config.env_options, config.eval.video,
            evaluation.like_training(config.workers, workers.backend), workers.folder,
        )  # fmt: skip
    agent = shared.agent if shared else None
    agent = agent or agents.make(config.agent, workers.spec, priorities=config.replay.priority > 0)
    free = shared.free if shared else _free(decision, place)
    size, old = rings.plan(decision, own, workers, agent.storage, free, data)
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
        config, way, due=Fraction(1) if config.updates else rate * workers.streams,
        population=shared is not None, processes=place.count,
        free=free_memory(home(mesh)), batch_bytes=share(mesh, batch_rows * row_bytes),
    )  # fmt: skip
    limiter = Limiter(rate, workers.streams * place.count, several.updates)
    if config.updates:  # one update for each step, from the first on
        limiter = Limiter(Fraction(1), 1, several.updates)
        limiter.load("0")
    built = Built(environments, agent, learner, size, limiter, record, way, old, data)
    session.display.header([*_introduction(config, built), *filter(None, [line, several.line, why_not])])
    if not found and config.init_from:
        state = placement.local_copy(learner.state)
        taken = begin_with(state, config.init_from, config.init_parts, config.init_missing)
        learner.load(taken.state, 0)
        session.display.header(taken.lines)
    return built


def _make_environments(decision: Decision, own: Config, session: Session) -> tuple[Environments, Datasets | None]:
    """Makes the environments, and reads the datasets of a new run. Raises UserError if their spaces differ."""
    config, found, place = decision.config, decision.found, session.host.place
    envs, data, make = config.workers.envs, None, None
    whose = f"env {str(decision.env)!r}"
    if config.updates:
        spec = no_workers.spec_of(config, decision.env)
        if found and spec:
            resume.check_spec(found, spec, str(decision.env))
        data = None if found else datasets.read(config, spec, whose)
        spec = data.spec if data else resume.spec_of(found)
        make = functools.partial(no_workers.NoWorkers, spec, config.workers.backend)
    environments = Environments(
        own, decision.env, session.display.message, first=place.envs(envs).start, total=envs, make=make
    )  # fmt: skip
    session.stack.callback(environments.close)
    # An environment in this process may have changed the current folder, where plug-ins are found.
    os.chdir(environments.workers.folder)
    session.stopping.on_signal(environments.shorten_timeouts)
    if config.updates:
        return environments, data
    if found:
        resume.check_spec(found, environments.workers.spec, str(decision.env))
    elif config.data:
        data = datasets.read(config, environments.workers.spec, whose)
    return environments, data


def _free(decision: Decision, place: Place) -> Free | None:
    """Returns the free memory and disk for all processes on this machine; None: this is the only one."""
    return replay.measure_free(decision.config.run_dir, place.neighbours) if place.neighbours > 1 else None


def _introduction(config: Config, built: Built) -> list[str]:
    """Returns the lines that introduce the run, to print before the memory for the replay is allocated."""
    workers, size = built.environments.workers, built.size
    lines = [*header.describe(config, workers.spec, built.learner), *([built.datasets.text] if built.datasets else [])]
    lines += [workers.describe(), *rings.describe(config, rings.Rings(size, built.old), built.agent.storage)]
    if config.replay.on_device:
        lines.append(describe_observations(workers.spec, size.steps))
    return lines


def _restore(decision: Decision, built: Built, session: Session, shared: Shared | None, identity: str) -> Memory:
    """Makes an empty replay and loads the run's checkpoint into memory, if there is one. Only reads the disk.

    identity: the random id of the run
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
        env_steps=config.env_steps, size=built.size, run_dir=folder, **more,
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


# Change ---------------------------------------------------------------------------------------------------------------


def _change(
    decision: Decision, built: Built, memory: Memory, session: Session, shared: Shared | None,
    going_on: Resumed | None,
) -> Parts:  # fmt: skip
    """Makes the components that are still missing, which write files too, and returns all components.

    going_on: where the log of a resumed run continues
    """
    config, stack, report = decision.config, session.stack, session.display.message
    place = session.host.place
    learner, (identity, checkpoints, own, store) = built.learner, memory.storage
    if going_on and not shared:  # a population resumes from a common checkpoint, which the user did not choose
        chosen = decision.step is not None and decision.found is not None and bool(decision.found.newer)
        going_on = going_on._replace(rewound=chosen)
    source = DeviceRows(learner.mesh, built.environments.workers.spec, own) if config.replay.on_device else own
    logger = stack.enter_context(
        session.kinds.logger(
            decision.run_dir, config.log, dataclasses.asdict(config), resumed=going_on, sinks=session.sinks
        )
    )
    # Closed before the replay. In turns and in lockstep nothing may depend on the timing of a thread.
    in_turns = built.way in ("turns", "device") or config.lockstep
    draw = functools.partial(updates.draw, source, learner, config.replay.batch_size // place.count)
    ahead = calls.drawn_ahead(built.limiter.updates, config.replay.prefetch)
    batches = Prefetch(draw, depth=0 if in_turns else ahead)
    stack.callback(batches.close)
    write_back = functools.partial(updates.write_back, learner=learner, replay=own, logger=logger)
    writeback = Writeback[Pending | PendingUpdates](write_back, threaded=not in_turns)
    stack.callback(writeback.close)
    flushing = stack.enter_context(
        Flushing(store, own, every=config.replay.flush, most=capacity.rows_between_flushes(own.size))
    )
    device = None
    if built.way == "device":
        workers: Any = built.environments.workers
        owners = Owners(learner, own, workers, memory.collector, memory.tracker, built.limiter, logger)
        device = OnDevice(built.agent, Moving(built.agent, owners, config.seed))
        stack.callback(device.close)
    return Parts(
        config=config, env=decision.env, identity=identity, display=session.display, stopping=session.stopping,
        environments=built.environments, agent=built.agent, record=built.record,
        policy=shared.first.policy if shared and shared.first else programs.jit_act(built.agent),
        learner=learner, replay=own, collector=memory.collector, tracker=memory.tracker, limiter=built.limiter,
        batches=batches, writeback=writeback, store=store, flushing=flushing, checkpoints=checkpoints,
        retention=Retention(
            decision.run_dir, checkpoints, store, decision.resumed_at, report, place.index, place.count
        ),
        logger=logger,
        way=built.way, device=device, process=place.index, data=_of_data(built, memory),
    )  # fmt: skip


def _of_data(built: Built, memory: Memory) -> dict[str, float]:
    """Returns the numbers about the datasets that are logged. A resumed run has them in its checkpoint."""
    if memory.restored:
        return {str(name): float(value) for name, value in memory.restored.head["loop"].get("data", {}).items()}
    return dict(built.datasets.numbers) if built.datasets else {}


def _eval_due(config: Config, restored: Restored | None) -> int:
    """Returns the step of the next evaluation; if `eval.every` is 0, the last step of the run."""
    if restored and config.eval.every:
        return restored.head["loop"]["eval_due"]
    return schedule.first_evaluation(config.eval.every, config.length)
