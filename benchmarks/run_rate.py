"""Environment steps per second of whole runs, alternating between this checkout and another one, or between settings.

    python -m benchmarks.run_rate --compare ../other-checkout --rounds 3
    python -m benchmarks.run_rate --sides "--collect turns" "--collect thread" --run quickstart

With --compare it runs a shortened quickstart, and also the quickstart and an image task without training, where nothing
hides the cost of a row. The rate is measured between two lines of metrics with steps, so that starting and compiling
are left out. Ratio: this checkout divided by the other. With --sides it measures this checkout with the one and the
other words, and also the processor time of the run's process; ratio: the first side divided by the second.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.rounds import ROOT, checkouts_in_turns

RUNS = {
    "quickstart": ["experiments/quickstart.yaml", "--env-steps", "2000"],
    "quickstart, rows alone": ["experiments/quickstart.yaml", "--env-steps", "40000", "--replay-ratio", "0"],
    "pictures, rows alone": ["experiments/reach.yaml", "--env-steps", "20000", "--replay-ratio", "0"],
}
TRAINED = {
    "quickstart": ["experiments/quickstart.yaml", "--env-steps", "1200"],
    "quickstart, 8 updates a turn": [
        "experiments/quickstart.yaml", "--workers.envs", "16", "--replay-ratio", "128", "--env-steps", "1008",
    ],
    "size1m on vectors, 4 updates a turn": [
        "experiments/size1m.yaml", "--env", "dmc:cartpole-swingup", "--replay-ratio", "256", "--env-steps", "2288",
        "--workers.envs", "16", "--workers.backend", "inline",
    ],
}  # fmt: skip
SETTLED = 10  # updates after which all programs are compiled
SHARED = [
    "--log.every", "1", "--log.tensorboard", "false", "--eval.episodes", "0", "--eval.every", "0",
    "--checkpoint.every", "20",
]  # fmt: skip


class Rate(NamedTuple):
    """env_steps, updates: per second | processor: seconds of all processes of the run per update"""

    env_steps: float
    updates: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, help="the other checkout")
    parser.add_argument("--sides", nargs=2, metavar="WORDS", help="two settings of this checkout")
    parser.add_argument("--run", choices=TRAINED, nargs="+", default=["quickstart"], help="what to run with --sides")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if (args.compare is None) == (args.sides is None):
        parser.error("give either --compare or --sides")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {args.rounds} rounds")
    if args.sides:
        for name in args.run:
            compare_sides(name, args.sides, args.rounds)
        return
    for name, words in RUNS.items():
        rates = checkouts_in_turns(args.compare, args.rounds, functools.partial(rate, words=words))
        each = [ours / other for ours, other in zip(rates["ours"], rates["other"], strict=True)]
        medians = {side: statistics.median(values) for side, values in rates.items()}
        ours, other, ratio = medians["ours"], medians["other"], statistics.median(each)
        spread = f"({min(each):.3f} to {max(each):.3f})"
        print(f"{name:24} env steps/s: ours {ours:8.1f}  other {other:8.1f}  ratio {ratio:.3f} {spread}", flush=True)


def compare_sides(name: str, sides: list[str], rounds: int) -> None:
    """Runs both settings alternately and prints their rates and ratios."""
    seen: dict[int, list[Rate]] = {0: [], 1: []}
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            seen[side].append(trained(ROOT, [*TRAINED[name], *shlex.split(sides[side])]))
            print(f"{name}: {sides[side]:24} {seen[side][-1]}", flush=True)
    for field in Rate._fields:
        first, second = ([getattr(one, field) for one in seen[side]] for side in (0, 1))
        each = [a / b for a, b in zip(first, second, strict=True)]
        print(
            f"{name}: {field:10} {statistics.median(first):9.4g} and {statistics.median(second):9.4g}, "
            f"ratio {statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})", flush=True,
        )  # fmt: skip


def trained(checkout: Path, words: list[str]) -> Rate:
    """The rates of a run that trains, from the time when all of its programs are compiled."""
    seen: list[tuple[dict[str, float], float]] = []
    with tempfile.TemporaryDirectory() as folder, started(checkout, words, Path(folder) / "run") as process:
        while process.poll() is None:
            time.sleep(0.1)
            lines = lines_of(Path(folder) / "run")
            if lines and (not seen or lines[-1] != seen[-1][0]):
                with contextlib.suppress(psutil.NoSuchProcess):
                    seen.append((lines[-1], processor_seconds(process.pid)))
    if process.returncode:
        raise SystemExit(f"a run ended with code {process.returncode}: {shlex.join(words)}")
    counting = [one for one in seen if one[0]["updates"] >= SETTLED]
    (first, used), (last, used_last) = counting[0], counting[-1]
    seconds, updates = last["time"] - first["time"], last["updates"] - first["updates"]
    return Rate((last["env_steps"] - first["env_steps"]) / seconds, updates / seconds, (used_last - used) / updates)


def processor_seconds(pid: int) -> float:
    """The processor time of a process and of its running children."""
    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def started(checkout: Path, words: list[str], run_dir: Path) -> subprocess.Popen:
    """Starts a run of a checkout."""
    return subprocess.Popen(
        [sys.executable, "-m", "dreamer", "train", *words, *SHARED, "--run-dir", str(run_dir)],
        cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def lines_of(run_dir: Path) -> list[dict[str, float]]:
    """The whole lines of metrics that a run has written so far."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def rate(checkout: Path, words: list[str]) -> float:
    """Environment steps per second of one run of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        with started(checkout, words, run_dir) as process:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, words)
        lines = lines_of(run_dir)
    training = lines[-1]["updates"] > 0
    counting = [line for line in lines if line["updates"] > 0 or (not training and line["env_steps"] > 1000)]
    first, last = counting[0], counting[-1]
    return (last["env_steps"] - first["env_steps"]) / (last["time"] - first["time"])


if __name__ == "__main__":
    main()
