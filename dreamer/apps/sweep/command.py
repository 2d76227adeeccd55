"""`dreamer sweep`: expands a sweep into trials, packs them into programs, and runs them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dreamer import shipped
from dreamer.apps.sweep import apart, local, packing, planning, ray_cluster, ray_tune, slurm, spec, state, table
from dreamer.apps.sweep.options import SweepFlags
from dreamer.apps.sweep.plans import (
    Plan,
    all_trials,
    check_place,
    check_scheduler,
    default_jobs,
    described,
    env_steps_of,
    plan,
    say,
    to_run,
)
from dreamer.apps.sweep.single import run_one, with_cache
from dreamer.apps.sweep.spec import Sweep
from dreamer.apps.sweep.trials import trials_of
from dreamer.errors import UserError
from dreamer.runtime.files.lock import RunLock
from dreamer.runtime.run.stopping import Stopping

HELP = """Train all trials of a sweep. If the command is given again, it continues the sweep.
- SWEEP is a file in .yaml, or the name of a sweep that comes with dreamer.
- Its axes are config keys with the values to try; see docs/sweeps.md.
- Exit code: 0 all trials are done or were stopped early, 1 one has failed, 143 or 130 stopped by a signal."""
PROGRESS = 30.0  # seconds between two lines of progress


def sweep(path: str, flags: SweepFlags) -> int:
    """Runs `dreamer sweep`. path: the sweep's file or, with --status, its directory. Returns the exit code.

    0: all trials are done | 1: a trial has failed | 143, 130: stopped by a signal
    Raises UserError for everything that the user can fix, before any trial starts.
    """
    if flags.status:
        return show_status(path, flags)
    _check_nodes(flags)
    given = spec.read(path)
    root = Path(os.path.abspath(os.path.expanduser(flags.run_dir or str(Path("sweeps") / Path(path).stem))))
    check_place(given, flags)
    trials = all_trials(root, given, flags)
    if flags.print:
        print(described(plan(root, given, trials, flags)))
        return 0
    if flags.index:
        return run_one(root, given, trials, flags)
    if flags.on == "local":
        local.check_linux()
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(Stopping(say))
        stack.enter_context(RunLock(root, say, stopping.fail))
        ready = plan(root, given, trials, flags)
        if flags.on == "ray":
            ray_cluster.libraries()
            check_scheduler(ready, given, flags)
        known = apart.arranged(root, ready.known, trials, trials if flags.retry else ())
        ready = ready._replace(known=known)
        state.write(root, known)
        stopping.begun()
        print("\n".join([*ready.notes, packing.described(ready.known.programs), f"sweep: {root}"]), flush=True)
        if flags.on == "slurm":
            todo = [one for one in to_run(ready, flags) if not local.held(root, ready.known, one)]
            slurm.submit(root, todo, words_of(path, root, flags), flags.slurm, say)
            return 0
        if flags.on == "ray":
            return run_on_ray(ready, given, path, flags, stopping)
        return run_all(ready, path, flags, stopping)


def _check_nodes(flags: SweepFlags) -> None:
    """Raises UserError if programs should run on several nodes, but not as jobs or as populations."""
    if flags.slurm.nodes > 1 and flags.on != "slurm" and not flags.index:
        raise UserError("slurm.nodes is for jobs: give --on slurm too")
    if flags.slurm.nodes > 1 and flags.pack == "on":
        raise UserError("a population trains in one process: leave out --pack on, or slurm.nodes")


def words_of(path: str, root: Path, flags: SweepFlags) -> list[str]:
    """Returns the words after `dreamer` that run one program, without its name."""
    nodes = str(flags.slurm.nodes) if flags.slurm.nodes > 1 else ""
    own = {"--compilation-cache": flags.compilation_cache, "--slurm.nodes": nodes}
    more = [word for flag, value in own.items() if value for word in (flag, value)]
    file = path if path in shipped.sweeps() else os.path.abspath(path)
    return ["sweep", file, "--run-dir", str(root), *more, *(["--trust"] if flags.trust else []), "--index"]


def run_all(ready: Plan, path: str, flags: SweepFlags, stopping: Stopping) -> int:
    """Runs all programs on this machine, and returns the exit code of the sweep."""
    root, known, lengths = ready.root, ready.known, env_steps_of(ready)
    todo = to_run(ready, flags)
    there = ready.needs.machine if ready.needs else planning.needs_of([], say).machine
    jobs = min(flags.jobs or default_jobs(there), max(1, len(todo)))
    cores = sorted(os.sched_getaffinity(0))
    where = local.places(jobs, cores, there.devices if there.platform != "cpu" else 0)
    environment = with_cache(dict(os.environ), root, flags.compilation_cache)
    with local.Launcher(root, known, lengths, words_of(path, root, flags), environment, where, say) as launcher:
        launcher.run(todo, stopping.check, progress(lambda: table.lines_of(root, known, lengths)))
    return show_end(root, [line for line in table.lines_of(root, known, lengths) if line.trial not in known.gone])


def run_on_ray(ready: Plan, given: Sweep, path: str, flags: SweepFlags, stopping: Stopping) -> int:
    """Runs all programs on a Ray cluster, and returns the exit code of the sweep."""
    root, base = ready.root, spec.base_config(given, flags.trust)
    request = ray_tune.Request(
        root, given, base, ready.trials, ready.known, to_run(ready, flags),
        lambda values: trials_of(given, base, flags.trust, [values]), words_of(path, root, flags),
        with_cache(dict(os.environ), root, flags.compilation_cache), flags.jobs, flags.ray,
    )  # fmt: skip
    experiment = ray_tune.Experiment(request, say)

    def lines() -> list[table.Line]:
        known = experiment.known
        return [line for line in table.lines_of(root, known, experiment.lengths) if line.trial not in known.gone]

    settings = {repr(trial.values) for trial in ready.trials.values()}
    if request.todo or (given.search == "tpe" and len(settings) < given.samples):
        with ray_cluster.connected(root, flags.ray, flags.jobs) as ray:
            experiment.run(ray, stopping.check, progress(lines))
    return show_end(root, lines())


def progress(lines: Callable[[], list[table.Line]]) -> Callable[[], None]:
    """Returns a function to call often, which shows the progress of the trials every PROGRESS seconds."""
    shown = [time.monotonic()]

    def tick() -> None:
        if time.monotonic() - shown[0] >= PROGRESS:
            shown[0] = time.monotonic()
            say(table.summary(lines()))

    return tick


def show_end(root: Path, lines: Sequence[table.Line]) -> int:
    """Prints the status of all trials, and returns the exit code of the sweep."""
    print(table.written(lines), flush=True)
    print(f"  dreamer report {root}  # curves, the best setting, what each axis does", flush=True)
    return int(any(line.standing == "failed" for line in lines))


def show_status(path: str, flags: SweepFlags) -> int:
    """Prints the status of all trials of a sweep. Returns 1 if one has failed, else 0. Raises UserError."""
    at = Path(os.path.expanduser(flags.run_dir or path))
    root = at if at.is_dir() else Path("sweeps") / at.stem
    known = state.read(root)
    if known is None:
        raise UserError(f"no sweep at {root}: it holds no {state.FILE}; give the directory of a sweep")
    lengths = {name: _length(known.run_dir(root, name)) for name in known.trials}
    first = max([*lengths.values(), 1])
    lines = table.lines_of(root, known, {name: length or first for name, length in lengths.items()})
    print(table.written(lines))
    return int(any(line.standing == "failed" for line in lines))


def _length(run_dir: Path) -> int:
    from dreamer.runtime.files.run_dir import CONFIG
    from dreamer.runtime.run.run_config import load_plain

    return load_plain(run_dir, unknown=lambda note: None).env_steps if (run_dir / CONFIG).exists() else 0
