"""Submits the programs of a sweep to SLURM as array jobs, by submitit. Imports no jax.

A job that SLURM is about to end, for its time or for another job, saves its runs and goes back into the queue.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from dreamer.apps.sweep.packing import Program
from dreamer.errors import UserError
from dreamer.fields import at_least
from dreamer.runtime.files.atomic import write_whole

JOBS = "slurm.json"  # {program: job id} in the directory of the sweep
FOLDER = "slurm"  # what submitit writes, and the output of the jobs
POLL = 0.2  # seconds
PATIENCE = 110.0  # seconds that a job has to save after SLURM's signal
SAVED = {128 + signal.SIGUSR1, 128 + signal.SIGTERM}
LIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "RESIZING", "SUSPENDED", "READY"}


@dataclasses.dataclass(frozen=True)
class Config:
    """The resources of each job on SLURM."""

    partition: str = ""
    """Partition; empty: the cluster's default."""
    account: str = ""
    """Account that pays; empty: the user's default."""
    qos: str = ""
    """Quality of service; empty: the default."""
    hours: Annotated[float, at_least(0.05)] = 24.0
    """Time limit of a job; a job that reaches it continues in a new job."""
    gpus: Annotated[int, at_least(0)] = 1
    """GPUs of a job, on each of its nodes."""
    cpus: Annotated[int, at_least(1)] = 8
    """CPU cores of a job."""
    memory_gb: Annotated[float, at_least(1)] = 32.0
    """Memory of a job."""
    nodes: Annotated[int, at_least(1)] = 1
    """Nodes of a job. With several, one process on each trains a share of the run, see `devices.coordinator`."""
    parallel: Annotated[int, at_least(1)] = 256
    """Jobs that run at the same time."""
    requeues: Annotated[int, at_least(0)] = 100
    """Times that a job may reach its time limit and continue."""
    setup: tuple[str, ...] = ()
    """Lines of shell to run before each job, such as module load cuda."""


class Task:
    """Owns the process of one program inside a job. submitit pickles it, calls it, and on a signal `checkpoint`."""

    def __init__(self, words: Sequence[str]):
        """words: those after `dreamer`."""
        self.words = tuple(words)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Runs the program and returns its exit code. Raises RuntimeError if it failed, so that the job fails."""
        self._process = subprocess.Popen([sys.executable, "-m", "dreamer", *self.words], start_new_session=True)
        code = None
        while code is None:
            time.sleep(POLL)
            code = ended(self._process.pid)
        other = os.environ.get("SLURM_PROCID", "0") != "0"  # of a job on several nodes, whose first task requeues it
        if code and not (other and code in SAVED):
            raise RuntimeError(f"dreamer {' '.join(self.words)} ended with exit code {code}")
        return code

    def checkpoint(self) -> Any:
        """Makes the program save and end, and returns the task to queue again. Raises RuntimeError if it did not save.

        submitit calls this method in the signal handler.
        """
        if self._process is not None:
            pid, deadline = self._process.pid, time.monotonic() + PATIENCE
            if (code := ended(pid)) is None:
                os.kill(pid, signal.SIGUSR1)
            while code is None and time.monotonic() < deadline:
                time.sleep(POLL)
                code = ended(pid)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                raise RuntimeError(f"the program did not save within {PATIENCE:g} seconds")
            if code not in SAVED:
                raise RuntimeError(f"the program ended with exit code {code} instead of saving")
        return _submitit().helpers.DelayedSubmission(Task(self.words))


def ended(pid: int) -> int | None:
    """Returns the exit code of a child process, minus the number of the signal that killed it; None: it runs.

    Takes no lock, unlike the methods of Popen, so that a signal handler may call it at any moment.
    """
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def submit(
    root: Path, programs: Sequence[Program], words: Sequence[str], config: Config, report: Callable[[str], None]
) -> int:
    """Submits the programs that are not queued already as one array job. Returns how many were submitted.

    words: those after `dreamer`, to which the name of a program is added. The job's environment is that of this
    process. Raises UserError if there is no SLURM here, or if it refuses the job.
    """
    executor, known = _executor(root, config), read(root)
    open_programs = [program for program in programs if not queued(root, known.get(program.name))]
    if not open_programs:
        report("all programs are queued or run already; --status shows their progress")
        return 0
    try:
        with executor.batch():
            jobs = [executor.submit(Task([*words, program.name])) for program in open_programs]
        ids = {program.name: job.job_id for program, job in zip(open_programs, jobs, strict=True)}
    except Exception as error:  # of submitit, which has no class of its own for all of them
        raise UserError(f"SLURM refuses the sweep: {' '.join(str(error).split())}") from error
    write_whole(root / JOBS, lambda path: path.write_text(json.dumps({**known, **ids}, indent=1) + "\n"))
    array = next(iter(ids.values())).partition("_")[0]
    report(f"submitted {len(ids)} jobs, array {array}; their output is in {root / FOLDER}")
    return len(ids)


def _executor(root: Path, config: Config) -> Any:
    if shutil.which("sbatch") is None:
        raise UserError("this machine has no SLURM: the command sbatch is missing; use --on local, or a login node")
    submitit = _submitit()
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # the signal that a run answers by saving
    executor = submitit.SlurmExecutor(folder=root / FOLDER / "%j", max_num_timeout=config.requeues)
    named = {"partition": config.partition, "account": config.account, "qos": config.qos}
    executor.update_parameters(
        **{name: value for name, value in named.items() if value}, time=max(1, round(60 * config.hours)),
        cpus_per_task=config.cpus, mem=f"{config.memory_gb:g}GB", array_parallelism=config.parallel, job_name=root.name,
        signal_delay_s=120, setup=list(config.setup), **({"gpus_per_node": config.gpus} if config.gpus else {}),
        **({"nodes": config.nodes, "ntasks_per_node": 1} if config.nodes > 1 else {}),
    )  # fmt: skip
    return executor


def read(root: Path) -> dict[str, str]:
    """Returns {program: job id} of the jobs that were submitted. Raises UserError if the file is damaged."""
    path = root / JOBS
    if not path.exists():
        return {}
    try:
        values: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(job) for name, job in values.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def queued(root: Path, job_id: str | None) -> bool:
    """Returns whether a job waits or runs, as SLURM says."""
    if job_id is None:
        return False
    job = _submitit().SlurmJob(folder=root / FOLDER / "%j", job_id=job_id)
    return str(job.watcher.get_state(job_id, mode="force")).upper() in LIVE


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        advice = 'pip install "dreamer-jax[slurm]", in the checkout pip install ".[slurm]"'
        raise UserError(f"--on slurm needs submitit: {advice}") from None
    return submitit
