"""Seconds from `dreamer train` to the first row and to the first update, alternating between two checkouts.

    python -m benchmarks.start_times --compare ../other-checkout --rounds 3

Reads the lines that a run prints with `--log.every 0`: the first one with rows, and the first one with an update. The
time to the first update includes compiling it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rounds import checkouts_in_turns

COUNTED = re.compile(r"env_steps (\d+)/.*?\| updates (\d+) ")
WORDS = [
    "experiments/quickstart.yaml", "--env-steps", "600", "--eval.episodes", "0", "--eval.video", "off",
    "--log.tensorboard", "false", "--log.every", "0",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seen = checkouts_in_turns(args.compare, args.rounds, start)
    for i, what in enumerate(("first row", "first update")):
        texts = []
        for side, times in seen.items():
            values = [one[i] for one in times]
            texts.append(f"{side} {statistics.median(values):6.1f} s ({min(values):.1f} to {max(values):.1f})")
        print(f"{what:14} {'  '.join(texts)}")


def start(checkout: Path) -> tuple[float, float]:
    """Seconds to the first row and to the first update of one run of a checkout, which is then stopped."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run = subprocess.Popen(
            [sys.executable, "-m", "dreamer", "train", *WORDS, "--run-dir", str(Path(folder) / "run")],
            cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert run.stdout is not None
        row = update = 0.0
        for line in run.stdout:
            now = time.monotonic() - began
            if not (counted := COUNTED.search(line)):
                continue
            row = row or (now if int(counted[1]) else 0.0)
            if int(counted[2]):
                update = now
                break
        run.kill()
        run.wait()
    if not row or not update:
        raise RuntimeError(f"{checkout}: the run ended before its first update")
    return row, update


if __name__ == "__main__":
    main()
