"""Checks a run directory for damage: compares every needed file with its seal. Only reads; no jax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files, sealed
from dreamer.runtime.files.manifest import Manifest
from dreamer.runtime.files.run_dir import METRICS, ROWS
from dreamer.runtime.files.safe_files import check_inside
from dreamer.runtime.files.sealed import Seal
from dreamer.runtime.log.sinks import lines_damage
from dreamer.runtime.replay.store import end_name


def checkpoint_faults(run_dir: Path, step: int) -> list[str]:
    """Returns one line for each fault of a checkpoint and of the files that it names."""
    try:
        manifest = checkpoint_files.read_manifest(run_dir, step)
    except UserError as error:
        return [str(error)]
    faults = []
    try:
        checkpoint_files.check_state(run_dir, step)
    except UserError as error:
        faults.append(str(error))
    if manifest.env_steps != step:
        faults.append(f"checkpoint {step} of {run_dir} is damaged: it was saved as {manifest.env_steps}")
    seals = manifest.files.seals if manifest.files else ()
    return faults + [fault for seal in seals if (fault := file_fault(run_dir, seal, manifest.run))]


def file_fault(run_dir: Path, seal: Seal, run: Any) -> str:
    """Returns the fault of a file of rows, or "" if the file matches its seal."""
    path = run_dir / ROWS / seal.name
    try:
        check_inside(path.parent, run_dir)
        head, _ = sealed.read(path, seal)
    except UserError as error:
        return str(error)
    return "" if head.get("run") == run else f"{path} belongs to another run"


def metrics_fault(run_dir: Path, manifest: Manifest) -> str:
    """Returns the fault of the lines of metrics written before a checkpoint, or "" if the lines are undamaged."""
    if manifest.metrics is None:
        return ""
    nbytes, crc = manifest.metrics
    end = end_of(run_dir, manifest)
    if end:
        nbytes, crc = end["logger"]["bytes"], end["logger"]["crc"]
    try:
        what = lines_damage(run_dir / METRICS, nbytes, crc)
    except UserError as error:
        return str(error)
    return f"{run_dir / METRICS} {what}" if what else ""


def newest_metrics_fault(run_dir: Path) -> str:
    """Returns `metrics_fault` of the newest readable checkpoint, or "" if there is no checkpoint."""
    for step in reversed(checkpoint_files.steps(run_dir)):
        try:
            return metrics_fault(run_dir, checkpoint_files.read_manifest(run_dir, step))
        except UserError:
            continue
    return ""


def end_of(run_dir: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Returns the record {"logger": .., "loop": ..} of a run that ended at a checkpoint; None if it did not end there.

    A damaged file counts as missing here. Resuming from the checkpoint reports the damage.
    """
    if manifest.files is None:
        return None
    try:
        head, _ = sealed.read(run_dir / ROWS / end_name(manifest.env_steps))
        whole = head["state"] == list(manifest.files.state) and isinstance(head["logger"], dict)
        return head if whole and {"bytes", "crc"} <= head["logger"].keys() else None
    except (UserError, KeyError):
        return None
