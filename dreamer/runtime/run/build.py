"""Builds a run from its parts, in the order given in runtime/run/start.py. An ExitStack closes all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from dreamer.config import Config
from dreamer.runtime.devices import programs
from dreamer.runtime.learning import updates
from dreamer.runtime.learning.device_rows import DeviceRows
from dreamer.runtime.learning.learner import Pending, PendingUpdates
from dreamer.runtime.learning.moving import Moving, Owners
from dreamer.runtime.learning.on_device import OnDevice
from dreamer.runtime.learning.prefetch import Prefetch
from dreamer.runtime.learning.writeback import Writeback
from dreamer.runtime.log.logger import Resumed
from dreamer.runtime.log.sinks import Sink
from dreamer.runtime.replay import capacity
from dreamer.runtime.replay.flushing import Flushing
from dreamer.runtime.run import calls, directory, header, process_files, schedule
from dreamer.runtime.run.assembling import Built, assemble
from dreamer.runtime.run.directory import Session
from dreamer.runtime.run.parts import Parts, Shared
from dreamer.runtime.run.process import ALONE, USUAL, Kinds, Process
from dreamer.runtime.run.restoring import Memory, restore
from dreamer.runtime.run.resume import Restored
from dreamer.runtime.run.retention import Retention
from dreamer.runtime.run.start import Created, Decision
from dreamer.runtime.run.stopping import Stopping


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
        lambda: assemble(decision, session, shared), lambda built: built.size.rows_per_stream
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
    memory, _ = host.together(lambda: restore(decision, built, session, shared, identity))
    host.together(session.stopping.begun)
    going_on = directory.change(decision, memory.restored, memory.storage.store, memory.storage.replay, session)
    parts, _ = host.together(lambda: _change(decision, built, memory, session, shared, going_on))
    display.losses(built.agent.scales)
    display.phase("collecting")
    eval_due = host.from_first(_eval_due(decision.config, memory.restored))
    return Opened(parts, created, decision.resumed_at, eval_due, memory.lines)


def _change(
    decision: Decision, built: Built, memory: Memory, session: Session, shared: Shared | None,
    going_on: Resumed | None,
) -> Parts:  # fmt: skip
    """Makes the components that are still missing, which write files too, and returns all components.

    going_on: the place where the log of a resumed run continues
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
