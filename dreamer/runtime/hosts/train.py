"""A run that several processes train together, from start to end. See runtime/hosts/host.py."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreamer.config import Config
from dreamer.plugins import EnvName
from dreamer.runtime.devices import distributed
from dreamer.runtime.devices.mesh import Config as Devices
from dreamer.runtime.hosts import parts, settings
from dreamer.runtime.hosts.host import Host
from dreamer.runtime.hosts.loop import SharedRun
from dreamer.runtime.log.sinks import Sink
from dreamer.runtime.run import ending, header, start
from dreamer.runtime.run.build import open_run, open_session
from dreamer.runtime.run.listening import Callback
from dreamer.runtime.run.start import Decision


class Request(NamedTuple):
    """The arguments of `dreamer.train` besides the config, for one run. env: the environment to use"""

    env: EnvName
    resume: str
    resume_from: int | None
    trust: bool
    sinks: Sequence[Sink]
    callbacks: Sequence[Callback]


def train(config: Config, request: Request) -> Path:
    """Trains the share of this process in a run, and returns the run directory. All processes call it.

    config: the same in all processes, except for `devices.process_id`. request: only the sinks and callbacks of process
    0 are used. Raises as `dreamer.train` does. If another process fails alone or is gone, prints a line and ends this
    process with exit code 2.
    """
    distributed.start(config.devices)
    with Host() as host:
        try:
            return _train(config, request, host)
        except BaseException as error:
            host.fail(error)
            raise


def _train(config: Config, request: Request, host: Host) -> Path:
    words = {"resume": request.resume, "resume_from": request.resume_from, "trust": request.trust}
    settings.compare(host, config, request.env, words)
    host.together(lambda: settings.check(config))
    run_dir = host.from_first(os.path.abspath(os.path.expanduser(config.run_dir or header.default_run_dir(config))))
    decision, _ = host.together(lambda: _decide(config, run_dir, request))
    if decision.done and decision.found:
        if host.place.first:
            made = f"{decision.found.env_steps:,} env_steps"
            print(f"{decision.given.run_dir} has made its {made}; give more to continue")
        return decision.run_dir
    with contextlib.ExitStack() as stack:
        session = open_session(decision.config, stack, request.sinks, host, parts.kinds(host.place))
        run = SharedRun(open_run(decision, session), host, request.callbacks)
        run.start()
        try:
            run.take_turns()
            if run.stopped:
                run.leave()
            else:
                run.finish()
        except BaseException as error:
            host.fail(error)
            if isinstance(error, KeyboardInterrupt):
                ending.interrupted(run, error, checkpoint=not host.failed)
                raise
            raise ending.failed(run, error, checkpoint=not host.failed) from error
    return run.parts.run_dir


def _decide(config: Config, run_dir: str, request: Request) -> Decision:
    """Decides what to do, as `start.decide`. The config that is written names no coordinator.

    So a run can be resumed by another number of processes, or by one alone.
    """
    given = dataclasses.replace(
        config, run_dir=run_dir, devices=dataclasses.replace(
            config.devices, coordinator="", processes=Devices.processes, process_id=Devices.process_id
        )
    )  # fmt: skip
    step = request.resume_from
    resume = "yes" if step is not None and request.resume == "no" else request.resume
    decision = start.decide(given, request.env, resume, step, trust=request.trust)
    return decision._replace(config=settings.in_turns(dataclasses.replace(decision.config, devices=config.devices)))
