"""Trains the members of a population: many runs in one program. Each member keeps its own run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.fields import get, keys
from dreamer.plugins import EnvName
from dreamer.runtime.devices.mesh import mesh_of
from dreamer.runtime.fused.spread import Spread
from dreamer.runtime.population import exploit, places, standing
from dreamer.runtime.population.display import MemberDisplay
from dreamer.runtime.population.host_loop import HostPopulation
from dreamer.runtime.population.hyper import own_hypers
from dreamer.runtime.population.loop import DevicePopulation
from dreamer.runtime.population.members import Member, members_of
from dreamer.runtime.population.room import check_room, check_states
from dreamer.runtime.replay import replay
from dreamer.runtime.run import header, resume, start
from dreamer.runtime.run.assembling import Built
from dreamer.runtime.run.build import Opened, build_run, open_built, open_session
from dreamer.runtime.run.directory import Session
from dreamer.runtime.run.listening import Callback
from dreamer.runtime.run.parts import Shared
from dreamer.runtime.run.start import Decision
from dreamer.runtime.run.ways import Way


class Request(NamedTuple):
    """What the caller of `train` asked for, see `dreamer.train`."""

    env: EnvName
    resume: str
    trust: bool
    callbacks: Sequence[Callback]


def train(config: Config, request: Request) -> Path:
    """Trains all members, each in RUN/NAME, and returns the run directory RUN. Raises errors as `dreamer.train`.

    The callbacks receive the lines of all members; `Line.run_dir` names the member. If one of them returns "stop", all
    members stop.
    """
    root = Path(os.path.abspath(os.path.expanduser(config.run_dir or header.default_run_dir(config))))
    if config.collect == "thread":
        raise UserError("a population collects and trains in turns: leave out --collect thread")
    if config.checkpoint.keep < 2:
        raise UserError("checkpoint.keep must be 2 or more in a population: its members are saved one after the other")
    config = dataclasses.replace(config, run_dir=str(root), collect="turns")
    members = members_of(config)
    exploit.check(config, len(members))
    own = {"seed": config.seed, "devices.count": config.devices.count}
    own |= {f"population.{key}": get(config.population, key) for key in keys(config.population)}
    known, step = standing.begin(root, [member.name for member in members], request.resume, own)
    alive = [member for member in members if member.name not in known.stopped]
    where = places.spread_of(config, len(alive))
    check_together(config.population.together, where.each)
    ended = {member.name for member in alive if step == config.env_steps and ended_at(root / member.name, step)}
    if len(ended) == len(alive):
        why = f"it has made its {step:,} env_steps; give more to continue" if alive else "all its members have stopped"
        print(f"the population in {root} has nothing to do: {why}")
        return root
    with contextlib.ExitStack() as stack:
        session = open_session(config, stack)
        begun = request.resume == "auto" or (root / standing.FILE).exists()
        together = places.together(config.population.together, where.each)
        runs = open_members(alive, step, request, session, where, together, begun=begun)
        session.display.header([*describe(members, alive, config), *places.describe(where, len(alive))])
        kind = DevicePopulation if next(iter(runs.values())).parts.way == "device" else HostPopulation
        kind(root, alive, runs, known, session.display, config, request.callbacks).train(step, ended)
    return root


def ended_at(run_dir: Path, step: int) -> bool:
    """Whether a member has made its last evaluation, at `step`."""
    found = resume.find(run_dir, step)
    return bool(found and found.ended)


def check_together(together: int, members: int) -> None:
    """Raises UserError if the members of a device cannot be divided into groups of `together`; 0: any device can."""
    if together and members % together:
        fits = [size for size in range(1, members + 1) if not members % size]
        raise UserError(
            f"population.together is {together}, it must divide the {members} members of a device: one of {fits}"
        )


def open_members(
    members: Sequence[Member], step: int | None, request: Request, session: Session, where: Spread, together: int, *,
    begun: bool,
) -> dict[str, Opened]:  # fmt: skip
    """Opens the run of each member. All share one agent, whose functions serve every member, and the free memory.

    step: the checkpoint to resume from; None: the first one of the members that have one already
    where: on which device each member trains | together: how many members of a device train at a time
    begun: whether an earlier start may have made directories, before it was killed
    Raises UserError if an axis changes the program or has no effect, if the memory does not suffice for all members, or
    if they would use several devices on the host. All of this is found before anything is written.
    """
    display: Any = [MemberDisplay(session.display, member.name) for member in members]
    for one in display:
        one.all = display
    meshes = [mesh_of(where.device_of(number)) for number in range(len(members))]
    sessions = [session._replace(display=one, mesh=mesh) for one, mesh in zip(display, meshes, strict=True)]
    shared = Shared(replay.measure_free(members[0].config.run_dir, len(members)))
    built: list[tuple[Decision, Built]] = []
    for member, own in zip(members, sessions, strict=True):
        how = request.resume if step is not None else "auto" if begun else "no"
        decision = start.decide(member.config, request.env, how, step, trust=request.trust)
        decision, parts = build_run(decision, own, shared)
        if not built:
            check_first(parts, where, len(members), together)
            shared = shared._replace(agent=parts.agent, part=parts.learner.part)
        built.append((decision, parts))
        check_way(member.name, parts.way, members[0].name, built[0][1].way)
    if step is None:
        load_hypers(members, [parts for _, parts in built])
    runs: dict[str, Opened] = {}
    for member, (decision, parts), own in zip(members, built, sessions, strict=True):
        runs[member.name] = open_built(decision, parts, own, shared)
        shared = shared._replace(first=shared.first or runs[member.name].parts)
    return runs


def load_hypers(members: Sequence[Member], built: Sequence[Built]) -> None:
    """Gives the train state of each member its own numbers.

    Raises UserError if a member differs in more than these numbers, or if an axis has no effect.
    """
    hypers = own_hypers(members, built[0].agent, built[0].environments.workers.spec)
    for member, parts in zip(members, built, strict=True):
        parts.learner.load(parts.learner.state._replace(hyper=hypers[member.name]), 0)


def check_first(first: Built, where: Spread, members: int, together: int) -> None:
    """Raises UserError if the first member needs several devices on the host, or if the others do not fit beside it.

    together: how many members of a device train at a time
    """
    if first.way == "device":
        check_room(first, where, members, together)
    elif len(where.devices) > 1:
        raise UserError("a population whose loop runs on the host learns on one device: set devices.count to 1")
    else:
        check_states(first.learner.state, members)


def check_way(name: str, way: Way, first: str, first_way: Way) -> None:
    """Raises UserError if the loop of a member differs from that of the first one: one program cannot serve both."""
    if way != first_way:
        one, other = ("device" if one == "device" else "host" for one in (first_way, way))
        raise UserError(
            f"the loop of {first} runs on the {one}, that of {name} on the {other}: choose --loop device or --loop host"
        )


def describe(members: Sequence[Member], alive: Sequence[Member], config: Config) -> list[str]:
    """Returns the lines that introduce a population."""
    names = ", ".join(member.name for member in members[:4]) + (", ..." if len(members) > 4 else "")
    left = f"; {len(members) - len(alive)} have stopped" if len(alive) < len(members) else ""
    return [f"population: {len(members)} members in {config.run_dir} ({names}){left}"]
