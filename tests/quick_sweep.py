"""The command `dreamer` with programs that train in no time, see `sweep_child`: quick_sweep.py sweep FILE .."""

from __future__ import annotations

import sys

from dreamer.apps import cli
from dreamer.apps.sweep import local, planning
from dreamer.runtime.population.plan import Machine, Plan


def needs_of(configs, note) -> planning.Needs:
    """Plans nothing: every trial is a program of its own."""
    return planning.Needs(("quick",) * len(configs), Machine("cpu", 1, 0, 0))


def one_program(configs, note) -> planning.Needs:
    """Plans settings that differ in numbers of one program."""
    plans = tuple(Plan("all", str(number), True, 0, 0, 0, 0) for number in range(len(configs)))
    return planning.Needs(plans, Machine("cpu", 1, 0, 0))


if __name__ == "__main__":
    local.CHILD = "sweep_child"
    planning.needs_of = needs_of
    sys.exit(cli.main())
