"""What a start of a sweep finds and plans: its trials, how they are packed, and which of them are not done."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.apps.sweep import packing, planning, ray_config, spec, state
from dreamer.apps.sweep.options import SweepFlags
from dreamer.apps.sweep.packing import Packing, Program
from dreamer.apps.sweep.spec import Sweep
from dreamer.apps.sweep.state import Known
from dreamer.apps.sweep.trials import Trial, trials_of
from dreamer.errors import UserError


class Plan(NamedTuple):
    """A sweep that is ready to run.

    root: its directory | trials: by name | known: what its directory will record
    needs: what the settings of new trials need; None: an earlier start has packed all trials | notes: lines to print
    """

    root: Path
    trials: dict[str, Trial]
    known: Known
    needs: planning.Needs | None
    notes: tuple[str, ...]


def check_place(given: Sweep, flags: SweepFlags) -> None:
    """Raises UserError if the programs cannot run where the flags say."""
    asked = flags.index or flags.print
    if given.search == "tpe" and flags.on != "ray" and not asked:
        raise UserError("search: tpe suggests trials from the results of others, through Ray Tune: give --on ray")
    if flags.ray.scheduler != "none" and flags.on != "ray" and not asked:
        raise UserError(f"--ray.scheduler {flags.ray.scheduler} is one of Ray Tune: give --on ray")
    if given.search == "tpe" and flags.pack == "on":
        raise UserError("search: tpe suggests one trial after the other, and none share a program: leave out --pack")


def all_trials(root: Path, given: Sweep, flags: SweepFlags) -> dict[str, Trial]:
    """Returns the trials of a sweep by name. With tpe, those that were suggested until now. Raises UserError."""
    config = spec.base_config(given, flags.trust)
    found = trials_of(given, config, flags.trust)
    if given.search == "tpe":
        if not [key for key in given.axes if key != "seed"]:
            raise UserError("search: tpe needs at least one axis whose values it may suggest")
        known = state.read(root)
        keys = {key for key in given.axes if key != "seed"}
        entries = known.trials.values() if known else ()
        settings = {repr(one["values"]): one["values"] for one in entries if set(one["values"]) == keys}
        found = trials_of(given, config, flags.trust, [*settings.values()])
    return {trial.name: trial for trial in found}


def check_scheduler(ready: Plan, given: Sweep, flags: SweepFlags) -> None:
    """Raises UserError if the scheduler of Ray cannot be used for this sweep, or if a part of Ray is missing."""
    todo = [program for program in wanted(ready) if any(name in ready.trials for name in program.trials)]
    ray_config.check(flags.ray, given, [*ready.trials.values()], todo)
    ray_config.check_numbers(flags.ray.scheduler, ready.needs.plans if ready.needs else ())


def plan(root: Path, given: Sweep, trials: dict[str, Trial], flags: SweepFlags) -> Plan:
    """Packs the trials that no earlier start has packed, and returns the sweep. Writes nothing.

    Raises UserError if the directory belongs to another sweep, or if the trials cannot be planned.
    """
    known = state.read(root)
    said = spec.named_in(given)
    fresh = [trial for name, trial in trials.items() if known is None or name not in known.trials]
    notes = []
    if known is not None:
        same = [name for name in trials if name in known.trials]
        if not same and (trials or known.trials):
            raise UserError(f"{root} contains another sweep, without one trial in common; give another --run-dir")
        _check_same(root, known, trials)
        left = [name for name in known.trials if name not in trials]
        notes += [f"the sweep has changed: {len(fresh)} trials are new"] if fresh else []
        notes += [f"the sweep has changed: {len(left)} trials are gone, their runs stay: {few(left)}"] if left else []
    needs, packed = None, Packing((), ())
    if fresh:
        needs = planning.needs_of([trial.config for trial in packing.settings_of(fresh)], say)
        jobs = flags.jobs or default_jobs(needs.machine)
        alone = flags.pack == "auto" and (flags.ray.scheduler != "none" or given.search == "tpe")
        alone |= flags.slurm.nodes > 1
        share = needs.machine._replace(host_free=needs.machine.host_free // jobs)
        if flags.device_gb:
            share = share._replace(platform="gpu", device_free=int(flags.device_gb * 1e9))
        from dreamer.runtime.population.plan import most_members

        packed = packing.pack(
            fresh, needs._replace(machine=share), most_members, how="off" if alone else flags.pack, jobs=jobs,
            first=packing.next_number(known.programs if known else ()),
        )  # fmt: skip
    before = known or Known({}, {}, ())
    every = {**before.trials, **state.entries(fresh, packed.programs)}
    gone = tuple(name for name in every if name not in trials)
    whole = Known(said, every, (*before.programs, *packed.programs), gone)
    return Plan(root, trials, whole, needs, (*notes, *packed.notes))


def _check_same(root: Path, known: Known, trials: dict[str, Trial]) -> None:
    for name, trial in trials.items():
        entry = known.trials.get(name)
        if entry and (entry["seed"] != trial.seed or repr(entry["values"]) != repr(dict(trial.values))):
            raise UserError(f"{root} contains another sweep, whose trial {name} has other values; give a new --run-dir")


def default_jobs(there: Any) -> int:
    """Returns how many programs run at the same time: one for each accelerator, or for each core."""
    return max(1, there.devices if there.platform != "cpu" else len(os.sched_getaffinity(0)))


def described(ready: Plan) -> str:
    """Returns all programs and trials as text, with the memory that each program takes."""
    settings = {repr(dict(t.values)): n for n, t in enumerate(packing.settings_of([*ready.trials.values()]))}
    rows = []
    plans = ready.needs.plans if ready.needs and len(ready.needs.plans) == len(settings) else ()
    for number, program in enumerate(ready.known.programs):
        own = [name for name in program.trials if name in ready.trials]
        needs = [plans[settings[repr(dict(ready.trials[name].values))]] for name in own] if plans else []
        rows.append(f"{number}  {program.name}: {len(program.trials)} trials{memory_of(needs)}")
        for name in program.trials:
            values = dict(ready.known.trials[name]["values"], seed=ready.known.trials[name]["seed"])
            rows.append(f"     {name}  " + ", ".join(f"{key} {value}" for key, value in values.items()))
    return "\n".join([*ready.notes, *rows, packing.described(ready.known.programs), f"sweep: {ready.root}"])


def memory_of(needs: Sequence[Any]) -> str:
    """Returns the memory of a program's trials in words; "" if it is unknown. needs: a Plan for each trial."""
    known = [one for one in needs if not isinstance(one, str)]
    if not known:
        return ""
    state_bytes, replay = sum(one.state for one in known), sum(one.replay for one in known)
    on_device = state_bytes + known[0].temporary + sum(one.replay for one in known if one.on_device)
    return (
        f", {known[0].parameters:,} parameters each; device {on_device / 1e6:,.0f} MB (train states "
        f"{state_bytes / 1e6:,.0f}, an update {known[0].temporary / 1e6:,.0f}), host {replay / 1e6:,.0f} MB (replay)"
    )


def to_run(ready: Plan, flags: SweepFlags) -> list[Program]:
    """Returns the programs that are not done. With --retry, failed trials count as open again."""
    lengths = env_steps_of(ready)
    if flags.retry:
        state.clear_failed(ready.root, [*ready.known.trials])
    return [p for p in wanted(ready) if any(is_open(ready.root, ready.known, name, lengths) for name in p.trials)]


def wanted(ready: Plan) -> list[Program]:
    """Returns the programs of trials that the sweep file still has."""
    return [program for program in ready.known.programs if any(name in ready.trials for name in program.trials)]


def env_steps_of(ready: Plan) -> dict[str, int]:
    """Returns the length of each trial's run; that of a trial that is gone is the length of the others."""
    first = next((trial.config.length for trial in ready.trials.values()), 0)
    return {name: ready.trials[name].config.length if name in ready.trials else first for name in ready.known.trials}


def is_open(root: Path, known: Known, trial: str, lengths: dict[str, int]) -> bool:
    """Returns whether a trial is neither done nor failed. lengths {trial: the length of its run}"""
    return state.standing(root, known, trial, lengths[trial]) not in state.SETTLED


def few(names: Sequence[str], most: int = 5) -> str:
    """Returns names in words: the first `most` of them, and how many more there are."""
    return ", ".join([*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])])


def say(line: str) -> None:
    """Prints a line after the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)
