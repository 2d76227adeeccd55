"""Sealed files: a JSON header and arrays in one immutable file with checksums. Imports no jax.

    magic 8 bytes | length of the header, uint64 | crc32 of the header, uint32 | header, JSON | bytes of each array

The header holds the caller's values, the arrays' names, dtypes and shapes, and the crc32 of their bytes. So `read`
detects a file that was cut short or changed and, with the file's Seal, one that was exchanged for another. A file gets
its name only when it is complete and on the disk; until then it has the suffix UNFINISHED.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.files.atomic import write_durably
from dreamer.runtime.files.safe_files import json_value, open_regular

MAGIC = b"dreamer1"
_FIXED = struct.Struct("<8sQI")
_LARGEST_HEAD = 1 << 30
_MOST_AXES = 16


class Seal(NamedTuple):
    """Identifies a sealed file by its name, its size in bytes and the crc32 of its header. The manifest contains it.

    The header contains the crc32 of the arrays, so the crc32 of the header covers the whole content.
    """

    name: str
    nbytes: int
    crc: int


def write(path: Path, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Seal:
    """Writes a sealed file, waits until it is on the disk, and returns its seal.

    head: the caller's JSON values for the header | arrays {name: [..]}
    Raises UserError if the write fails, and then leaves no file.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    crc = 0
    for array in contiguous.values():
        crc = zlib.crc32(_bytes(array), crc)
    forms = [[name, array.dtype.name, list(array.shape)] for name, array in contiguous.items()]
    text = json.dumps({"head": dict(head), "arrays": forms, "crc": crc}, allow_nan=False).encode()

    def fill(half: Path) -> None:
        with open(half, "wb") as file:
            file.write(_FIXED.pack(MAGIC, len(text), zlib.crc32(text)))
            file.write(text)
            for array in contiguous.values():
                file.write(_bytes(array))

    write_durably(path, fill)
    nbytes = _FIXED.size + len(text) + sum(array.nbytes for array in contiguous.values())
    return Seal(path.name, nbytes, zlib.crc32(text))


def read(path: Path, seal: Seal | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the caller's values from the header, and the arrays {name: [..]}, of a sealed file.

    seal: the file's seal in the manifest; None: it is not compared. Raises UserError with the name of the file if it is
    missing, is not a sealed file, was cut short or changed, does not match the seal, or has an invalid header.
    """
    with _reading(path) as file:
        whole, _ = _whole(path, file, seal)
        data = np.fromfile(file, np.uint8, count=sum(form.nbytes for form in whole.forms))
    if zlib.crc32(data.data) != whole.crc:
        raise UserError(f"{path} is damaged: its checksum differs")
    arrays, offset = {}, 0
    for form in whole.forms:
        arrays[form.name] = data[offset : offset + form.nbytes].view(form.dtype).reshape(form.shape)
        offset += form.nbytes
    return whole.head, arrays


def seal_of(path: Path) -> Seal:
    """Returns the seal of an existing sealed file. Raises UserError as `read` does, but does not check the arrays."""
    with _reading(path) as file:
        return _whole(path, file, None)[1]


def read_head(path: Path) -> dict[str, Any]:
    """Returns the caller's values of a sealed file. Raises UserError as `read` does, but does not check the arrays."""
    with _reading(path) as file:
        return _whole(path, file, None)[0].head


class _Form(NamedTuple):
    """The description of an array in a header."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    nbytes: int


class _Whole(NamedTuple):
    """The parsed header of a file.

    head: the caller's values | forms: a description of each array | crc: the crc32 of the bytes of all arrays
    """

    head: dict[str, Any]
    forms: list[_Form]
    crc: int


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """A context manager with the opened file. Turns errors that occur while it is read into a UserError."""
    try:
        with open_regular(path) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise UserError(f"{path} cannot be read: it does not fit into memory") from error


def _whole(path: Path, file: BinaryIO, seal: Seal | None) -> tuple[_Whole, Seal]:
    """Reads the header, checks it against the file's size and `seal`, and returns the parsed header and its seal.

    `file` is then at the beginning of the arrays.
    """
    fixed, nbytes = file.read(_FIXED.size), os.fstat(file.fileno()).st_size
    if len(fixed) < _FIXED.size or fixed[:8] != MAGIC:
        raise UserError(f"{path} is not a file of this program, or its beginning is damaged")
    _, length, crc = _FIXED.unpack(fixed)
    expected, whole = seal.nbytes if seal else nbytes, None
    if length <= min(nbytes - _FIXED.size, _LARGEST_HEAD):
        text = file.read(length)
        if zlib.crc32(text) != crc:
            raise UserError(f"{path} is damaged: the checksum of its head differs")
        whole = _parsed(text, path)
        expected = _FIXED.size + length + sum(form.nbytes for form in whole.forms)
    if whole is None or nbytes != expected:
        raise UserError(f"{path} is cut short or too long: {nbytes} bytes, it should have {expected}")
    if seal and (seal.nbytes, seal.crc) != (nbytes, crc):
        raise UserError(f"{path} is not the file that this run wrote under that name")
    return whole, Seal(path.name, nbytes, crc)


def _parsed(text: bytes, path: Path) -> _Whole:
    """Parses the text of a header. Raises UserError if the text does not have the form that `write` writes."""
    try:
        values = json_value(text)
        head, arrays, crc = values["head"], values["arrays"], values["crc"]
        if not (isinstance(head, dict) and type(crc) is int and len(values) == 3):
            raise ValueError("it is not the head of a file")
        forms = [_form(*array) for array in arrays]
        if len({form.name for form in forms}) != len(forms):
            raise ValueError("two arrays have the same name")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} was not written by this program: its head is invalid, {str(error)[:100]}") from error
    return _Whole(head, forms, crc)


def _form(name: Any, kind: Any, shape: Any) -> _Form:
    """Parses the description of an array in a header. Raises ValueError or TypeError if the description is invalid."""
    if not (isinstance(name, str) and isinstance(kind, str) and isinstance(shape, list) and len(shape) <= _MOST_AXES):
        raise ValueError("the description of an array is invalid")
    if not all(type(length) is int and 0 <= length < 1 << 62 for length in shape):
        raise ValueError(f"array {name[:40]!r} has an invalid shape")
    dtype = _dtype(kind)
    if dtype.name != kind or (dtype.kind not in "biufc" and kind != "bfloat16"):
        raise ValueError(f"array {name[:40]!r} is of type {kind[:40]!r}")
    return _Form(name, dtype, tuple(shape), math.prod(shape) * dtype.itemsize)


def _dtype(name: str) -> np.dtype:
    """Returns the numpy dtype with this name. numpy itself does not know the name "bfloat16"."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _bytes(array: np.ndarray) -> memoryview:
    """Returns the bytes of a contiguous array without a copy. Also works for bfloat16, which exports no buffer."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
