"""Trials that leave their program: failed members to try again, and trials that the sweep file no longer has.

A stopped member of a population cannot return to its program, because the other members have made more steps. It
becomes a program of its own, and continues in its directory as a run. This module imports no jax.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from dreamer.apps.sweep import packing, state
from dreamer.apps.sweep.packing import Program
from dreamer.apps.sweep.state import Known
from dreamer.apps.sweep.trials import Trial
from dreamer.config import Config
from dreamer.runtime.population import standing

LEFT_OUT = "the file of the sweep no longer has this trial"


def arranged(root: Path, known: Known, trials: Collection[str], retry: Collection[str] = ()) -> Known:
    """Returns the sweep with programs whose members can train together. Only reads the disk.

    trials: the trials of the sweep file; all others leave the programs that they share
    retry: trials to try again; if they have failed, they leave the programs that they share
    A trial of the sweep file that then has no program gets one of its own.
    """
    programs = []
    for program in known.programs:
        kept = list(program.trials)
        if any(known.trials[name]["run_dir"] == f"{program.name}/{name}" for name in program.trials):
            stopped = stopped_members(root, program)
            again = {name for name in stopped if name in retry and state.failure(root, name)}
            kept = [name for name in program.trials if name in trials and name not in again]
        programs.append(program._replace(trials=tuple(kept)))
    placed = {name for program in programs for name in program.trials}
    number = packing.next_number(programs)
    own = [Program(f"program{number + i}", (name,)) for i, name in enumerate(t for t in trials if t not in placed)]
    homes = {program.trials[0]: {"program": program.name} for program in own}
    entries = {name: {**entry, **homes.get(name, {})} for name, entry in known.trials.items()}
    return known._replace(trials=entries, programs=(*programs, *own))


def config_of(root: Path, known: Known, program: Program, trials: Mapping[str, Trial]) -> Config:
    """Returns the config with which `dreamer.train` trains a program. trials: those of the file of the sweep"""
    path = root / program.name / standing.FILE
    members = standing.read(path).members if path.exists() else program.trials
    config = trials[program.trials[0]].config
    left = {n: Trial(n, known.trials[n]["values"], known.trials[n]["seed"], config) for n in members if n not in trials}
    run_dir = known.trials[program.trials[0]]["run_dir"]
    return packing.config_of(program._replace(trials=members), {**trials, **left}, root, run_dir)


def leave_out(root: Path, program: Program) -> None:
    """Records in the file of a population that the members which left its program no longer train."""
    path = root / program.name / standing.FILE
    if not path.exists():
        return
    known = standing.read(path)
    left = {name: LEFT_OUT for name in known.members if name not in program.trials and name not in known.stopped}
    if left:
        standing.write(root / program.name, known._replace(stopped={**known.stopped, **left}))


def stopped_members(root: Path, program: Program) -> dict[str, str]:
    """Returns {trial: cause} of the trials of a program that have stopped as members of its population."""
    path = root / program.name / standing.FILE
    stopped = standing.read(path).stopped if path.exists() else {}
    return {name: cause for name, cause in stopped.items() if name in program.trials}
