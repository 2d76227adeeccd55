"""Computes what the trials of a sweep need, in a process of its own, so that the launcher holds no device.

    python -m dreamer.apps.sweep.planning IN OUT    reads configs from IN, writes plans to OUT, both JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dreamer.config import Config, stack, to_yaml
from dreamer.errors import UserError, one_line
from dreamer.layers import layer_of
from dreamer.runtime.population.plan import Machine, Plan, machine, plan

PATIENCE = 600.0  # seconds without a new plan: an environment may hang while it is made


class Needs(NamedTuple):
    """What the trials need.

    plans: one for each config; a text says why there is no plan | machine: what this machine has
    """

    plans: tuple[Plan | str, ...]
    machine: Machine


def needs_of(configs: Sequence[Config], note: Callable[[str], None]) -> Needs:
    """Returns what runs with these configs need. Starts a process that plans one config after the other.

    note: called with a line of progress. Raises UserError if the process cannot plan anything.
    """
    found: list[Plan | str] = []
    there: Machine | None = None
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "configs.json", Path(folder) / "plans.jsonl"
        while there is None or len(found) < len(configs):
            given.write_text(json.dumps([to_yaml(config) for config in configs[len(found) :]]), encoding="utf-8")
            out.unlink(missing_ok=True)
            failure = _run(given, out, note, len(found), len(configs))
            lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
            read = [json.loads(line) for line in lines]
            if read and there is None:
                there = Machine(*read[0])
            found += [one if isinstance(one, str) else Plan(*one) for one in read[1:]]
            if failure and there is None:
                raise UserError(f"the sweep cannot be planned: {failure}")
            if failure:
                found.append(failure)
    assert there is not None
    return Needs(tuple(found), there)


def _run(given: Path, out: Path, note: Callable[[str], None], done: int, all_of_them: int) -> str:
    """Plans the configs in a process. Returns "" or, if the process died or hung, the reason."""
    command = [sys.executable, "-m", "dreamer.apps.sweep.planning", str(given), str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        planned, since = 0, time.monotonic()
        while True:
            try:
                _, errors = process.communicate(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                lines = max(0, len(out.read_text(encoding="utf-8").splitlines()) - 1) if out.exists() else 0
                if lines > planned:
                    planned, since = lines, time.monotonic()
                    note(f"planning: {done + lines} of {all_of_them} settings")
                if time.monotonic() - since > PATIENCE:
                    process.kill()
                    return f"nothing was planned within {PATIENCE:g} seconds; does its environment hang?"
    if process.returncode == 0:
        return ""
    last = (errors or "").strip().splitlines()[-1:]
    return f"the process that planned it ended with exit code {process.returncode}: {' '.join(last)}"


def main(given: str, out: str) -> None:
    """Plans the configs in the file `given`, and appends one line for each to the file `out`."""
    with open(out, "w", encoding="utf-8") as file:
        print(json.dumps(machine()), file=file, flush=True)
        measured: dict[str, int] = {}
        for text in json.loads(Path(given).read_text(encoding="utf-8")):
            found = _planned(stack([layer_of(text, "a trial")]), measured)
            print(json.dumps(found), file=file, flush=True)
            if isinstance(found, Plan):
                measured[found.program] = found.temporary


def _planned(config: Config, measured: dict[str, int]) -> Plan | str:
    try:
        return plan(config, measured)
    except UserError as error:
        return str(error)
    except Exception as error:  # of an environment
        return one_line(error)


if __name__ == "__main__":
    main(*sys.argv[1:3])
