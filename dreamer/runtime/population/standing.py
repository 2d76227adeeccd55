"""What a population remembers between two starts: its file, and the checkpoint from which all members resume.

This module imports no jax.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamer.errors import UserError
from dreamer.layers import Layer, layer
from dreamer.runtime.files import checkpoint_files
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.files.run_dir import CONFIG, METRICS
from dreamer.runtime.run import run_config

FILE = "population.json"


class Standing(NamedTuple):
    """What the file of a population records.

    members: the names of all members | stopped {name: reason}: the members that train no more
    saved: the newest step at which all members were saved; -1: none
    saving: the step at which members were being saved, one after the other; equal to `saved` if none was
    config {dotted key: value}: what the config of the population has besides those of its members
    """

    members: tuple[str, ...]
    stopped: Mapping[str, str]
    saved: int = -1
    saving: int = -1
    config: Mapping[str, Any] = {}


def begin(root: Path, members: Sequence[str], resume: str, config: Mapping[str, Any]) -> tuple[Standing, int | None]:
    """Returns what the file of the population in `root` records, and the step at which all members resume.

    The step is None for a population that is new, or that ended before all members had their first checkpoint.

    resume: "no", "yes" or "auto", as in `train`. Only reads the disk.
    Raises UserError if there is no population to resume, or one that must not be overwritten; if it has other members;
    if a member's directory is missing; or if a member was resumed alone.
    """
    path = root / FILE
    if not path.exists():
        if resume == "yes":
            raise UserError(f"there is no population at {root} to resume")
        if (root / CONFIG).exists() or (root / METRICS).exists():
            raise UserError(f"{root} contains a run; give the population another --run-dir")
        return Standing(tuple(members), {}, config=config), None
    if resume == "no":
        raise UserError(f"{root} contains a population; resume it with --resume, or give another --run-dir")
    standing = read(path)
    if set(standing.members) != set(members):
        changed = sorted(set(standing.members) ^ set(members))
        raise UserError(f"the population at {root} has other members, see {', '.join(changed)}; give the same axes")
    return standing._replace(config=config), _common_step(root, standing)


def layers(root: Path, *, trusted: bool, given: Mapping[str, Any]) -> list[Layer]:
    """Returns the config of the population in `root`: that of its first member, and what it has besides.

    trusted: whether the user trusts the population | given: the settings of the command, by dotted key
    Raises UserError if a file is damaged, or names code that nobody vouches for.
    """
    known = read(root / FILE)
    found = run_config.read(root / known.members[0])
    run_config.check(found, trusted=trusted, given=given)
    return [found.layer(), layer({**known.config, "run_dir": str(root)}, origin=str(root / FILE))]


def read(path: Path) -> Standing:
    """Reads the file of a population. Raises UserError if it is damaged."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        numbers = {name: int(values[name]) for name in ("saved", "saving")}
        stopped = {str(name): str(why) for name, why in values["stopped"].items()}
        return Standing(tuple(map(str, values["members"])), stopped, **numbers, config=dict(values["config"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write(root: Path, standing: Standing) -> None:
    """Writes the file of a population. Raises UserError if the disk is full."""
    text = json.dumps(standing._asdict(), indent=1) + "\n"
    write_whole(root / FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _common_step(root: Path, standing: Standing) -> int | None:
    """Returns the newest step at which all members have a checkpoint; None: they have never had one."""
    if standing.saved < 0:
        return None
    steps: dict[str, list[int]] = {}
    for name in standing.members:
        if name in standing.stopped:
            continue
        if not (root / name / CONFIG).exists():
            raise UserError(f"the member {name} of the population is missing: there is no run at {root / name}")
        steps[name] = checkpoint_files.steps(root / name)
        newest = steps[name][-1] if steps[name] else -1
        if newest not in (standing.saved, standing.saving):
            raise UserError(
                f"the member {name} was resumed alone: its newest checkpoint is {newest:,}, that of the population "
                f"{standing.saved:,}; resume the members one by one, or remove its newer checkpoints"
            )
    for step in (standing.saving, standing.saved):
        if step >= 0 and all(step in own for own in steps.values()):
            return step
    raise UserError(f"the members of the population at {root} have no common checkpoint")
