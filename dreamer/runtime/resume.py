"""A run put down and taken up again: what a checkpoint knows beyond the train state, and who gets it back.

A checkpoint's `meta` is the manifest: it names every file that belongs to it by its seal. Order of writing: rows,
latents, the host's state, then Orbax commits train state and manifest in one step. So a kill at any instant leaves the
checkpoint before it whole, and rows that came later.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.config import Config, get, keys, load
from dreamer.errors import UserError
from dreamer.runtime import replay_state
from dreamer.runtime.checkpoint import Checkpoints
from dreamer.runtime.collector import Collector
from dreamer.runtime.limiter import Limiter
from dreamer.runtime.metrics import EpisodeTracker, Logger, Resumed
from dreamer.runtime.replay import Replay
from dreamer.runtime.row_store import RowStore
from dreamer.runtime.rows import empty_step
from dreamer.runtime.run_dir import CONFIG
from dreamer.runtime.sealed import Seal
from dreamer.runtime.steps import Step
from dreamer.runtime.workers import Ready, Snapshot, Workers
from dreamer.spaces import Spec

FORMAT = 1
# What may differ when a run is resumed: nothing here changes what the agent is, sees or has learned.
SAFE = (
    "env_steps", "run_dir", "log.", "eval.", "checkpoint.", "workers.backend", "workers.processes", "workers.address",
    "workers.timeout", "workers.restarts", "workers.least", "workers.patience", "replay.flush", "replay.prefetch",
    "replay.on_device", "devices.",
)  # fmt: skip


class Parts(NamedTuple):
    """Who remembers what, apart from the learner."""

    workers: Workers
    replay: Replay
    store: RowStore
    collector: Collector
    tracker: EpisodeTracker
    limiter: Limiter
    logger: Logger


class Found(NamedTuple):
    """The checkpoint that a run goes on from: its number and its manifest."""

    step: int
    meta: dict[str, Any]


def safe(key: str) -> bool:
    """Whether a field may differ at a resume."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in SAFE)


def check_config(config: Config, run_dir: Path) -> None:
    """UserError naming every field that differs from the run's own config and is not safe to change."""
    saved = load(run_dir / CONFIG)
    if type(saved.agent.world_model) is not type(config.agent.world_model) or type(saved.agent.behavior) is not type(
        config.agent.behavior
    ):
        raise UserError(f"{run_dir} was trained with another world model or behavior; it can only go on with its own")
    changed = [key for key in keys(config) if get(config, key) != get(saved, key) and not safe(key)]
    if changed:
        told = "; ".join(f"{key} is {get(config, key)!r}, the run has {get(saved, key)!r}" for key in changed)
        raise UserError(f"cannot resume {run_dir} with another config: {told}. May change: {', '.join(SAFE)}")


def find(checkpoints: Checkpoints, run_dir: Path) -> Found | None:
    """The newest checkpoint, None when there is none yet. Raises UserError when it is not one to resume from."""
    step = checkpoints.latest()
    if step is None:
        return None
    meta = checkpoints.meta(step)
    if meta.get("format") != FORMAT:
        raise UserError(f"checkpoint {step} of {run_dir} can be evaluated, but it holds nothing to resume a run from")
    return Found(step, meta)


def save(parts: Parts, step: int, run: str, more: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """Writes all but the train state; returns the manifest. Nobody may collect or train meanwhile.

    step: number of the checkpoint. more: JSON values that the loop itself remembers.
    whole: False after a failure, when environments can no longer be asked where they are.
    """
    parts.store.flush(parts.replay)
    parts.store.wait()
    latents = parts.store.save_latents(parts.replay, step)
    values, draws = replay_state.state(parts.replay)
    envs = parts.workers.states() if whole else _lost(parts.workers)
    head = {
        "replay": values, "limiter": parts.limiter.state(), "logger": parts.logger.position(), "loop": dict(more),
        "envs": [state if isinstance(state, str) else None for state in envs.states],
    }  # fmt: skip
    arrays = {
        **_named("sampler", draws), **_named("collector", parts.collector.state()),
        **_named("tracker", parts.tracker.state()), **_named("envs", _snapshot_arrays(envs)),
    }  # fmt: skip
    state = parts.store.save_state(step, head, arrays)
    return {
        "format": FORMAT, "run": run, "rows": [list(seal) for seal in parts.store.seals()],
        "latents": [list(seal) for seal in latents], "state": list(state),
        "oldest": replay_state.oldest(parts.replay).tolist(), "rows_per_env": parts.replay.size.rows_per_env,
    }  # fmt: skip


def ring_length(found: Found, planned: int, longer: bool) -> int:
    """Rows of each ring of the resumed replay: as before, or as `planned` for a longer run if no ring went round yet.

    A ring that went round has let rows go that a longer one would still hold.
    """
    grows = longer and not any(found.meta["oldest"])
    return max(planned, found.meta["rows_per_env"]) if grows else found.meta["rows_per_env"]


class Restored(NamedTuple):
    """What came back. head: of the saved state | arrays: likewise | later: rows kept from after the checkpoint
    exact: nothing is missing, and every environment goes on where it was
    """

    head: dict[str, Any]
    arrays: dict[str, np.ndarray]
    later: int
    exact: bool


def load_rows(found: Found, store: RowStore, replay: Replay, lockstep: bool) -> Restored:
    """Fills the replay. In lockstep with environments that can go on, rows after the checkpoint are made again.

    Raises UserError naming a file that is damaged, missing or foreign.
    """
    store.check_names()
    head, arrays = store.load_state(_seal(found.meta["state"]))
    store.load_rows(replay, [_seal(s) for s in found.meta["rows"]], [_seal(s) for s in found.meta["latents"]])
    replay_state.load(replay, head["replay"], _under("sampler", arrays))
    exact = lockstep and not any(head["envs"])
    if exact:
        store.drop_later()
    later = 0 if exact else store.load_later(replay)
    return Restored(head, arrays, later, exact)


def resumed_logger(restored: Restored, replay: Replay) -> Resumed:
    """Where the sinks go on."""
    return Resumed(restored.head["logger"], replay.steps, later=not restored.exact)


def load_rest(restored: Restored, parts: Parts) -> list[str]:
    """Gives collector, limiter and environments their own back; says what came back and what could not."""
    parts.limiter.load(restored.head["limiter"])
    replay, batch_size = parts.replay, parts.replay.config.batch_size
    if restored.later and restored.head["limiter"] is None and replay.ready(batch_size):
        # Training had begun after the checkpoint: its updates are owed from there on.
        parts.limiter.collected(min(replay.start(batch_size), replay.steps), True)
    snapshot = _snapshot(restored, parts.workers.spec)
    if restored.later:
        states = ["rows came after the checkpoint"] * parts.workers.envs
        snapshot = snapshot._replace(states=states, ready=_none_ready(parts.workers.spec))
    else:
        parts.collector.load(_under("collector", restored.arrays))
        parts.tracker.load_state(_under("tracker", restored.arrays))
    lost = parts.workers.restore(*snapshot)
    rows, queue = replay.rows, len(replay.queue)
    lines = [
        "resumed: parameters, optimizer, normalisers, slow critic, keys, "
        f"{rows:,} rows of replay with their latents, order and sampler, {queue} fresh sequences, limiter, counters"
    ]
    if restored.later:
        lines.append(f"resumed: {restored.later:,} rows flushed after the checkpoint; training catches up with them")
    for why in dict.fromkeys(lost.values()):
        numbers = [number for number in lost if lost[number] == why]
        every = len(numbers) == parts.workers.envs
        which = "all environments" if every else f"environments {', '.join(map(str, numbers))}"
        lines.append(f"not resumed: the running episodes of {which}, since {why}; cut there, new ones begin")
    return lines


def _lost(workers: Workers) -> Snapshot:
    """A Snapshot that restores nothing but fresh episodes."""
    why = "the run failed, and they could no longer be asked"
    return Snapshot([why] * workers.envs, _none_ready(workers.spec), np.zeros(workers.envs, np.int64))


def _none_ready(spec: Spec) -> Ready:
    return Ready(np.zeros(0, np.int64), empty_step(spec, 0))


def _snapshot_arrays(envs: Snapshot) -> dict[str, np.ndarray]:
    states = {f"state/{i:05d}": np.frombuffer(s, np.uint8) for i, s in enumerate(envs.states) if isinstance(s, bytes)}
    step = envs.ready.step
    fields = {f"row/{name}": getattr(step, name) for name in step._fields if name != "obs"}
    obs = {f"row/obs/{key}": value for key, value in step.obs.items()}
    return {**states, **fields, **obs, "ready": envs.ready.envs, "resets": envs.resets}


def _snapshot(restored: Restored, spec: Spec) -> Snapshot:
    arrays = _under("envs", restored.arrays)
    states = [why or arrays[f"state/{i:05d}"].tobytes() for i, why in enumerate(restored.head["envs"])]
    fields = {name: arrays[f"row/{name}"] for name in Step._fields if name != "obs"}
    step = Step(obs={key: arrays[f"row/obs/{key}"] for key in spec.obs}, **fields)
    return Snapshot(states, Ready(arrays["ready"], step), arrays["resets"])


def _named(part: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{part}/{name}": array for name, array in arrays.items()}


def _under(part: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{part}/"): a for name, a in arrays.items() if name.startswith(f"{part}/")}


def _seal(value: Any) -> Seal:
    return Seal(*value)
