"""Runs two programs alternately on one machine: both compile once and stay alive, then run k steps each per round.

Disturbances of the machine affect both alike. Imports no jax.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
T = TypeVar("T")


class Process:
    """A program that implements peers/protocol.py. hello: its first message | times: milliseconds of all its steps."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.name, self.hello, self.times = name, {}, []  # type: str, dict[str, Any], list[float]
        self._popen = subprocess.Popen(
            command, cwd=ROOT, env=dict(env), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def begin(self) -> None:
        """Waits until the program is ready."""
        self.hello = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._popen.stdout
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self._popen.wait()}; its output is above")
        return json.loads(line)

    def run(self, steps: int) -> list[float]:
        """Runs `steps` steps and returns the milliseconds of each."""
        assert self._popen.stdin
        print(steps, file=self._popen.stdin, flush=True)
        times = self._answer()["ms"]
        self.times += times
        return times

    def finish(self) -> dict[str, Any]:
        """Ends the program's input and returns its last message."""
        assert self._popen.stdin
        self._popen.stdin.close()
        return self._answer()

    def stop(self) -> None:
        """Kills the program."""
        self._popen.kill()
        with self._popen:  # closes its pipes and waits
            pass


def alternate(commands: Mapping[str, Sequence[str]], steps: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Runs the programs alternately; returns {name: facts}.

    The facts hold a program's first and last message, the `summary` of all steps, and the median of each round. The
    order is reversed in every second round, so that no program is always second.
    """
    # Both share one accelerator: each reserves about half of its memory from the start.
    env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".45", **os.environ}
    alive: list[Process] = []
    try:
        for name, command in commands.items():
            alive.append(Process(name, command, env))
            alive[-1].begin()
        rows: dict[str, dict[str, Any]] = {p.name: {**p.hello, "ms_rounds": []} for p in alive}
        for number in range(rounds):
            for process in alive[:: -1 if number % 2 else 1]:
                rows[process.name]["ms_rounds"].append(round(statistics.median(process.run(steps)), 3))
        for process in alive:
            rows[process.name] |= summary(process.times) | process.finish()
    finally:
        for process in alive:
            process.stop()
    return rows


def summary(times: Sequence[float]) -> dict[str, Any]:
    """Median, minimum and spread (third quartile - first) of milliseconds, and all of them."""
    quarters = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    row = {"median": statistics.median(times), "min": min(times), "spread": quarters[2] - quarters[0]}
    return {f"ms_{k}": round(v, 3) for k, v in row.items()} | {"ms": [round(t, 3) for t in times]}


def ratios(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> dict[str, Any]:
    """The peer's milliseconds divided by ours: above 1, ours is faster. rounds: lowest and highest ratio of a round."""
    each = [theirs / mine for theirs, mine in zip(peer["ms_rounds"], ours["ms_rounds"], strict=True)]
    return {
        "median": round(peer["ms_median"] / ours["ms_median"], 3), "min": round(peer["ms_min"] / ours["ms_min"], 3),
        "rounds": [round(min(each), 3), round(max(each), 3)],
    }  # fmt: skip


def peer_command(name: str, python: str, checkout: str, words: Sequence[str]) -> list[str]:
    """The command of the adapter benchmarks/peers/NAME.py; a name that ends in .py is the path of another adapter."""
    adapter = Path(name) if name.endswith(".py") else Path(__file__).parent / "peers" / f"{name}.py"
    if not adapter.exists():
        raise SystemExit(f"no adapter for {name!r}: {adapter} does not exist")
    return [python or sys.executable, str(adapter), "--checkout", str(Path(checkout).resolve()), *words]


def checkouts_in_turns(other: Path, rounds: int, measure: Callable[[Path], T]) -> dict[str, list[T]]:
    """Runs `measure` alternately for this checkout and another: {"ours", "other": its results, one per round}."""
    seen: dict[str, list[T]] = {"ours": [], "other": []}
    sides = [("ours", ROOT), ("other", other.resolve())]
    for number in range(rounds):
        for side, checkout in sides[:: -1 if number % 2 else 1]:
            seen[side].append(measure(checkout))
    return seen
