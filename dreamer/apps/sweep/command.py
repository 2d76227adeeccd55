"""`dreamer sweep`: expands a sweep into trials, packs them into programs, and runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from dreamer import shipped
from dreamer.apps.sweep import local, packing, planning, slurm, spec, state, table
from dreamer.apps.sweep.packing import Pack, Packing, Program
from dreamer.apps.sweep.spec import Sweep
from dreamer.apps.sweep.state import Failure, Known
from dreamer.apps.sweep.trials import Trial, trials_of
from dreamer.errors import UserError
from dreamer.fields import at_least
from dreamer.runtime.files import lock
from dreamer.runtime.files.lock import RunLock
from dreamer.runtime.population import standing
from dreamer.runtime.run.stopping import Stopping

HELP = """Train all trials of a sweep, and go on with it when the command is given again.
- SWEEP is a file in .yaml, or the name of a sweep that comes with dreamer.
- Its axes are config keys with the values to try; see docs/sweeps.md.
- Exit code: 0 all trials are done, 1 one has failed, 143 or 130 stopped by a signal."""
PROGRESS = 30.0  # seconds between two lines of progress


@dataclasses.dataclass(frozen=True)
class SweepFlags:
    """The flags of `dreamer sweep`."""

    run_dir: str = ""
    """Directory of the sweep; empty: sweeps/<name of the file>."""
    print: bool = False
    """List all trials, their programs and the memory that they take, and exit."""
    status: bool = False
    """Show how all trials stand, and exit; SWEEP may be the directory of a sweep."""
    on: Literal["local", "slurm"] = "local"
    """Where the programs run: on this machine, or as array jobs of SLURM (extra slurm)."""
    index: str = ""
    """Run one program, by its number in --print or by its name: for tasks of an array job."""
    pack: Pack = "auto"
    """Trials that differ in seeds and in numbers of the agent share a program: auto, where that is faster; on; off."""
    jobs: Annotated[int, at_least(0)] = 0
    """Programs to run at the same time; 0 = one for each accelerator, or for each core of the CPU."""
    retry: bool = False
    """Run failed trials again, from their last checkpoints."""
    compilation_cache: str = ""
    """Folder of compiled programs that all trials share; empty: in the directory of the sweep; off: none."""
    device_gb: Annotated[float, at_least(0)] = 0.0
    """Memory of the accelerators on which the programs will run; 0 = they run on devices like those of this machine."""
    slurm: slurm.Config = slurm.Config()
    """Resources of a job."""
    trust: bool = False
    """The sweep and its presets may name code that is not dreamer's."""


class Plan(NamedTuple):
    """A sweep that is ready to run.

    root: its directory | trials: by name | known: what the directory will say
    needs: what the settings of new trials need; None: an earlier start has packed all trials | notes: lines to print
    """

    root: Path
    trials: dict[str, Trial]
    known: Known
    needs: planning.Needs | None
    notes: tuple[str, ...]


def sweep(path: str, flags: SweepFlags) -> int:
    """Runs `dreamer sweep`. path: the sweep's file or, with --status, its directory. Returns the exit code.

    0: all trials are done | 1: a trial has failed | 143, 130: stopped by a signal
    Raises UserError for everything that the user can fix, before any trial starts.
    """
    if flags.status:
        return show_status(path, flags)
    _check_nodes(flags)
    given = spec.read(path)
    trials = {trial.name: trial for trial in trials_of(given, spec.base_config(given, flags.trust), flags.trust)}
    root = Path(os.path.abspath(os.path.expanduser(flags.run_dir or str(Path("sweeps") / Path(path).stem))))
    if flags.print:
        print(described(plan(root, given, trials, flags)))
        return 0
    if flags.index:
        return run_one(root, given, trials, flags)
    if flags.on == "local":
        local.check_linux()
    root.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(Stopping(_say))
        stack.enter_context(RunLock(root, _say, stopping.fail))
        ready = plan(root, given, trials, flags)
        state.write(root, ready.known)
        stopping.begun()
        print("\n".join([*ready.notes, packing.described(ready.known.programs), f"sweep: {root}"]), flush=True)
        if flags.on == "slurm":
            todo = [one for one in to_run(ready, flags) if not local.held(root, ready.known, one)]
            slurm.submit(root, todo, words_of(path, root, flags), flags.slurm, _say)
            return 0
        return run_all(ready, path, flags, stopping)


def plan(root: Path, given: Sweep, trials: dict[str, Trial], flags: SweepFlags) -> Plan:
    """Packs the trials that no earlier start has packed, and returns the sweep. Writes nothing.

    Raises UserError if the directory belongs to another sweep, or if the trials cannot be planned.
    """
    known = state.read(root)
    said = spec.named_in(given)
    fresh = [trial for name, trial in trials.items() if known is None or name not in known.trials]
    notes = []
    if known is not None:
        same = [name for name in trials if name in known.trials]
        if not same:
            raise UserError(f"{root} contains another sweep, without one trial in common; give another --run-dir")
        _check_same(root, known, trials)
        left = [name for name in known.trials if name not in trials]
        notes += [f"the sweep has changed: {len(fresh)} trials are new"] if fresh else []
        notes += [f"the sweep has changed: {len(left)} trials are gone, their runs stay: {_few(left)}"] if left else []
    needs, packed = None, Packing((), ())
    if fresh:
        needs = planning.needs_of([trial.config for trial in packing.settings_of(fresh)], _say)
        jobs = flags.jobs or default_jobs(needs.machine)
        share = needs.machine._replace(host_free=needs.machine.host_free // jobs)
        if flags.device_gb:
            share = share._replace(platform="gpu", device_free=int(flags.device_gb * 1e9))
        from dreamer.runtime.population.plan import most_members

        first = 1 + max([-1, *(int(p.name.removeprefix("program")) for p in known.programs)] if known else [-1])
        packed = packing.pack(
            fresh, needs._replace(machine=share), most_members, how="off" if flags.slurm.nodes > 1 else flags.pack,
            jobs=jobs, first=first,
        )
    before = known or Known({}, {}, ())
    every = {**before.trials, **state.entries(fresh, packed.programs)}
    gone = tuple(name for name in every if name not in trials)
    whole = Known(said, every, (*before.programs, *packed.programs), gone)
    return Plan(root, trials, whole, needs, (*notes, *packed.notes))


def _check_same(root: Path, known: Known, trials: dict[str, Trial]) -> None:
    for name, trial in trials.items():
        entry = known.trials.get(name)
        if entry and (entry["seed"] != trial.seed or repr(entry["values"]) != repr(dict(trial.values))):
            raise UserError(f"{root} contains another sweep, whose trial {name} has other values; give a new --run-dir")


def _check_nodes(flags: SweepFlags) -> None:
    """Raises UserError if programs should run on several nodes, but not as jobs or as populations."""
    if flags.slurm.nodes > 1 and flags.on != "slurm" and not flags.index:
        raise UserError("slurm.nodes is for jobs: give --on slurm too")
    if flags.slurm.nodes > 1 and flags.pack == "on":
        raise UserError("a population trains in one process: leave out --pack on, or slurm.nodes")


def default_jobs(there: Any) -> int:
    """Returns how many programs run at the same time: one for each accelerator, or for each core."""
    return max(1, there.devices if there.platform != "cpu" else len(os.sched_getaffinity(0)))


def described(ready: Plan) -> str:
    """Returns all programs and trials as text, with the memory that each program takes."""
    settings = {repr(dict(t.values)): n for n, t in enumerate(packing.settings_of([*ready.trials.values()]))}
    rows = []
    plans = ready.needs.plans if ready.needs and len(ready.needs.plans) == len(settings) else ()
    for number, program in enumerate(ready.known.programs):
        own = [name for name in program.trials if name in ready.trials]
        needs = [plans[settings[repr(dict(ready.trials[name].values))]] for name in own] if plans else []
        rows.append(f"{number}  {program.name}: {len(program.trials)} trials{memory_of(needs)}")
        for name in program.trials:
            values = dict(ready.known.trials[name]["values"], seed=ready.known.trials[name]["seed"])
            rows.append(f"     {name}  " + ", ".join(f"{key} {value}" for key, value in values.items()))
    return "\n".join([*ready.notes, *rows, packing.described(ready.known.programs), f"sweep: {ready.root}"])


def memory_of(needs: Sequence[Any]) -> str:
    """Returns the memory of a program's trials in words; "" if it is unknown. needs: a Plan for each trial."""
    known = [one for one in needs if not isinstance(one, str)]
    if not known:
        return ""
    state_bytes, replay = sum(one.state for one in known), sum(one.replay for one in known)
    on_device = state_bytes + known[0].temporary + sum(one.replay for one in known if one.on_device)
    return (
        f", {known[0].parameters:,} parameters each; device {on_device / 1e6:,.0f} MB (train states "
        f"{state_bytes / 1e6:,.0f}, an update {known[0].temporary / 1e6:,.0f}), host {replay / 1e6:,.0f} MB (replay)"
    )


def run_all(ready: Plan, path: str, flags: SweepFlags, stopping: Stopping) -> int:
    """Runs all programs on this machine, and returns the exit code of the sweep."""
    root, known, lengths = ready.root, ready.known, env_steps_of(ready)
    todo = to_run(ready, flags)
    there = ready.needs.machine if ready.needs else planning.needs_of([], _say).machine
    jobs = min(flags.jobs or default_jobs(there), max(1, len(todo)))
    cores = sorted(os.sched_getaffinity(0))
    where = local.places(jobs, cores, there.devices if there.platform != "cpu" else 0)
    shown = [time.monotonic()]

    def tick() -> None:
        if time.monotonic() - shown[0] >= PROGRESS:
            shown[0] = time.monotonic()
            _say(table.summary(table.lines_of(root, known, lengths)))

    environment = with_cache(dict(os.environ), root, flags.compilation_cache)
    with local.Launcher(root, known, lengths, words_of(path, root, flags), environment, where, _say) as launcher:
        launcher.run(todo, stopping.check, tick)
    lines = [line for line in table.lines_of(root, known, lengths) if line.trial in ready.trials]
    print(table.written(lines), flush=True)
    print(f"  dreamer report {root}  # curves, the best setting, what each axis does", flush=True)
    return int(any(line.standing == "failed" for line in lines))


def words_of(path: str, root: Path, flags: SweepFlags) -> list[str]:
    """Returns the words after `dreamer` that run one program, without its name."""
    nodes = str(flags.slurm.nodes) if flags.slurm.nodes > 1 else ""
    own = {"--compilation-cache": flags.compilation_cache, "--slurm.nodes": nodes}
    more = [word for flag, value in own.items() if value for word in (flag, value)]
    file = path if path in shipped.sweeps() else os.path.abspath(path)
    return ["sweep", file, "--run-dir", str(root), *more, *(["--trust"] if flags.trust else []), "--index"]


def to_run(ready: Plan, flags: SweepFlags) -> list[Program]:
    """Returns the programs that are not done. With --retry, failed trials count as open again."""
    lengths = env_steps_of(ready)
    if flags.retry:
        state.clear_failed(ready.root, [*ready.known.trials])
    return [p for p in wanted(ready) if any(_open(ready.root, ready.known, name, lengths) for name in p.trials)]


def wanted(ready: Plan) -> list[Program]:
    """Returns the programs of trials that the sweep file still has."""
    return [program for program in ready.known.programs if any(name in ready.trials for name in program.trials)]


def env_steps_of(ready: Plan) -> dict[str, int]:
    """Returns the length of each trial's run; that of a trial that is gone is the length of the others."""
    first = next(iter(ready.trials.values())).config.env_steps
    return {name: ready.trials[name].config.env_steps if name in ready.trials else first for name in ready.known.trials}


def _open(root: Path, known: Known, trial: str, lengths: dict[str, int]) -> bool:
    return state.standing(root, known, trial, lengths[trial]) not in ("done", "failed")


def with_cache(environment: dict[str, str], root: Path, folder: str) -> dict[str, str]:
    """Returns environment variables with which the processes of a sweep share what they compile."""
    if folder == "off":
        return environment
    cache = os.path.abspath(os.path.expanduser(folder)) if folder else str(root / "compiled")
    return {**environment, "JAX_COMPILATION_CACHE_DIR": environment.get("JAX_COMPILATION_CACHE_DIR") or cache}


def run_one(root: Path, given: Sweep, trials: dict[str, Trial], flags: SweepFlags) -> int:
    """Runs one program in this process. Returns its exit code: 0, or 1 if one of its trials has failed."""
    known = state.read(root)
    if known is None or any(name not in known.trials for name in trials):
        root.mkdir(parents=True, exist_ok=True)
        with waiting_for_lock(root):  # tasks of an array may come at the same time
            known = plan(root, given, trials, flags).known
            state.write(root, known)
    names = [program.name for program in known.programs]
    number = names.index(flags.index) if flags.index in names else _number(flags.index, len(names))
    program = known.programs[number]
    missing = [name for name in program.trials if name not in trials]
    if missing:
        raise UserError(f"{program.name} has trials that the sweep file no longer has: {_few(missing)}")
    if flags.retry:
        state.clear_failed(root, program.trials)
    lengths = {name: trials[name].config.env_steps for name in program.trials}
    if not any(_open(root, known, name, lengths) for name in program.trials):
        failed = [name for name in program.trials if state.failure(root, name)]
        why = f"failed, see --status; --retry runs them again: {_few(failed)}" if failed else "its trials are done"
        print(f"{program.name} has nothing to do: {why}")
        return int(bool(failed))
    from dreamer.runtime.train import train

    share_compiled(root, flags.compilation_cache)
    try:
        config = packing.config_of(program, trials, root)
        if flags.slurm.nodes > 1:
            config = dataclasses.replace(config, devices=dataclasses.replace(config.devices, coordinator="auto"))
        train(config, resume="auto", trust=flags.trust)
    except UserError as error:
        if not local.held(root, known, program):
            for name in program.trials:
                if _open(root, known, name, lengths):
                    state.set_failed(root, name, Failure(" ".join(str(error).split()), 2))
        raise
    stopped = stopped_members(root, program)
    for name, cause in stopped.items():
        state.set_failed(root, name, Failure(cause, 1))
    return int(bool(stopped))


def share_compiled(root: Path, folder: str) -> None:
    """Makes this process share what it compiles with the other programs, unless a variable says where."""
    import jax

    if folder != "off" and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", with_cache({}, root, folder)["JAX_COMPILATION_CACHE_DIR"])


@contextlib.contextmanager
def waiting_for_lock(root: Path, patience: float = 600.0) -> Iterator[None]:
    """A context that holds the lock of a sweep. Waits up to `patience` seconds for it; then raises UserError."""
    begun = time.monotonic()
    while True:
        try:
            held = RunLock(root, _say, lambda error: _say(str(error)))
            break
        except UserError:  # held by another process, or the directory cannot be written
            if lock.look(root) is None or time.monotonic() - begun > patience:
                raise
            time.sleep(1.0)
    with held:
        yield


def stopped_members(root: Path, program: Program) -> dict[str, str]:
    """Returns {trial: cause} of the members of a population that have stopped."""
    path = root / program.name / standing.FILE
    return dict(standing.read(path).stopped) if path.exists() else {}


def _number(text: str, count: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < count:
        raise UserError(f"--index {text} is no program of the sweep; give 0 to {count - 1}, see --print")
    return number


def show_status(path: str, flags: SweepFlags) -> int:
    """Prints how all trials of a sweep stand. Returns 1 if one has failed, else 0. Raises UserError."""
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


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join([*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])])


def _say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)
