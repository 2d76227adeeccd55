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
from dreamer.runtime.population.hyper import own_hyper
from dreamer.runtime.population.loop import DevicePopulation
from dreamer.runtime.population.members import Member, members_of
from dreamer.runtime.population.room import check_states
from dreamer.runtime.replay import replay
from dreamer.runtime.run import header, resume, start
from dreamer.runtime.run.build import Opened, Session, open_run, open_session
from dreamer.runtime.run.listening import Callback
from dreamer.runtime.run.parts import Parts, Shared


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
        runs = open_members(alive, step, request, session, where, begun)
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
    members: Sequence[Member], step: int | None, request: Request, session: Session, where: Spread, begun: bool
) -> dict[str, Opened]:
    """Opens the run of each member. All share one agent, whose functions serve every member, and the free memory.

    step: the checkpoint to resume from; None: the first one of the members that have one already
    where: on which device each member trains
    begun: whether an earlier start may have made directories, before it was killed
    Raises UserError if an axis changes the program, if the memory does not suffice for all members, or if they would
    use several devices on the host.
    """
    display: Any = [MemberDisplay(session.display, member.name) for member in members]
    runs: dict[str, Opened] = {}
    shared = Shared(replay.measure_free(members[0].config.run_dir, len(members)))
    for number, member in enumerate(members):
        display[number].all = display
        how = request.resume if step is not None else "auto" if begun else "no"
        decision = start.decide(member.config, request.env, how, step, trust=request.trust)
        own = session._replace(display=display[number], mesh=mesh_of(where.device_of(number)))
        opened = open_run(decision, own, shared)
        parts = opened.parts
        if not shared.first:
            check_first(parts, len(members), len(where.devices))
            shared = shared._replace(first=parts)
        check_way(parts, shared.first or parts)
        if step is None and member.config.agent != members[0].config.agent:
            parts.learner.load(own_hyper(parts.learner.state, parts.agent, member, parts.workers.spec), 0)
        runs[member.name] = opened
    return runs


def check_first(parts: Parts, members: int, devices: int) -> None:
    """Raises UserError if the first member needs several devices on the host, or if the others do not fit beside it."""
    if parts.way == "device":
        return
    if devices > 1:
        raise UserError("a population whose loop runs on the host learns on one device: set devices.count to 1")
    check_states(parts.learner.state, members)


def check_way(parts: Parts, first: Parts) -> None:
    """Raises UserError if a member goes another way than the first one, because then one program cannot serve both."""
    if parts.way != first.way:
        one, other = ("device" if way == "device" else "host" for way in (first.way, parts.way))
        raise UserError(
            f"the loop of {first.run_dir.name} runs on the {one}, that of {parts.run_dir.name} on the {other}: choose "
            "--loop device or --loop host"
        )


def describe(members: Sequence[Member], alive: Sequence[Member], config: Config) -> list[str]:
    """Returns the lines that introduce a population."""
    names = ", ".join(member.name for member in members[:4]) + (", ..." if len(members) > 4 else "")
    left = f"; {len(members) - len(alive)} have stopped" if len(alive) < len(members) else ""
    return [f"population: {len(members)} members in {config.run_dir} ({names}){left}"]
