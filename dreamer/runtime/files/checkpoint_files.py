"""The files of checkpoints on the disk: lists them, reads their metadata, and checks that they are undamaged.

    checkpoints/<number>/state/...             the train state, by Orbax; state/crc32.json holds a checksum of each file
    checkpoints/<number>/meta/metadata         JSON: the manifest, the crc32 of every leaf, and a checksum of both

Orbax reads all leaves in parallel. When one read fails, the others are abandoned and fail one by one, each printing to
stderr at an unpredictable moment. So this module looks for damage first and names the damaged file. Imports no jax.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dreamer.errors import UserError
from dreamer.runtime.files.manifest import Manifest, check_format
from dreamer.runtime.files.run_dir import CHECKPOINTS
from dreamer.runtime.files.safe_files import check_inside, json_value, open_regular, special

STATE, META = "state", "meta/metadata"
LIST = "crc32.json"
LARGEST_META = 1 << 28  # bytes
_NUMBER = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)  # the name of a checkpoint
_PIECE = 1 << 22  # bytes to read at once


def steps(run_dir: Path) -> list[int]:
    """Returns the numbers of all complete checkpoints of a run, oldest first. A save in progress is not included."""
    folder = run_dir / CHECKPOINTS
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if _NUMBER.fullmatch(path.name))


def read_meta(run_dir: Path, step: int) -> dict[str, Any]:
    """Returns the metadata of checkpoint `step`: {"meta": the manifest as JSON, "leaf_crc32": {leaf name: crc32}}.

    Raises UserError if the metadata is missing, was changed, or was written by another version of dreamer.
    """
    path = _meta_file(run_dir, step)
    check_inside(path.parent, run_dir)
    try:
        with open_regular(path) as file:
            sealed = json_value(file.read(LARGEST_META))
    except FileNotFoundError:
        raise _damaged(run_dir, step, f"{META} is missing") from None
    except OSError as error:
        raise _damaged(run_dir, step, f"{META} cannot be read, {error.strerror}") from error
    except ValueError:
        raise _damaged(run_dir, step, f"{META} has invalid contents") from None
    content = {key: value for key, value in sealed.items() if key != "crc32"} if isinstance(sealed, dict) else {}
    if set(content) != {"meta", "leaf_crc32"} or seal(content) != sealed:
        raise _damaged(run_dir, step, f"the checksum of {META} differs")
    crcs = content["leaf_crc32"]
    if not (isinstance(crcs, dict) and all(type(crc) is int for crc in crcs.values())):
        raise _damaged(run_dir, step, f"{META} has invalid contents")
    check_format(content["meta"], f"checkpoint {step} of {run_dir}")
    return content


def read_manifest(run_dir: Path, step: int) -> Manifest:
    """Returns the manifest of checkpoint `step`. Raises UserError if it is missing or invalid."""
    return Manifest.from_json(read_meta(run_dir, step)["meta"], _meta_file(run_dir, step))


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """Returns `content`, which must be JSON values, with the key "crc32" added: the checksum of its JSON text."""
    return {**content, "crc32": zlib.crc32(json.dumps(content, sort_keys=True).encode())}


def check_state(run_dir: Path, step: int) -> None:
    """Raises UserError naming the file if a file with the train state of checkpoint `step` is missing or damaged."""
    folder = run_dir / CHECKPOINTS / str(step)
    check_inside(folder, run_dir)
    odd = next(special(folder), None)
    found = f"{odd} is neither a file nor a folder" if odd else damage(folder / STATE)
    if found:
        raise _damaged(run_dir, step, found)


def state_bytes(run_dir: Path, step: int) -> int:
    """Returns the total size in bytes of the files with the train state of checkpoint `step`."""
    return sum(path.stat().st_size for path in _files(run_dir / CHECKPOINTS / str(step) / STATE).values())


def write_list(directory: Path) -> None:
    """Writes the checksums of all files under `directory` into the file "crc32.json" in `directory`."""
    crcs = {name: _crc(path) for name, path in _files(directory).items()}
    (directory / LIST).write_text(json.dumps({"files": crcs, "crc32": _crc_of_list(crcs)}))


def damage(directory: Path) -> str | None:
    """Compares the files under `directory` with the checksums that `write_list` wrote.

    Returns a phrase that describes the damage, or None if the files are unchanged. Extra files are ignored: they are
    never read, and Orbax itself adds one.
    """
    if not directory.is_dir():
        return f"{directory.name} is missing"
    try:
        with open_regular(directory / LIST) as file:
            record = json_value(file.read(LARGEST_META))
        crcs = record["files"]
        if record["crc32"] != _crc_of_list(crcs):
            return f"the checksum of {LIST} differs"
        files = _files(directory)
        for name, crc in crcs.items():
            if name not in files:
                return f"{name} is missing"
            if _crc(files[name]) != crc:
                return f"the checksum of {name} differs"
    except FileNotFoundError:
        return f"{LIST} is missing"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{LIST} has invalid contents"
    return None


def listed(steps: Iterable[int]) -> str:
    """Formats the numbers of checkpoints for a message: "100, 200", or "none"."""
    return ", ".join(map(str, steps)) or "none"


def _meta_file(run_dir: Path, step: int) -> Path:
    return run_dir / CHECKPOINTS / str(step) / META


def _damaged(run_dir: Path, step: int, what: str) -> UserError:
    return UserError(f"checkpoint {step} in {run_dir / CHECKPOINTS} is damaged: {what}")


def _files(directory: Path) -> dict[str, Path]:
    """Returns {relative path: path} for all files under a folder, except for the list of checksums."""
    paths = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return {name: path for path in sorted(paths) if (name := path.relative_to(directory).as_posix()) != LIST}


def _crc(path: Path) -> int:
    crc = 0
    with open_regular(path) as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def _crc_of_list(crcs: dict[str, int]) -> int:
    return zlib.crc32(json.dumps(crcs, sort_keys=True).encode())
