"""Checksums of a checkpoint's files, looked at before Orbax reads it.

Orbax reads all leaves side by side. When one fails, the reads of the others are left behind and die one by one, each
with a message on stderr that the interpreter prints from wherever it happens to be. So damage is found first, and named
by its file.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import orbax.checkpoint as ocp

LIST = "crc32.json"
_PIECE = 1 << 22  # bytes that are read at once


class SealedHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler of a pytree; writes the checksums of its files before the checkpoint counts as whole."""

    def finalize(self, directory: Path) -> None:
        """Called by Orbax in its thread, when all files of `directory` are written and none has its last name yet."""
        super().finalize(directory)
        crcs = {name: _crc(path) for name, path in _files(Path(directory)).items()}
        (Path(directory) / LIST).write_text(json.dumps({"files": crcs, "crc32": _crc_of_list(crcs)}))


@ocp.args.register_with_handler(SealedHandler, for_save=True)
@dataclasses.dataclass
class SealedSave(ocp.args.StandardSave):
    """What a `SealedHandler` is given to write: Orbax finds the handler by the type of its argument."""


@ocp.args.register_with_handler(SealedHandler, for_restore=True)
@dataclasses.dataclass
class SealedRestore(ocp.args.StandardRestore):
    """What a `SealedHandler` is given to read; Orbax wants both of a handler."""


def damage(directory: Path) -> str | None:
    """What is wrong with the files under `directory`, as one phrase; None when they are those that were written.

    A file more is none of what is read, and Orbax adds one of its own afterwards.
    """
    if not directory.is_dir():
        return f"{directory.name} is missing"
    try:
        said = json.loads((directory / LIST).read_bytes())
        crcs = said["files"]
        if said["crc32"] != _crc_of_list(crcs):
            return f"the checksum of {LIST} differs"
        files = _files(directory)
        for name, crc in crcs.items():
            if name not in files:
                return f"{name} is missing"
            if _crc(files[name]) != crc:
                return f"the checksum of {name} differs"
    except FileNotFoundError:
        return f"{LIST} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError):
        return f"{LIST} is not what was written"
    return None


def _files(directory: Path) -> dict[str, Path]:
    """All files under a folder but the list itself, by their names from there."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {name: path for path in sorted(paths) if (name := path.relative_to(directory).as_posix()) != LIST}


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return crc


def _crc_of_list(crcs: dict[str, int]) -> int:
    return zlib.crc32(json.dumps(crcs, sort_keys=True).encode())
