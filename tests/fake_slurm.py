"""A SLURM for tests, as far as submitit needs it: sbatch, srun, sacct and scontrol, on this machine.

Tasks of an array run one after the other. The state lies in the folder FAKE_SLURM. If the file `preempt` is there, the
first task that has begun to train receives SIGUSR1, with all its processes, as a job does that must make room.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil

COMMANDS = ("sbatch", "srun", "sacct", "scontrol")


def install(folder: Path) -> dict[str, str]:
    """Writes the commands into `folder`, and returns the environment variables with which they are found."""
    folder.mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def state_of(folder: Path) -> dict[str, str]:
    """Returns {job: its state}."""
    path = folder / "jobs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _set(folder: Path, job: str, value: str) -> None:
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new.json").write_text(json.dumps({**state_of(folder), job: value}))
        os.replace(folder / "new.json", folder / "jobs.json")


def sbatch(folder: Path, words: list[str]) -> int:
    script = Path(words[-1]).read_text()
    tasks = re.search(r"--array=0-(\d+)", script)
    array = str(100 + len({job.partition("_")[0] for job in state_of(folder)}))
    jobs = [f"{array}_{task}" for task in range(int(tasks[1]) + 1)] if tasks else [array]
    for job in jobs:
        _set(folder, job, "PENDING")
    (folder / f"{array}.sh").write_text(script)
    with open(folder / f"{array}.log", "w") as log:
        subprocess.Popen(
            [sys.executable, __file__, "run", array, *jobs], stdout=log, stderr=log, start_new_session=True
        )
    print(f"Submitted batch job {array}")
    return 0


def run(folder: Path, words: list[str]) -> int:
    """Runs the tasks of an array, and again those that are requeued."""
    array, *jobs = words
    while jobs:
        job = jobs.pop(0)
        _set(folder, job, "RUNNING")
        own = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
        own |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "here"}
        if "_" in job:
            own |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": job.partition("_")[2]}
        script = str(folder / f"{array}.sh")
        with open(folder / f"{job}.log", "a") as log:
            task = subprocess.Popen(
                ["bash", script], env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True
            )
            while task.poll() is None:
                _preempt(folder, task.pid)
                time.sleep(0.05)
        if state_of(folder)[job] == "REQUEUED":
            jobs.append(job)
        else:
            _set(folder, job, "COMPLETED" if task.returncode == 0 else "FAILED")
    return 0


def _preempt(folder: Path, script: int) -> None:
    wanted = folder / "preempt"
    if wanted.exists() and any(Path(wanted.read_text()).rglob("metrics.jsonl")):
        wanted.rename(folder / "preempted")
        for process in psutil.Process(script).children(recursive=True):  # SLURM spares the shell of the script
            process.send_signal(signal.SIGUSR1)


def srun(folder: Path, words: list[str]) -> int:
    while words[0].startswith("--"):
        words = words[1:] if "=" in words[0] or words[0] == "--unbuffered" else words[2:]
    os.execvp(words[0], words)


def sacct(folder: Path, words: list[str]) -> int:
    print("JobID|State|NodeList")
    for job, value in state_of(folder).items():
        print(f"{job}|{value}|here")
    return 0


def scontrol(folder: Path, words: list[str]) -> int:
    assert words[0] == "requeue"
    _set(folder, words[1], "REQUEUED")
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), sys.argv[2:]))
