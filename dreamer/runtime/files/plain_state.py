"""Encodes values as bytes without pickle. Decoding runs no code and takes memory only in proportion to the bytes.

Supported are:

    None, bool, int, float, complex, str, bytes
    list, tuple, dict, set, frozenset, collections.deque
    numpy arrays and scalars of numbers, bools and text
    numpy's Generator with one of numpy's bit generators, RandomState, random.Random

Other types, and subclasses of these types, are refused. A mutable object that occurs in several places stays one
object. Imports no jax.
"""

from __future__ import annotations

import collections
import math
import random
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

DEEPEST = 64  # levels of nesting
_GENERATORS: dict[str, type[np.random.BitGenerator]] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
# The form of each bit generator's `state`: an int is the number of values that a field can have.
_FORMS: dict[str, dict[str, Any]] = {
    "PCG64": {"state": {"state": 1 << 128, "inc": 1 << 128}, "has_uint32": 2, "uinteger": 1 << 32},
    "PCG64DXSM": {"state": {"state": 1 << 128, "inc": 1 << 128}, "has_uint32": 2, "uinteger": 1 << 32},
    "MT19937": {"state": {"key": (np.uint32, 624), "pos": 625}},
    "Philox": {
        "state": {"counter": (np.uint64, 4), "key": (np.uint64, 2)}, "buffer": (np.uint64, 4), "buffer_pos": 5,
        "has_uint32": 2, "uinteger": 1 << 32,
    },
    "SFC64": {"state": {"state": (np.uint64, 4)}, "has_uint32": 2, "uinteger": 1 << 32},
}  # fmt: skip
_SIZE = struct.Struct("<Q")
_SEQUENCES: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"s", frozenset: b"z"}
_OF_TAG: dict[bytes, Callable[[Iterable], Any]] = {tag: kind for kind, tag in _SEQUENCES.items()}


class NotPlain(ValueError):
    """Raised for a value that has no plain form, that is, a value that `encode` cannot encode."""


def encode(value: Any) -> bytes:
    """Encodes a value as bytes. Raises NotPlain if it contains an unsupported type or is nested too deeply."""
    writer = _Writer()
    writer.write(value, 0)
    return b"".join(writer.parts)


def decode(data: bytes) -> Any:
    """Decodes the bytes that `encode` returned. Raises ValueError for any other bytes."""
    reader = _Reader(data)
    try:
        value = reader.read(0)
    except ValueError:
        raise
    except (TypeError, KeyError, IndexError, OverflowError, struct.error, AttributeError, MemoryError) as error:
        raise ValueError(f"no plain state: {type(error).__name__}: {error}") from error
    if reader.at != len(data):
        raise ValueError("no plain state: bytes are left over")
    return value


def check_generator(state: Any, kind: str) -> dict[str, Any]:
    """Checks and returns the `state` of a numpy bit generator. Raises ValueError if the state is invalid.

    kind: the name of the bit generator's type, such as "PCG64".
    numpy does not check the state completely: an invalid position would make it read memory outside its buffer.
    """
    if not isinstance(state, dict) or kind not in _FORMS or state.get("bit_generator") != kind:
        raise ValueError(f"no state of a {kind}")
    if not _fits({name: value for name, value in state.items() if name != "bit_generator"}, _FORMS[kind]):
        raise ValueError(f"no state of a {kind}")
    return state


class _Writer:
    """Encodes values. Holds the bytes that were written, and a number for each object that may occur again."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # keeps objects alive, so that no id is used twice

    def write(self, value: Any, depth: int) -> None:
        if depth > DEEPEST:
            raise NotPlain("it is nested too deeply")
        kind = type(value)
        if value is None or kind is bool:
            self.parts.append(b"N" if value is None else b"T" if value else b"F")
        elif kind is int:
            self._sized(b"i", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        elif kind is float:
            self.parts += b"f", struct.pack("<d", value)
        elif kind is complex:
            self.parts += b"c", struct.pack("<2d", value.real, value.imag)
        elif kind in (str, np.str_):
            self._sized(b"u" if kind is str else b"U", value.encode("utf-8", "surrogatepass"))
        elif kind in (bytes, np.bytes_):
            self._sized(b"b" if kind is bytes else b"B", bytes(value))
        elif isinstance(value, np.generic) and value.dtype.kind in "biufc":
            self._sized(b"n", value.dtype.str.encode())
            self.parts.append(value.tobytes())
        elif kind in (tuple, frozenset):
            self._items(_SEQUENCES[kind], value, depth)
        elif not self._known(value):
            self._own(kind, value, depth)

    def _known(self, value: Any) -> bool:
        """Returns whether the object was written before. If it was, writes its number; if not, gives it a number."""
        number = self._numbers.get(id(value))
        if number is None:
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
            return False
        self.parts += b"r", _SIZE.pack(number)
        return True

    def _own(self, kind: type, value: Any, depth: int) -> None:
        """Writes a mutable value of type `kind`. Raises NotPlain for an unsupported type."""
        if kind in (list, set):
            self._items(_SEQUENCES[kind], value, depth)
        elif kind is dict:
            self.parts += b"d", _SIZE.pack(len(value))
            for name, item in value.items():
                self.write(name, depth + 1)
                self.write(item, depth + 1)
        elif kind is collections.deque:
            self.parts.append(b"q")
            self.write(value.maxlen, depth + 1)
            self._items(b"l", value, depth)
        elif kind is np.ndarray and value.dtype.kind in "biufcSU" and value.dtype.itemsize:
            order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
            self._sized(b"a", value.dtype.str.encode())
            self.parts.append(order.encode())
            self.write(value.shape, depth + 1)
            self._sized(b"", value.tobytes(order))
        elif kind is np.random.Generator:
            self.parts.append(b"g")
            self.write(_generator_state(value.bit_generator), depth + 1)
        elif kind is np.random.RandomState:
            self.parts.append(b"m")
            self.write(value.get_state(legacy=False), depth + 1)
        elif kind is random.Random:
            self.parts.append(b"p")
            self.write(value.getstate(), depth + 1)
        else:
            raise NotPlain(f"{kind.__module__}.{kind.__qualname__} has no plain form")

    def _items(self, tag: bytes, items: Any, depth: int) -> None:
        self.parts += tag, _SIZE.pack(len(items))
        for item in items:
            self.write(item, depth + 1)

    def _sized(self, tag: bytes, data: bytes) -> None:
        self.parts += tag, _SIZE.pack(len(data)), data


class _Reader:
    """Decodes values. Holds the position in the bytes, and the objects that were read and may occur again."""

    def __init__(self, data: bytes):
        self._data, self.at = data, 0
        self._seen: list[Any] = []

    def read(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("no plain state: it is nested too deeply")
        tag = self._take(1)
        if tag in b"NTF":
            return {b"N": None, b"T": True, b"F": False}[tag]
        if tag == b"i":
            return int.from_bytes(self._sized(), "little", signed=True)
        if tag == b"f":
            return struct.unpack("<d", self._take(8))[0]
        if tag == b"c":
            return complex(*struct.unpack("<2d", self._take(16)))
        if tag in b"uU":
            text = self._sized().decode("utf-8", "surrogatepass")
            return text if tag == b"u" else np.str_(text)
        if tag in b"bB":
            return self._sized() if tag == b"b" else np.bytes_(self._sized())
        if tag == b"n":
            dtype = _dtype(self._sized(), "biufc")
            return np.frombuffer(self._take(dtype.itemsize), dtype)[0]
        if tag == b"r":
            return self._seen[_SIZE.unpack(self._take(8))[0]]
        if tag in (b"t", b"z"):
            return _OF_TAG[tag](self.read(depth + 1) for _ in range(self._count()))
        place = len(self._seen)
        self._seen.append(_UNFINISHED)
        return self._own(tag, place, depth)

    def _own(self, tag: bytes, place: int, depth: int) -> Any:
        if tag in (b"l", b"d"):
            # Registered before its items, which may refer back to it.
            value: Any = [] if tag == b"l" else {}
            self._seen[place] = value
            for _ in range(self._count()):
                item = self.read(depth + 1)
                if tag == b"l":
                    value.append(item)
                else:
                    value[item] = self.read(depth + 1)
            return value
        if tag == b"s":
            value = {self.read(depth + 1) for _ in range(self._count())}
        elif tag == b"q":
            longest = self.read(depth + 1)
            if self._take(1) != b"l" or not (longest is None or type(longest) is int):
                raise ValueError("no plain state: a deque without items")
            value = collections.deque((self.read(depth + 1) for _ in range(self._count())), longest)
        elif tag == b"a":
            value = self._array(depth)
        elif tag == b"g":
            value = np.random.Generator(_bit_generator(self.read(depth + 1)))
        elif tag == b"m":
            value = _random_state(self.read(depth + 1))
        elif tag == b"p":
            value = _random(self.read(depth + 1))
        else:
            raise ValueError(f"no plain state: unknown mark {tag!r}")
        self._seen[place] = value
        return value

    def _array(self, depth: int) -> np.ndarray:
        dtype, order, shape = _dtype(self._sized(), "biufcSU"), self._take(1), self.read(depth + 1)
        data = self._sized()
        lengths = isinstance(shape, tuple) and len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
        if order not in (b"C", b"F") or not lengths or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError("no plain state: the shape of an array does not fit its bytes")
        # A copy is writable.
        return np.frombuffer(data, dtype).reshape(shape, order=order.decode()).copy(order.decode())  # type: ignore

    def _sized(self) -> bytes:
        return self._take(_SIZE.unpack(self._take(8))[0])

    def _count(self) -> int:
        """Reads a number of items. Raises ValueError if it is larger than the number of bytes left.

        Each item takes at least one byte, so damaged bytes cannot make the reader take much memory.
        """
        count = _SIZE.unpack(self._take(8))[0]
        if count > len(self._data) - self.at:
            raise ValueError("no plain state: cut short")
        return count

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise ValueError("no plain state: cut short")
        self.at += size
        return self._data[self.at - size : self.at]


class _Unfinished:
    """A placeholder for an object that is still being read. It has no hash, so it cannot be in a set or be a key."""

    __hash__ = None  # type: ignore[assignment]


_UNFINISHED = _Unfinished()


def _dtype(name: bytes, kinds: str) -> np.dtype:
    """Returns the dtype that numpy names `name`, such as b"<f8". Raises ValueError if its kind is not in `kinds`."""
    text = name.decode("ascii")
    if len(text) > 12 or text[:1] not in tuple("<>|=") or text[1:2] not in tuple(kinds) or not text[2:].isdecimal():
        raise ValueError(f"no plain state: no dtype {text[:20]!r}")
    dtype = np.dtype(text)
    if not dtype.itemsize:
        raise ValueError(f"no plain state: no dtype {text!r}")
    return dtype


def _generator_state(generator: Any) -> tuple[dict[str, Any], Any]:
    """Returns the state and the seed of a bit generator. The seed is needed for the generators that it spawns later."""
    if _GENERATORS.get(type(generator).__name__) is not type(generator):
        raise NotPlain(f"{type(generator).__name__} is none of numpy's bit generators")
    seed = generator.seed_seq
    if type(seed) is not np.random.SeedSequence:
        raise NotPlain(f"{type(seed).__name__} is not numpy's SeedSequence")
    entropy = seed.entropy
    if not isinstance(entropy, int | None):
        entropy = [int(number) for number in entropy]
    return dict(generator.state), (entropy, tuple(map(int, seed.spawn_key)), seed.pool_size, seed.n_children_spawned)


def _bit_generator(value: Any) -> np.random.BitGenerator:
    state, (entropy, spawn_key, pool_size, children) = value
    numbers = entropy if isinstance(entropy, list) else [] if entropy is None else [entropy]
    if not all(type(n) is int and n >= 0 for n in (*numbers, *spawn_key, children)) or not 4 <= pool_size <= 64:
        raise ValueError("no plain state: no seed")
    seed = np.random.SeedSequence(entropy, spawn_key=spawn_key, pool_size=pool_size, n_children_spawned=children)
    kind = str(state.get("bit_generator"))
    check_generator(state, kind)
    generator = _GENERATORS[kind](seed)
    generator.state = state
    return generator


def _random_state(state: Any) -> np.random.RandomState:
    more = {name: state.pop(name) for name in ("has_gauss", "gauss")}
    check_generator(state, "MT19937")
    if more["has_gauss"] not in (0, 1) or type(more["gauss"]) is not float:
        raise ValueError("no plain state: no RandomState")
    value = np.random.RandomState(0)
    value.set_state({**state, **more})
    return value


def _random(state: Any) -> random.Random:
    value = random.Random(0)
    version, words, gauss = state
    if version != 3 or len(words) != 625 or not all(type(word) is int for word in words):
        raise ValueError("no plain state: no random.Random")
    if not 0 < words[-1] <= 624 or not (gauss is None or type(gauss) is float):
        raise ValueError("no plain state: no random.Random")
    value.setstate((version, tuple(words), gauss))
    return value


def _fits(value: Any, form: Any) -> bool:
    if isinstance(form, dict):
        return isinstance(value, dict) and value.keys() == form.keys() and all(_fits(value[k], form[k]) for k in form)
    if isinstance(form, tuple):
        dtype, length = form
        return isinstance(value, np.ndarray) and value.dtype == dtype and value.shape == (length,)
    return isinstance(value, int | np.integer) and 0 <= value < form
