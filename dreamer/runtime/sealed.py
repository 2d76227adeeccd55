"""Sealed files: arrays and a JSON head in one immutable file that tells when it was cut, changed or swapped. No jax.

    magic 8 bytes | length of the head, uint64 | crc32 of the head, uint32 | head, JSON | bytes of each array in turn

The head holds what the caller says, the arrays' names, dtypes and shapes, and the crc32 of their bytes. A file appears
under its name only when it is whole and on the disk; until then it has the suffix UNFINISHED.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.run_dir import disk_error

MAGIC = b"dreamer1"
UNFINISHED = ".unfinished"
_FIXED = struct.Struct("<8sQI")
_LARGEST_HEAD = 1 << 30


class Seal(NamedTuple):
    """What a manifest keeps of a sealed file, to know it again: its name, size in bytes and the crc32 of its head.

    The head holds the crc32 of the arrays, so that this one number stands for the whole content.
    """

    name: str
    nbytes: int
    crc: int


def write(path: Path, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Seal:
    """Writes a sealed file and waits until it is on the disk.

    head: JSON values. arrays {name: [..]}. Raises UserError when the disk refuses; nothing is left then.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    crc = 0
    for array in contiguous.values():
        crc = zlib.crc32(_bytes(array), crc)
    forms = [[name, array.dtype.name, list(array.shape)] for name, array in contiguous.items()]
    text = json.dumps({"head": dict(head), "arrays": forms, "crc": crc}, allow_nan=False).encode()
    half = path.with_name(path.name + UNFINISHED)
    try:
        with open(half, "wb") as file:
            file.write(_FIXED.pack(MAGIC, len(text), zlib.crc32(text)))
            file.write(text)
            for array in contiguous.values():
                file.write(_bytes(array))
            file.flush()
            os.fsync(file.fileno())
            nbytes = file.tell()
        os.replace(half, path)
        sync_folder(path.parent)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    return Seal(path.name, nbytes, zlib.crc32(text))


def read(path: Path, seal: Seal | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The head and the arrays of a sealed file.

    seal: what a manifest says of it. Raises UserError naming the file: it is not there, is no sealed file, was cut
    short, its bytes were changed, or it is another file than the sealed one.
    """
    whole, start = _open(path, seal)
    try:
        data = np.fromfile(path, np.uint8, offset=start)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if zlib.crc32(data.data) != whole["crc"]:
        raise UserError(f"{path} is damaged: its checksum differs")
    arrays, offset = {}, 0
    for name, kind, shape in whole["arrays"]:
        dtype = _dtype(kind)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        arrays[name] = data[offset : offset + size].view(dtype).reshape(shape)
        offset += size
    return whole["head"], arrays


def seal_of(path: Path) -> Seal:
    """The seal of a file that is there. Raises UserError as `read` does, for what it sees without the arrays."""
    _open(path, None)
    with open(path, "rb") as file:
        return Seal(path.name, path.stat().st_size, _FIXED.unpack(file.read(_FIXED.size))[2])


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path, seal: Seal | None) -> tuple[dict[str, Any], int]:
    """The whole head and where the arrays begin; checks length, magic and the head's checksum."""
    try:
        with open(path, "rb") as file:
            fixed = file.read(_FIXED.size)
            nbytes = os.fstat(file.fileno()).st_size
            if len(fixed) < _FIXED.size or fixed[:8] != MAGIC:
                raise UserError(f"{path} is not a file of this program, or its beginning is damaged")
            _, length, crc = _FIXED.unpack(fixed)
            text = file.read(min(length, _LARGEST_HEAD))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(text) == length and zlib.crc32(text) != crc:
        raise UserError(f"{path} is damaged: the checksum of its head differs")
    whole = json.loads(text) if len(text) == length else None
    expected = seal.nbytes if seal else nbytes
    if whole:
        sizes = [int(np.prod(shape, dtype=np.int64)) * _dtype(kind).itemsize for _, kind, shape in whole["arrays"]]
        expected = _FIXED.size + length + sum(sizes)
    if whole is None or nbytes != expected:
        raise UserError(f"{path} is cut short or too long: {nbytes} bytes, it was written with {expected}")
    if seal and (seal.nbytes, seal.crc) != (nbytes, crc):
        raise UserError(f"{path} is not the file that this run wrote under that name")
    return whole, _FIXED.size + length


def _dtype(name: str) -> np.dtype:
    """The numpy dtype of a name; "bfloat16" is not among numpy's own names."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not copied; ml_dtypes' own types have no buffer of their own."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
