"""Saves and resumes a run: everything in a checkpoint except the train state, and how the parts are restored from it.

The `meta` of a checkpoint is its manifest, which lists every file with its size and checksum. The order of writing is
rows, latents, the host's state; then Orbax commits train state and manifest in one step. So a kill at any instant
leaves the previous checkpoint, and the rows collected after it, intact.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.config import Config, stack
from dreamer.data.forms import from_json
from dreamer.errors import UserError
from dreamer.fields import MAY_CHANGE, get, has_mark, keys, marked
from dreamer.runtime.env import state as env_state
from dreamer.runtime.env.rows import empty_step
from dreamer.runtime.files import checkpoint_files, manifest, safe_files
from dreamer.runtime.files.manifest import FORMAT, Files, Manifest, files_of
from dreamer.runtime.learning.collector import Collector
from dreamer.runtime.learning.limiter import Limiter
from dreamer.runtime.log.episodes import EpisodeTracker
from dreamer.runtime.replay import spans as replay_state
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run import run_config, verifying
from dreamer.runtime.run.parts import Parts
from dreamer.runtime.workers import Ready, Workers, WorkersState
from dreamer.spaces import Spec
from dreamer.steps import Step
from dreamer.trust import seal, sealed_here


class Found(NamedTuple):
    """The checkpoint that a run resumes from.

    step: its number, of `schedule.next_checkpoint` | files: the files that its manifest lists
    newer: the numbers of newer checkpoints | ended: whether the run ended at this one, after its last evaluation
    """

    step: int
    manifest: Manifest
    files: Files
    newer: tuple[int, ...] = ()
    ended: bool = False

    @property
    def env_steps(self) -> int:
        """The progress of the run when it was saved."""
        return self.manifest.env_steps


def check_config(config: Config, run_dir: Path, trusted: bool) -> run_config.RunConfig:
    """Returns the config stored in the run directory, after checking that the run can be resumed with `config`.

    trusted: whether the user trusts the run. Class names in `config` are trusted, because the caller gave them.
    Raises UserError naming every field that differs between both configs but must not change.
    """
    found = run_config.read(run_dir)
    given = {key: get(config, key) for key in (*keys(config), *(f"env_options.{name}" for name in config.env_options))}
    run_config.check(found, trusted=trusted, given=given)
    saved = stack([found.layer()], note=lambda note: None)
    if type(saved.agent.world_model) is not type(config.agent.world_model) or type(saved.agent.behavior) is not type(
        config.agent.behavior
    ):
        raise UserError(f"{run_dir} was trained with another world model or behavior; resume it with the same ones")
    if bool(saved.updates) != bool(config.updates):
        what = "collects" if config.updates else "learns from data only"
        raise UserError(f"cannot resume {run_dir} with updates {config.updates}: the run {what}")
    changed = [
        key for key in keys(config) if get(config, key) != get(saved, key) and not has_mark(config, key, MAY_CHANGE)
    ]
    if changed:
        differences = "; ".join(f"{key} is {get(config, key)!r}, the run has {get(saved, key)!r}" for key in changed)
        free = ", ".join(marked(config, MAY_CHANGE))
        raise UserError(f"cannot resume {run_dir} with another config: {differences}. May change: {free}")
    return found


def find(run_dir: Path, step: int | None = None) -> Found | None:
    """Returns the checkpoint `step` (None: the newest), or None if the run has no checkpoint yet. Only reads.

    Raises UserError if the checkpoint is damaged or missing, and names the newest undamaged one to resume from.
    """
    safe_files.check_links(run_dir)
    steps = checkpoint_files.steps(run_dir)
    if step is not None and step not in steps:
        raise UserError(f"no checkpoint {step} in {run_dir}; available: {checkpoint_files.listed(steps)}")
    if not steps:
        return None
    step = steps[-1] if step is None else step
    with advising(run_dir, step):
        saved = checkpoint_files.read_manifest(run_dir, step)
        files = files_of(saved, f"checkpoint {step} of {run_dir}")
        if saved.step != step:
            raise UserError(f"checkpoint {step} of {run_dir} is damaged: it was saved as {saved.step}")
    ended = verifying.end_of(run_dir, saved) is not None
    return Found(step, saved, files, tuple(other for other in steps if other > step), ended)


@contextlib.contextmanager
def advising(run_dir: Path, step: int) -> Iterator[None]:
    """A context for reading checkpoint `step`. If it is damaged, a UserError also names an undamaged checkpoint."""
    try:
        yield
    except UserError as error:
        if not verifying.checkpoint_faults(run_dir, step):
            raise
        others = [other for other in checkpoint_files.steps(run_dir) if other != step]
        whole = [other for other in others if not verifying.checkpoint_faults(run_dir, other)]
        if not whole:
            raise UserError(f"{error}; no other checkpoint is undamaged, see dreamer verify {run_dir}") from error
        raise UserError(
            f"{error}; checkpoint {whole[-1]} is undamaged: resume from it with --resume-from {whole[-1]}"
        ) from error


def save(parts: Parts, step: int, env_steps: int, loop: Mapping[str, Any], *, whole: bool = True) -> Manifest:
    """Writes everything except the train state, and returns the manifest. No thread may collect or train meanwhile.

    step: the number of the checkpoint. env_steps: the progress of the run. loop: the state of `Run`, JSON values.
    whole: whether to save the states of the environments; False if they can no longer return them after a failure.
    """
    parts.store.flush(parts.replay)
    parts.store.wait()
    latents = parts.store.save_latents(parts.replay, step)
    values, draws = replay_state.state(parts.replay)
    envs = parts.workers.states() if whole else _lost(parts.workers)
    position = parts.logger.position()
    head = {
        "replay": values, "limiter": parts.limiter.state(), "logger": position, "loop": dict(loop),
        "envs": [state if isinstance(state, str) else None for state in envs.states],
        "macs": [_mac(state) for state in envs.states],
    }  # fmt: skip
    arrays = {
        **_named("sampler", draws), **_named("collector", parts.collector.state()),
        **_named("tracker", parts.tracker.state()), **_named("envs", _snapshot_arrays(envs)),
    }  # fmt: skip
    state = parts.store.save_state(step, head, arrays)
    oldest = replay_state.oldest(parts.replay)
    rows, rows_per_stream = tuple(parts.store.seals(oldest)), parts.replay.size.rows_per_stream
    files = Files(parts.identity, rows, tuple(latents), state, tuple(oldest.tolist()), rows_per_stream)
    metrics, spec = (position["bytes"], position["crc"]), as_json(parts.workers.spec)
    number = None if step == env_steps else step
    return Manifest(env_steps, parts.learner.updates, FORMAT, files, metrics, spec, number=number)


def as_json(spec: Spec) -> dict[str, Any]:
    """Returns a spec as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(spec)))


def spec_of(found: Found | None) -> Spec:
    """Returns the spec of the run of a checkpoint. Raises UserError if the checkpoint does not contain it."""
    if found is None or found.manifest.spec is None:
        raise UserError("the checkpoint does not contain the spaces of the run; it cannot be resumed without data")
    return from_json(found.manifest.spec, f"checkpoint {found.step}")


def check_spec(found: Found, spec: Spec, env: str) -> None:
    """Raises UserError if observations or actions differ from those at the start of the run."""
    saved, now = found.manifest.spec, as_json(spec)
    if saved is None or saved == now:
        return
    differing = [f"{what} {_in_words(saved[what])}, now {_in_words(now[what])}" for what in ("action", "agents")
                 if saved[what] != now[what]]  # fmt: skip
    for key in sorted({*saved["obs"], *now["obs"]}):
        before, after = saved["obs"].get(key), now["obs"].get(key)
        if before != after:
            differing.append(f"observation {key!r} {_in_words(before)}, now {_in_words(after)}")
    raise UserError(
        f"env {env!r} is not the one that the run was trained in: {'; '.join(differing)}; resume with the environment "
        "and the env_options that the run started with"
    )


def _in_words(form: Any) -> str:
    """Describes a part of a spec in a few words."""
    if form is None:
        return "missing"
    if not isinstance(form, dict):
        return str(form)
    return " ".join(f"{name} {value}" for name, value in form.items() if value not in (None, [], 0)) or "none"


def ring_length(found: Found, planned: int, longer: bool) -> int:
    """Returns the rows per ring of the resumed replay: at least `planned` if `longer` and no ring has dropped a row.

    Otherwise the number stays as it was. longer: whether env_steps is larger than in the run's stored config.
    """
    grows = longer and not any(found.files.oldest)
    return max(planned, found.files.rows_per_stream) if grows else found.files.rows_per_stream


class Restored(NamedTuple):
    """What was read from a checkpoint, except the train state.

    head, arrays: JSON values and arrays, from the file `where` | later: how many newer rows were loaded too
    exact: whether newer rows are collected again and not loaded, because every environment continues exactly
    """

    head: dict[str, Any]
    arrays: dict[str, np.ndarray]
    later: int = 0
    exact: bool = False
    where: Path = Path()


def load_rows(found: Found, store: RowStore, replay: Replay, trust: bool = False) -> Restored:
    """Fills the replay with the rows and latents of the checkpoint, and restores its sampler. Only reads the disk.

    trust: whether to read pickled states of environments that this user did not make on this machine.
    Raises UserError if a file is damaged, missing or belongs to another run.
    """
    store.check_names()
    files = found.files
    where = store.path(files.state.name)
    head, arrays = store.load_state(files.state)
    end = store.load_end(found.step, files.state) or {}
    head |= {name: end[name] for name in ("logger", "loop") if name in end}
    manifest.head(head, where)
    head["envs"] = [head["envs"][i] or untrusted(i, head, arrays, trust) for i in range(len(head["envs"]))]
    store.load_rows(replay, files.rows, files.latents)
    try:
        replay_state.load(replay, head["replay"], _under("sampler", arrays))
    except UserError as error:
        raise UserError(f"{where} was not written by this run: {error}") from error
    return Restored(head, arrays, where=where)


def restore_envs(
    restored: Restored, store: RowStore, replay: Replay, workers: Workers, lockstep: bool,
    fresh: Callable[[], Workers], drop_later: bool = False,
) -> tuple[Restored, Workers, dict[int, str]]:  # fmt: skip
    """Restores the environments, and loads the rows newer than the checkpoint if they will not be collected again.

    In lockstep, if all environments continue exactly, these rows will be collected again and are not loaded. Otherwise
    they are kept, and if there are any, every environment starts a new episode.
    fresh: makes new workers. It may be called if an environment refuses its state after others have accepted theirs.
    drop_later: whether these rows are never loaded, because the members of a population resume from one step
    Returns the restored state, the workers to use, and {number: reason} for environments that start a new episode.
    Only reads the disk. Raises UserError naming a damaged file.
    """
    _check_envs(restored, workers)
    all_known = not any(restored.head["envs"])
    lost: dict[int, str] = {}
    if drop_later:
        lost = workers.restore(*_snapshot(restored, workers.spec))
        return restored._replace(exact=True), workers, lost
    later = 0 if lockstep and all_known else store.load_later(replay)
    if not later:
        lost = workers.restore(*_snapshot(restored, workers.spec))
        if not (lockstep and all_known and lost):
            return restored._replace(exact=lockstep and all_known), workers, lost
        later = store.load_later(replay)
        if not later:
            return restored, workers, lost
        workers = fresh()
    resets = restored.arrays["envs/resets"] + bool(lost)
    why = "rows are newer than the checkpoint" if not lost else next(iter(lost.values()))
    lost = workers.restore([why] * workers.envs, _none_ready(workers.spec), resets)
    return restored._replace(later=later), workers, lost


def load_rest(
    restored: Restored, replay: Replay, collector: Collector, tracker: EpisodeTracker, limiter: Limiter
) -> None:
    """Restores collector, tracker and limiter. Restore the replay first."""
    limiter.load(restored.head["limiter"])
    batch_size = replay.config.batch_size
    if restored.later and restored.head["limiter"] is None and replay.ready(batch_size):
        # Training had started after the checkpoint: updates are due from that step on.
        limiter.collected(min(replay.start(batch_size), replay.steps), True)
    if not restored.later:
        for name, part in (("collector", collector.state()), ("tracker", tracker.state())):
            manifest.alike(_under(name, restored.arrays), part, restored.where, name)
        collector.load(_under("collector", restored.arrays))
        tracker.load_state(_under("tracker", restored.arrays))


def describe(restored: Restored, replay: Replay, lost: Mapping[int, str], envs: int) -> list[str]:
    """Returns lines to print about what was restored and what was not. lost: {number of the environment: reason}."""
    lines = [
        "resumed: parameters, optimizer, normalisers, slow critic, keys, "
        f"{replay.rows:,} rows of replay with their latents, order and sampler, {len(replay.queue)} fresh sequences, "
        "limiter, counters"
    ]
    if restored.later:
        lines.append(f"resumed: {restored.later:,} rows flushed after the checkpoint; training catches up with them")
    for why in dict.fromkeys(lost.values()):
        numbers = [number for number in lost if lost[number] == why]
        which = "all environments" if len(numbers) == envs else f"environments {', '.join(map(str, numbers))}"
        lines.append(f"not resumed: the running episodes of {which}, since {why}; new episodes start")
    return lines


def _mac(state: bytes | str) -> str:
    """Returns an HMAC that proves later that this user pickled the state; "" for a state that is not a pickle."""
    return seal(state) if isinstance(state, bytes) and env_state.pickled(state) else ""


def _check_envs(restored: Restored, workers: Workers) -> None:
    """Raises UserError if the numbers of states and of last rows do not match the number of environments."""
    arrays, where, streams = restored.arrays, restored.where, workers.streams
    ready, resets = (arrays.get(f"envs/{name}", np.zeros(0)) for name in ("ready", "resets"))
    states = [i for i, why in enumerate(restored.head["envs"]) if not why]
    sound = (
        len(restored.head["envs"]) == workers.envs
        and ready.ndim == 1 and ready.dtype == np.int64
        and len(set(ready.tolist())) == len(ready) and all(0 <= stream < streams for stream in ready.tolist())
        and resets.shape == (workers.envs,) and resets.dtype == np.int64
        and all(0 <= count < 1 << 31 for count in resets.tolist())
        and all(f"envs/state/{i:05d}" in arrays for i in states)
        and set(states) <= set((ready // workers.spec.agents).tolist())
    )  # fmt: skip
    if not sound:
        raise UserError(f"{where} was not written by this program: its environments are not those of the run")
    rows = _under("envs/row", arrays)
    step = empty_step(workers.spec, len(ready))
    fields = {name: getattr(step, name) for name in step._fields if name != "obs"}
    manifest.alike(rows, fields | {f"obs/{key}": value for key, value in step.obs.items()}, where, "envs/row")


def untrusted(env: int, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray], trust: bool) -> str | None:
    """Returns the reason not to read an environment's state; None if reading runs no code or the user trusts it."""
    state = arrays.get(f"envs/state/{env:05d}", np.zeros(0, np.uint8)).tobytes()
    macs = head.get("macs", ())
    if trust or not env_state.pickled(state) or (env < len(macs) and sealed_here(state, macs[env])):
        return None
    return "their states are pickles that were not made by you on this machine (--trust reads them)"


def _lost(workers: Workers) -> WorkersState:
    """Returns a WorkersState with which every environment starts a new episode."""
    why = "the run failed and they could no longer return their states"
    return WorkersState([why] * workers.envs, _none_ready(workers.spec), np.zeros(workers.envs, np.int64))


def _none_ready(spec: Spec) -> Ready:
    return Ready(np.zeros(0, np.int64), empty_step(spec, 0))


def _snapshot_arrays(envs: WorkersState) -> dict[str, np.ndarray]:
    states = {f"state/{i:05d}": np.frombuffer(s, np.uint8) for i, s in enumerate(envs.states) if isinstance(s, bytes)}
    step = envs.ready.step
    fields = {f"row/{name}": getattr(step, name) for name in step._fields if name != "obs"}
    obs = {f"row/obs/{key}": value for key, value in step.obs.items()}
    return {**states, **fields, **obs, "ready": envs.ready.streams, "resets": envs.resets}


def _snapshot(restored: Restored, spec: Spec) -> WorkersState:
    arrays = _under("envs", restored.arrays)
    states = [why or arrays[f"state/{i:05d}"].tobytes() for i, why in enumerate(restored.head["envs"])]
    fields = {name: arrays[f"row/{name}"] for name in Step._fields if name != "obs"}
    step = Step(obs={key: arrays[f"row/obs/{key}"] for key in spec.obs}, **fields)
    return WorkersState(states, Ready(arrays["ready"], step), arrays["resets"])


def _named(part: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{part}/{name}": array for name, array in arrays.items()}


def _under(part: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{part}/"): a for name, a in arrays.items() if name.startswith(f"{part}/")}
