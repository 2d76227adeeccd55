"""Checks a run directory for damage: compares every needed file with its recorded checksum. Only reads; no jax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreamer.errors import UserError
from dreamer.runtime.files import checkpoint_files, sealed
from dreamer.runtime.files.manifest import Manifest
from dreamer.runtime.files.run_dir import METRICS, ROWS, folder_of
from dreamer.runtime.files.safe_files import check_inside
from dreamer.runtime.files.sealed import Seal
from dreamer.runtime.log.sinks import lines_damage
from dreamer.runtime.replay.store import end_name


def checkpoint_faults(run_dir: Path, step: int) -> list[str]:
    """Returns one line for each problem with a checkpoint or with a file that it needs; [] if all are undamaged."""
    try:
        manifest = checkpoint_files.read_manifest(run_dir, step)
    except UserError as error:
        return [str(error)]
    faults = []
    try:
        checkpoint_files.check_state(run_dir, step)
    except UserError as error:
        faults.append(str(error))
    if manifest.step != step:
        faults.append(f"checkpoint {step} of {run_dir} is damaged: it was saved as {manifest.step}")
    seals = [(process, seal) for process, files in enumerate(manifest.hosts) for seal in files.seals]
    found = (file_fault(run_dir, seal, manifest.run, process) for process, seal in seals)
    return [*faults, *filter(None, found)]


def file_fault(run_dir: Path, seal: Seal, run: Any, process: int = 0) -> str:
    """Returns what is wrong with a file in the folder of rows, as one line, or "" if nothing is wrong.

    seal: the file's name, size and checksum, which it must match. run: the id of the run, which it must contain.
    process: the process that wrote it, if several train together
    """
    path = folder_of(run_dir, process) / ROWS / seal.name
    try:
        check_inside(path.parent, run_dir)
        head, _ = sealed.read(path, seal)
    except UserError as error:
        return str(error)
    return "" if head.get("run") == run else f"{path} belongs to another run"


def metrics_fault(run_dir: Path, manifest: Manifest) -> str:
    """Returns what is wrong with the part of metrics.jsonl written before a checkpoint, or "" if it is undamaged."""
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
    """Returns `metrics_fault` for the newest checkpoint with a readable manifest, or "" if there is none."""
    for step in reversed(checkpoint_files.steps(run_dir)):
        try:
            return metrics_fault(run_dir, checkpoint_files.read_manifest(run_dir, step))
        except UserError:
            continue
    return ""


def end_of(run_dir: Path, manifest: Manifest) -> dict[str, Any] | None:
    """Returns the state {"logger": .., "loop": ..} that a run saved when it ended at this checkpoint.

    Returns None if the run did not end there, or if the file is damaged. A resume reports the damage.
    """
    if manifest.files is None:
        return None
    try:
        head, _ = sealed.read(run_dir / ROWS / end_name(manifest.step))
        whole = head["state"] == list(manifest.files.state) and isinstance(head["logger"], dict)
        return head if whole and {"bytes", "crc"} <= head["logger"].keys() else None
    except (UserError, KeyError):
        return None
