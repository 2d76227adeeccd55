"""Updates per second of one run that 1, 2 or 4 processes train together on this machine.

    python -m benchmarks.hosts --processes 1 2 4

Each row trains `dreamer train quickstart` anew, with the same batch in all and a share of it in each process, and reads
the rate from metrics.jsonl, without the first updates. "Sent" are the bytes that each process sends in an update,
counted from the compiled program by benchmarks/scaling.py. "Agreed" are the bytes of the exchange in each turn, of all
processes together. Prints rows of a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import scaling

ROOT = Path(__file__).parents[1]
FLAGS = "--eval.episodes 0 --eval.every 0 --log.every 1 --log.tensorboard false --collect turns".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--env-steps", type=int, default=3000)
    parser.add_argument("--ratio", type=float, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    print("| processes | sent per update, MB | agreed per turn, B | updates/s, each repeat | env steps/s |")
    print("|---|---|---|---|---|")
    for count in args.processes:
        found = [rates(count, args.env_steps, args.ratio) for _ in range(args.repeats)]
        updates = ", ".join(f"{one[0]:.2f}" for one in found)
        steps = statistics.median(one[1] for one in found)
        print(f"| {count} | {sent(count) / 1e6:.2f} | {agreed(count)} | {updates} | {steps:.1f} |", flush=True)


def sent(count: int) -> float:
    """Returns the bytes that each of `count` processes with one device sends in an update."""
    found = scaling.child(["--size", "quickstart", "--batch", "8", "32"], count, 1)["collectives"]
    return sum(scaling.wire(one, count) * one.times for one in (scaling.Collective(**fields) for fields in found))


def agreed(count: int) -> int:
    """Returns about how many bytes `count` processes exchange in a turn: their values, and all values to each."""
    value = {"steps": 10**6, "held": 10**6, "ready": True, "log": False, "save": False, "asked": []}
    line = len(json.dumps({"round": 10**5, "value": value}))
    return (count - 1) * (line + count * line) if count > 1 else 0


def rates(count: int, env_steps: int, ratio: float) -> tuple[float, float]:
    """Trains a run with `count` processes. Returns its updates and environment steps per second while it trains."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = [sys.executable, "-m", "dreamer", "train", "quickstart", "--run-dir", str(run_dir), *FLAGS]
        words += ["--env-steps", str(env_steps), "--replay-ratio", str(ratio)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        started = []
        for index in range(count):
            own = {"coordinator": address, "processes": count, "process-id": index} if count > 1 else {}
            more = [word for name, value in own.items() for word in (f"--devices.{name}", str(value))]
            started.append(subprocess.Popen([*words, *more], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL))
        if any([process.wait() for process in started]):
            raise SystemExit(f"a run of {count} processes failed")
        found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in found if line["updates"] >= 10]
    first, last = trained[0], trained[-1]
    seconds = last["time"] - first["time"]
    return (last["updates"] - first["updates"]) / seconds, (last["env_steps"] - first["env_steps"]) / seconds


if __name__ == "__main__":
    main()
