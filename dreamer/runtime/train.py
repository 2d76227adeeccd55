"""`dreamer.train`: one run from start to end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import gymnasium

from dreamer.config import Config, expect_config
from dreamer.errors import UserError
from dreamer.interfaces import JaxEnv
from dreamer.plugins import EnvName, maker
from dreamer.runtime.devices import distributed
from dreamer.runtime.hosts import train as hosts
from dreamer.runtime.log.sinks import Sink
from dreamer.runtime.population import members
from dreamer.runtime.population import train as population
from dreamer.runtime.run import datasets, ending, start
from dreamer.runtime.run.build import open_run, open_session
from dreamer.runtime.run.listening import Callback
from dreamer.runtime.run.loop import Run
from dreamer.runtime.run.offline import OfflineRun

Resume = Literal["no", "yes", "auto"]


def train(
    config: Config, *, resume: Resume = "no", resume_from: int | None = None,
    make_env: Callable[..., gymnasium.Env | JaxEnv] | None = None, trust: bool = False, sinks: Sequence[Sink] = (),
    callbacks: Sequence[Callback] = (),
) -> Path:  # fmt: skip
    """Trains one agent in a run directory and returns the path of that directory.

    resume: "no" starts a new run; "yes" resumes the run in config.run_dir; "auto" resumes it if there is one.
    resume_from: the number of the checkpoint to resume from, which implies resume "yes"; None: the newest.
    make_env: called with config.env_options to make the environment, instead of config.env.
    trust: whether to read pickled states of environments that this user did not make on this machine.
    sinks: receive metrics, images and videos, in addition to the sinks in config.log; they are not closed.
    callbacks: called with each line of metrics, a `Line`. A callback may return "stop", which saves and ends the run,
    or "evaluate". A callback that raises an error ends the run as any failure does.
    Raises UserError for everything that the user can fix; Stopped if the run was interrupted, after saving; and
    RunFailed after any other failure of a started run, after saving and writing the traceback into error.txt of the run
    directory. A start that is refused changes nothing on the disk.
    """
    expect_config(config, "dreamer.train")
    if resume not in get_args(Resume):
        raise UserError(f"resume must be one of {', '.join(get_args(Resume))}, not {resume!r}")
    distributed.check(config.devices)
    env: EnvName = config.env if make_env is None else maker(make_env)
    config = dataclasses.replace(config, env=str(env))
    datasets.check(config, population=members.count(config) > 1)
    if config.devices.coordinator:
        if members.count(config) > 1:
            raise UserError(
                "a population trains in one process; leave out devices.coordinator, or train its members as a sweep: "
                "dreamer sweep"
            )
        return hosts.train(config, hosts.Request(env, resume, resume_from, trust, sinks, callbacks))
    if members.count(config) > 1:
        if resume_from is not None or sinks:
            what = "resume_from" if resume_from is not None else "sinks"
            raise UserError(f"{what} belongs to one run; a population has several, each in a folder of its own")
        return population.train(config, population.Request(env, resume, trust, callbacks))
    if resume_from is not None and resume == "no":
        resume = "yes"
    decision = start.decide(config, env, resume, resume_from, trust=trust)
    if decision.done and decision.found:
        made = f"{decision.found.env_steps:,} {config.counted}"
        print(f"{decision.given.run_dir} has made its {made}; give more to continue")
        return decision.run_dir
    with contextlib.ExitStack() as stack:
        kind = OfflineRun if decision.config.updates else Run
        run = kind(open_run(decision, open_session(decision.config, stack, sinks)), callbacks)
        run.start()
        try:
            run.go()
            if run.stopped:
                run.leave()
            else:
                run.finish()
        except KeyboardInterrupt as stop:
            ending.interrupted(run, stop)
            raise
        except BaseException as error:
            raise ending.failed(run, error) from error
    return run.parts.run_dir
