"""A long run at full rate with a full replay: resident memory and the run's bytes on the disk over time.

    python benchmarks/soak.py --minutes 30 --out soak.png [--flags of dreamer train]

Trains a tiny agent on 64x64x3 pictures in worker processes, so that rows, updates, batches, flushes, checkpoints pass
at many times their usual rate. The memory is that of the whole process tree, pages shared between its processes counted
once, without the pages of files: of libraries each process counts its share, which changes by tens of MB when any
other program on the machine loads or leaves them. The slope is that of least squares, from a fifth of the time after
the replay was full on; `noise` is what the residuals let it be by chance (two standard errors, with their
autocorrelation). Exit code 1 when memory grows by more than that and by more than 1 % an hour, or when the disk passes
the bound that the run has announced. What was measured is kept beside the picture, as CSV.

Saves are the one thing that leaves something behind: TensorStore (0.1.72 to 0.1.86) leaks what it turns from JSON into
Python, and at every save Orbax asks it for the address of each array, 273 bytes each time, and for its counters, 3 kB,
twice.
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
    """Runs it, prints a table of both slopes, draws both curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
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
        said = log.read_text()
        last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1]) if rows else {}
    if process.returncode != 143 or len(rows) < 20:
        print(said[-3000:])
        return 1
    announced = re.search(r"rows on the disk: at most ([\d.]+) ([MG])B", said)
    assert announced, said
    bound = float(announced[1]) * {"M": 1, "G": 1000}[announced[2]]
    return tell(np.array(rows), last, bound, args.out)


def watch(process: subprocess.Popen, run_dir: Path, minutes: float, every: float) -> list[tuple[float, ...]]:
    """(seconds, rows held, MB resident, MB in rows/, MB of the run, MB of the trainer) every so many seconds."""
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
    """A process and all that descend from it."""
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
    """Bytes of memory of a process that belong to no file, its part of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def size(folder: Path) -> int:
    """Bytes of all files below a folder; files and folders that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike rglob it passes over folders that are gone
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def slope(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """(units an hour, two standard errors of it); residuals that follow each other count as fewer."""
    hours = (times - times.mean()) / 3600
    rate = (hours * values).sum() / (hours**2).sum()
    rest = values - values.mean() - rate * hours
    follow = np.clip((rest[1:] * rest[:-1]).sum() / max((rest**2).sum(), 1e-12), 0, 0.99)
    error = np.sqrt((rest**2).sum() / (len(rest) - 2) / (hours**2).sum() * (1 + follow) / (1 - follow))
    return float(rate), float(2 * error)


def tell(rows: np.ndarray, last: dict[str, float], announced: float, out: Path) -> int:
    """Prints and draws; 1 when something grows."""
    times, held, memory, disk, whole, trainer = rows.T
    header = "seconds,rows,memory_mb,rows_on_disk_mb,run_mb,trainer_mb"
    np.savetxt(out.with_suffix(".csv"), rows, "%.3f", ",", header=header, comments="")
    full = times[np.argmax(held >= held.max())]
    kept = times >= full + 0.2 * (times[-1] - full)
    if kept.sum() < 20:
        print(f"the replay was full after {full:.0f} of {times[-1]:.0f} s: too short to tell anything")
        return 1
    rate, noise = slope(times[kept], memory[kept])
    print(f"full after {full:.0f} s; {last['env_steps']:,} env steps, {last['updates']:,} updates in {times[-1]:.0f} s")
    print(f"memory: {memory[kept].mean():.1f} MB, slope {rate:+.2f} MB an hour, noise +-{noise:.2f}")
    middle = times[kept].mean()
    for name, part in (("first", kept & (times < middle)), ("second", kept & (times >= middle))):
        print("  {} half: {:+.2f} +-{:.2f}".format(name, *slope(times[part], memory[part])))
    print("  of it the trainer: {:+.2f} +-{:.2f}".format(*slope(times[kept], trainer[kept])))
    print(f"rows on the disk: at most {disk.max():.1f} of {announced:.1f} MB announced; whole run {whole[-1]:.1f} MB")
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    axes[0].plot(times / 60, memory)
    axes[0].axvline(full / 60, color="0.6", linestyle=":")
    axes[0].set(title=f"resident memory: {rate:+.1f} +- {noise:.1f} MB an hour")
    axes[1].plot(times / 60, disk)
    axes[1].axhline(announced, color="0.6", linestyle=":")
    axes[1].set(title="rows on the disk, and what was announced")
    for axis in axes:
        axis.set(xlabel="minutes", ylabel="MB", ylim=(0, None))
    figure.savefig(out, dpi=120)
    grows = rate > noise and rate > 0.01 * memory[kept].mean()
    return int(grows or disk.max() > announced)


if __name__ == "__main__":
    sys.exit(main())
