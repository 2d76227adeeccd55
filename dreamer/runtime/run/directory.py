"""Locks, creates and changes the run directory at the start of a run. Of several processes, only process 0 does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from dreamer.runtime.files.lock import RunLock
from dreamer.runtime.log.logger import Resumed
from dreamer.runtime.log.sinks import Sink
from dreamer.runtime.log.terminal import Display
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run import process_files, start
from dreamer.runtime.run.process import ALONE, USUAL, Kinds, Process
from dreamer.runtime.run.resume import Restored
from dreamer.runtime.run.start import Created, Decision
from dreamer.runtime.run.stopping import Stopping


class Session(NamedTuple):
    """The parts of a run that are made first.

    stack: closes everything that was opened, in reverse order | display: prints to the terminal
    stopping: handles signals | sinks: the caller's sinks for metrics, images and videos
    mesh: the devices that learn; None: those of the config. A population gives each member a device.
    host: this process among those that train the run together | kinds: makes the parts that differ between them
    """

    stack: contextlib.ExitStack
    display: Display
    stopping: Stopping
    sinks: Sequence[Sink]
    mesh: Mesh | None = None
    host: Process = ALONE
    kinds: Kinds = USUAL


def lock(decision: Decision, session: Session) -> Decision:
    """Locks a directory that already contains the run, decides again what to do, and returns the new decision."""
    host = session.host
    host.only_first(lambda: _take(decision, session))
    again, _ = host.together(
        lambda: start.decide(
            decision.given, decision.env, decision.resume, decision.step, trust=decision.trust, own_lock=True
        )
    )
    return again._replace(config=dataclasses.replace(decision.config, run_dir=again.config.run_dir))


def _take(decision: Decision, session: Session) -> None:
    taken = session.stack.enter_context(RunLock(decision.run_dir, session.display.message, session.stopping.fail))
    session.host.on_end(taken.close)


def create(decision: Decision, session: Session) -> tuple[Created | None, str]:
    """Creates the directory of a new run, locks it, and checks again that it contains no run. Returns its path too.

    Processes other than the first check that they see it; their Created is None.
    """
    host = session.host

    def make() -> Created | None:
        if not host.place.first:
            return None
        own_name = not decision.given.run_dir
        created = Created(decision.run_dir, own_name, session.display.message, session.stopping.fail)
        host.on_end(created.unlock)
        return session.stack.enter_context(created)

    created, paths = host.together(make, lambda made: str(made.path) if made else "")
    host.together(lambda: start.check_seen(Path(paths[0])))
    return created, paths[0]


def change(
    decision: Decision, restored: Restored | None, store: RowStore, replay: Replay, session: Session
) -> Resumed | None:  # fmt: skip
    """Moves aside the files that a resumed run will write again, as `start.change` does; first those of process 0.

    restored, replay: what was read from the checkpoint; None and empty for a new run
    Returns where the log of a resumed run continues. Raises UserError on a disk error.
    """
    host, run = session.host, store.run

    def change_first() -> Resumed | None:
        if not host.place.first:
            return Resumed(restored.head["logger"], replay.steps, later=False) if restored else None
        steps = decision.found.env_steps if decision.found and decision.config.updates else replay.steps
        return start.change(decision, restored, store, steps=steps, run=run, report=session.display.message)

    going_on, _ = host.together(change_first)
    others = functools.partial(process_files.change, decision.found, decision.run_dir, host.place, store)
    host.together((lambda: None) if host.place.first else others)
    return going_on
