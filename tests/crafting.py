"""Writes crafted files of a run directory with correct checksums."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreamer.runtime.files import checkpoint_files, sealed
from dreamer.runtime.files.sealed import Seal


def seal_file(path: Path, whole: Any, data: bytes = b"") -> Seal:
    """Writes a sealed file with any head and any bytes, and correct checksums."""
    if isinstance(whole, dict):
        whole = {"crc": zlib.crc32(data), **whole}
    return seal_text(path, json.dumps(whole).encode(), data)


def seal_text(path: Path, text: bytes, data: bytes = b"", length: int | None = None) -> Seal:
    """Like `seal_file`, with any text as head and `length` as its declared length."""
    fixed = struct.pack("<8sQI", sealed.MAGIC, len(text) if length is None else length, zlib.crc32(text))
    path.write_bytes(fixed + text + data)
    return Seal(path.name, path.stat().st_size, zlib.crc32(text))


def change_meta(run_dir: Path, change: Callable[[dict], Any], step: int | None = None) -> None:
    """Changes the manifest of a checkpoint (None = the newest) to the result of `change`, or in place."""
    step = checkpoint_files.steps(run_dir)[-1] if step is None else step
    path = run_dir / "checkpoints" / str(step) / checkpoint_files.META
    content = json.loads(path.read_bytes())
    del content["crc32"]
    changed = change(content["meta"])
    if changed is not None:
        content["meta"] = changed
    path.write_text(json.dumps(checkpoint_files.seal(content)))


def change_state(run_dir: Path, change: Callable[[dict, dict], Any]) -> None:
    """Applies `change` to head and arrays of the newest checkpoint's host state, and updates the manifest."""
    step = checkpoint_files.steps(run_dir)[-1]
    name = checkpoint_files.read_meta(run_dir, step)["meta"]["state"][0]
    head, arrays = sealed.read(run_dir / "rows" / name)
    arrays = dict(arrays)
    change(head, arrays)
    seal = sealed.write(run_dir / "rows" / name, head, arrays)
    change_meta(run_dir, lambda meta: meta.update(state=list(seal)))


def change_file(run_dir: Path, kind: str, change: Callable[[dict, dict], Any]) -> None:
    """Like `change_state`, for the first file of "rows" or "latents"."""
    step = checkpoint_files.steps(run_dir)[-1]
    name = checkpoint_files.read_meta(run_dir, step)["meta"][kind][0][0]
    head, arrays = sealed.read(run_dir / "rows" / name)
    arrays = dict(arrays)
    change(head, arrays)
    seal = sealed.write(run_dir / "rows" / name, head, arrays)
    change_meta(run_dir, lambda meta: meta[kind].__setitem__(0, list(seal)))
