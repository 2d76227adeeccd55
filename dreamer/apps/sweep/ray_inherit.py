"""Population-based training between the runs of a sweep: which trial continues from which, and files that record it.

    SWEEP/lineage.jsonl                 every descent, as for a population, see `population.exploit`
    SWEEP/ray/compared.json             the step of the newest comparison
    SWEEP/ray/parents/STEPS/TRIAL       the newest checkpoint of each parent, from before it trained on

A descent is written before any trial continues. The process of its trial carries it out when it starts: the newest
checkpoint of the trial, the one at the step of the comparison, receives what the parent has learned. Until the trial
has a newer checkpoint, this can be repeated, so a kill at any moment loses nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from os import rename
from pathlib import Path
from typing import Any

from dreamer.apps.sweep.state import Known
from dreamer.config import Config
from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.files.lock import RunLock
from dreamer.runtime.files.run_dir import CHECKPOINTS
from dreamer.runtime.population import exploit
from dreamer.runtime.population.exploit import Descent
from dreamer.spaces import Action, Space, Spec

COMPARED, PARENTS = "ray/compared.json", "ray/parents"
ALL_STEPS = 1 << 62


def compared(root: Path) -> int:
    """Returns the step of the newest comparison of a sweep; 0: there was none. Raises UserError if it is damaged."""
    path = root / COMPARED
    try:
        known = int(json.loads(path.read_text(encoding="utf-8"))["env_steps"]) if path.exists() else 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return max([known, *(one.env_steps for one in lineage(root))])


def next_due(root: Path, every: int) -> int:
    """Returns the step of the next comparison. every: the steps between two; 0: there are none, and 0 is returned."""
    return exploit.next_due(every, compared(root)) if every else 0


def lineage(root: Path) -> list[Descent]:
    """Returns all descents of a sweep, oldest first. Raises UserError if the file is damaged."""
    return exploit.read(root, ALL_STEPS)


def commit(root: Path, known: Known, steps: int, descents: Sequence[Descent]) -> None:
    """Records a comparison at `steps`, and keeps the checkpoints of the parents. All trials have saved and ended.

    Raises UserError if a file cannot be written.
    """
    parents = root / PARENTS
    for at, parent in {(one.env_steps, one.parent) for one in descents}:
        run_dir, kept = known.run_dir(root, parent), parents / str(at) / parent / CHECKPOINTS
        newest = (checkpoint_files.steps(run_dir) or [-1])[-1]
        if newest < 0:
            raise UserError(f"{run_dir} has no checkpoint that another trial could continue from")
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(run_dir / CHECKPOINTS / str(newest), kept / str(newest))
    if descents:
        exploit.write(root, [*lineage(root), *descents])
    text = json.dumps({"env_steps": steps}) + "\n"
    (root / COMPARED).parent.mkdir(exist_ok=True)
    write_whole(root / COMPARED, lambda path: path.write_text(text, encoding="utf-8"))
    for old in parents.iterdir() if parents.is_dir() else ():
        if old.name not in {str(one.env_steps) for one in descents}:
            shutil.rmtree(old, ignore_errors=True)


def newest_values(root: Path, start: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns {trial: {key: number}}: the numbers with which each trial trains now. start: those that it began with."""
    return exploit.newest_values(start, lineage(root))


def catch_up(root: Path, known: Known, trial: str, config: Config) -> str:
    """Carries out the newest descent of a trial, unless it has trained on since. Returns a line to print, or "".

    config: that of the trial. Raises UserError if a checkpoint is damaged or missing.
    """
    own = [one for one in lineage(root) if one.member == trial]
    run_dir = known.run_dir(root, trial)
    if not own or not run_dir.is_dir():
        return ""
    descent = own[-1]
    with RunLock(run_dir, print, lambda error: print(error)):
        aside = root / PARENTS / str(descent.env_steps) / f"{trial}.new"
        _finish(run_dir, aside)
        newest = (checkpoint_files.steps(run_dir) or [-1])[-1]
        parent = root / PARENTS / str(descent.env_steps) / descent.parent
        if newest != descent.env_steps or not parent.is_dir():  # it has trained on since
            return ""
        _write(run_dir, newest, parent, aside, hyper_leaves(config, descent.values, run_dir, newest))
        _exchange(run_dir, newest, aside)
    return f"at {newest:,} steps, {trial} continues from {descent.parent}: {descent.values}"


def hyper_leaves(config: Config, values: Mapping[str, float], run_dir: Path, step: int) -> dict[str, Any]:
    """Returns {"hyper/..": [..]}: the numbers of an agent with these values. Its spaces are those of the checkpoint."""
    from dreamer.runtime.files.leaves import named_leaves
    from dreamer.runtime.population.hyper import hyper_of, made_for

    spec = spec_of(checkpoint_files.read_manifest(run_dir, step).spec or {})
    given, _ = exploit.with_values(config, values, values)
    return named_leaves({"hyper": hyper_of(made_for(given, spec))})


def spec_of(values: Mapping[str, Any]) -> Spec:
    """Returns the Spec that a manifest holds as JSON values."""

    def record(kind: Any, fields: Mapping[str, Any]) -> Any:
        return kind(**{name: tuple(one) if isinstance(one, list) else one for name, one in fields.items()})

    obs = {name: record(Space, fields) for name, fields in values["obs"].items()}
    return Spec(obs, record(Action, values["action"]), values["agents"])


def _write(run_dir: Path, step: int, parent: Path, aside: Path, hyper: Mapping[str, Any]) -> None:
    """Writes the checkpoint of a run with what a parent has learned into the folder `aside`."""
    from dreamer.runtime.files.checkpoint import Checkpoints
    from dreamer.runtime.fused.population import LEARNED

    with Checkpoints(run_dir) as ours, Checkpoints(parent) as theirs:
        own, learned = ours.leaves(step), theirs.leaves()
        manifest = ours.manifest(step).to_json()
    taken = {name: leaf for name, leaf in learned.items() if name.partition("/")[0] in LEARNED}
    wanted = {name for name in own if name.partition("/")[0] in LEARNED}
    if taken.keys() != wanted or any(taken[name].shape != own[name].shape for name in wanted):
        raise UserError(f"{run_dir} cannot continue from {parent}: their agents have other shapes")
    shutil.rmtree(aside, ignore_errors=True)
    with Checkpoints(aside) as made:
        made.save(step, {**own, **taken, **hyper}, manifest)


def _exchange(run_dir: Path, step: int, aside: Path) -> None:
    """Replaces the checkpoint of the run by that in `aside`. After a kill, `_finish` completes this."""
    rename(run_dir / CHECKPOINTS / str(step), aside / "old")
    _finish(run_dir, aside)


def _finish(run_dir: Path, aside: Path) -> None:
    if (aside / "old").is_dir():
        for new in (aside / CHECKPOINTS).iterdir():
            if new.name.isdecimal():
                rename(new, run_dir / CHECKPOINTS / new.name)
    shutil.rmtree(aside, ignore_errors=True)
