"""Records the memory and the disk space of a long run at full rate with a full replay.

    python benchmarks/soak.py --minutes 30 --out soak.png [--flags of dreamer train]

Trains a tiny agent on 64x64x3 images in worker processes, so that rows, updates, flushes and checkpoints occur at many
times their usual rate. The memory is that of the whole process tree. Pages shared between its processes count once, and
pages of files do not count: a process's share of a library changes by tens of MB when another program loads it.
The slope is a least-squares fit that starts after the replay is full and a fifth of the remaining time has passed.
`noise` is two standard errors of the slope, corrected for the autocorrelation of the residuals. The exit code is 1 if
memory grows by more than the noise and by more than 1 % an hour, or if the disk space exceeds the bound that the run
has announced. The measurements are written to a CSV file next to the picture.

Only saves are known to leak: TensorStore (0.1.72 to 0.1.86) leaks the values that it converts from JSON to Python, and
at every save Orbax requests the address of each array (273 bytes each) and, twice, its counters (3 kB).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

FLAGS = [
    "--env", "probes:pixel", "--env-options.steps", "50", "--replay-ratio", "4", "--workers.backend", "processes",
    "--workers.envs", "4", "--workers.processes", "2", "--replay.capacity-steps", "4000", "--replay.batch-size", "4",
    "--replay.batch-length", "8", "--agent.world-model.deter", "32", "--agent.world-model.hidden", "16",
    "--agent.world-model.stoch", "4", "--agent.world-model.classes", "4", "--agent.world-model.units", "16",
    "--agent.world-model.depth", "2", "--agent.behavior.units", "16", "--agent.behavior.imagine-length", "4",
    "--env-steps", "1000000000", "--eval.every", "20000", "--eval.episodes", "4", "--eval.video", "off",
    "--checkpoint.every", "120", "--replay.flush", "1", "--log.every", "5", "--log.no-tensorboard",
]  # fmt: skip


def main() -> int:
    """Trains, prints both slopes and draws both curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two measurements")
    parser.add_argument("--out", type=Path, required=True)
    args, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run_dir, log = Path(folder) / "run", Path(folder) / "log"
        command = [sys.executable, "-m", "dreamer", "train", *FLAGS, *more, "--run-dir", str(run_dir)]
        with open(log, "w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            try:
                rows = watch(process, run_dir, args.minutes, args.every)
            finally:
                process.terminate()
                process.wait(60)
        output = log.read_text()
        last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1]) if rows else {}
    if process.returncode != 143 or len(rows) < 20:
        print(output[-3000:])
        return 1
    announced = re.search(r"rows on the disk: at most ([\d.]+) ([MG])B", output)
    assert announced, output
    bound = float(announced[1]) * {"M": 1, "G": 1000}[announced[2]]
    return report(np.array(rows), last, bound, args.out)


def watch(process: subprocess.Popen, run_dir: Path, minutes: float, every: float) -> list[tuple[float, ...]]:
    """Measures (seconds, rows held, MB resident, MB in rows/, MB of the run, MB of the trainer) every `every` seconds.
    """
    rows, start = [], time.monotonic()
    while (now := time.monotonic() - start) < 60 * minutes and process.poll() is None:
        held = 0.0
        if (run_dir / "metrics.jsonl").exists() and (lines := (run_dir / "metrics.jsonl").read_text().splitlines()):
            held = json.loads(lines[-1]).get("replay/rows", 0.0)
        each = [pss(pid) / 1e6 for pid in tree(process.pid)]
        memory = sum(each)
        rows.append((now, held, memory, size(run_dir / "rows") / 1e6, size(run_dir) / 1e6, each[0]))
        print(f"\r{now:6.0f} s  {held:8.0f} rows  {memory:8.1f} MB  disk {rows[-1][3]:8.1f} MB ", end="", flush=True)
        time.sleep(every)
    print()
    return rows


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found, parents = [pid], {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                pass
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def pss(pid: int) -> int:
    """Bytes of a process's memory that belong to no file; of shared pages, its proportional share."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def size(folder: Path) -> int:
    """Bytes of all files below a folder; files and folders that vanish meanwhile count as 0."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, it skips folders that have vanished
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def slope(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """(units per hour, two standard errors of it), corrected for the autocorrelation of the residuals."""
    hours = (times - times.mean()) / 3600
    rate = (hours * values).sum() / (hours**2).sum()
    rest = values - values.mean() - rate * hours
    follow = np.clip((rest[1:] * rest[:-1]).sum() / max((rest**2).sum(), 1e-12), 0, 0.99)
    error = np.sqrt((rest**2).sum() / (len(rest) - 2) / (hours**2).sum() * (1 + follow) / (1 - follow))
    return float(rate), float(2 * error)


def report(rows: np.ndarray, last: dict[str, float], announced: float, out: Path) -> int:
    """Prints and draws the measurements. Returns 1 if the memory grows or the disk exceeds its bound, else 0."""
    times, held, memory, disk, whole, trainer = rows.T
    header = "seconds,rows,memory_mb,rows_on_disk_mb,run_mb,trainer_mb"
    np.savetxt(out.with_suffix(".csv"), rows, "%.3f", ",", header=header, comments="")
    full = times[np.argmax(held >= held.max())]
    kept = times >= full + 0.2 * (times[-1] - full)
    if kept.sum() < 20:
        print(f"the replay was full after {full:.0f} of {times[-1]:.0f} s: too short for a slope")
        return 1
    rate, noise = slope(times[kept], memory[kept])
    print(f"full after {full:.0f} s; {last['env_steps']:,} env steps, {last['updates']:,} updates in {times[-1]:.0f} s")
    print(f"memory: {memory[kept].mean():.1f} MB, slope {rate:+.2f} MB an hour, noise +-{noise:.2f}")
    middle = times[kept].mean()
    for name, part in (("first", kept & (times < middle)), ("second", kept & (times >= middle))):
        print("  {} half: {:+.2f} +-{:.2f}".format(name, *slope(times[part], memory[part])))
    print("  the trainer alone: {:+.2f} +-{:.2f}".format(*slope(times[kept], trainer[kept])))
    print(f"rows on the disk: at most {disk.max():.1f} of {announced:.1f} MB announced; whole run {whole[-1]:.1f} MB")
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    axes[0].plot(times / 60, memory)
    axes[0].axvline(full / 60, color="0.6", linestyle=":")
    axes[0].set(title=f"resident memory: {rate:+.1f} +- {noise:.1f} MB an hour")
    axes[1].plot(times / 60, disk)
    axes[1].axhline(announced, color="0.6", linestyle=":")
    axes[1].set(title="rows on the disk, and the announced bound")
    for axis in axes:
        axis.set(xlabel="minutes", ylabel="MB", ylim=(0, None))
    figure.savefig(out, dpi=120)
    grows = rate > noise and rate > 0.01 * memory[kept].mean()
    return int(grows or disk.max() > announced)


if __name__ == "__main__":
    sys.exit(main())
