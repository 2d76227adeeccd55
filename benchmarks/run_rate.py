"""Environment steps per second of whole runs, alternating between this checkout and another one.

    python -m benchmarks.run_rate --compare ../other-checkout --rounds 3

Runs a shortened quickstart, and also the quickstart and an image task without training, where nothing hides the cost of
a row. The rate is measured between the first and the last line of metrics with steps, so that starting and compiling
are left out. Ratio: this checkout divided by the other.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rounds import checkouts_in_turns

RUNS = {
    "quickstart": ["experiments/quickstart.yaml", "--env-steps", "2000"],
    "quickstart, rows alone": ["experiments/quickstart.yaml", "--env-steps", "40000", "--replay-ratio", "0"],
    "pictures, rows alone": ["experiments/reach.yaml", "--env-steps", "20000", "--replay-ratio", "0"],
}
SHARED = [
    "--log.every", "1", "--log.tensorboard", "false", "--eval.episodes", "0", "--eval.every", "0",
    "--checkpoint.every", "20",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; env steps per second, {args.rounds} rounds")
    for name, words in RUNS.items():
        rates = checkouts_in_turns(args.compare, args.rounds, functools.partial(rate, words=words))
        each = [ours / other for ours, other in zip(rates["ours"], rates["other"], strict=True)]
        medians = {side: statistics.median(values) for side, values in rates.items()}
        ours, other, ratio = medians["ours"], medians["other"], statistics.median(each)
        spread = f"({min(each):.3f} to {max(each):.3f})"
        print(f"{name:24} ours {ours:8.1f}  other {other:8.1f}  ratio {ratio:.3f} {spread}", flush=True)


def rate(checkout: Path, words: list[str]) -> float:
    """Environment steps per second of one run of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        subprocess.run(
            [sys.executable, "-m", "dreamer", "train", *words, *SHARED, "--run-dir", str(run_dir)],
            cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    training = lines[-1]["updates"] > 0
    counting = [line for line in lines if line["updates"] > 0 or (not training and line["env_steps"] > 1000)]
    first, last = counting[0], counting[-1]
    return (last["env_steps"] - first["env_steps"]) / (last["time"] - first["time"])


if __name__ == "__main__":
    main()
