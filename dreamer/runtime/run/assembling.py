"""Makes the parts of a run that need no checkpoint: environments, agent, learner, and the size of the replay."""

from __future__ import annotations

import functools
import os
from fractions import Fraction
from typing import NamedTuple

from dreamer import agent as agents
from dreamer.config import NO_ENV, Config
from dreamer.interfaces import Agent
from dreamer.runtime.devices import placement
from dreamer.runtime.devices.memory import free_memory, share
from dreamer.runtime.devices.mesh import configured_mesh, home
from dreamer.runtime.learning import ratio
from dreamer.runtime.learning.device_rows import describe_observations
from dreamer.runtime.learning.learner import Learner
from dreamer.runtime.learning.limiter import Limiter
from dreamer.runtime.replay import columns, replay
from dreamer.runtime.replay.capacity import Capacity, Free
from dreamer.runtime.run import calls, datasets, evaluation, header, no_workers, resume, rings, start, ways
from dreamer.runtime.run.datasets import Datasets
from dreamer.runtime.run.directory import Session
from dreamer.runtime.run.environments import Environments
from dreamer.runtime.run.init_from import begin_with
from dreamer.runtime.run.parts import Shared
from dreamer.runtime.run.process import Place
from dreamer.runtime.run.start import Decision
from dreamer.runtime.run.ways import Room, Way


class Built(NamedTuple):
    """The parts that are made before a new run directory is created or the run's checkpoint is loaded.

    size: the planned size of the replay | record: whether evaluations record videos
    way: how the run collects and trains | old: the number of rings for rows of datasets, see `Rings`
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


def assemble(decision: Decision, session: Session, shared: Shared | None) -> Built:
    """Makes environments, agent and weights, and computes the size of the replay. Changes nothing on the disk.

    shared: as in `build.build_run`. Raises UserError if the run cannot start.
    """
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
        mesh=mesh, part=shared.part if shared else None, sizes=_sizes(config),
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


def _sizes(config: Config) -> dict[str, int]:
    """Returns the config fields on which the memory of an update depends, with their values."""
    behavior = {name: getattr(config.agent.behavior, name, 0) for name in ("imagine_length", "population", "rollouts")}
    sizes = {"replay.batch_size": config.replay.batch_size, "replay.batch_length": config.replay.batch_length}
    return sizes | {f"agent.behavior.{name}": value for name, value in behavior.items() if value}


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
