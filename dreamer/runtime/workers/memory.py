"""The memory that a set of worker processes shares: one row and one action per stream. Imports no jax.

The memory has no name. The system frees it when the last process with its file descriptor ends.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile

import numpy as np

from dreamer.spaces import Spec
from dreamer.steps import Step

_ALIGN = 64  # bytes; arrays begin at cache lines


def open_memory() -> int:
    """Creates empty shared memory and returns its file descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("dreamer-rows", os.MFD_CLOEXEC)
    descriptor, path = tempfile.mkstemp(prefix="dreamer-rows-")
    os.unlink(path)
    return descriptor


def resize(descriptor: int, spec: Spec, streams: int) -> None:
    """Makes the shared memory large enough for one row and one action of each of `streams` streams."""
    os.ftruncate(descriptor, sum(_padded(shape, dtype) for _, shape, dtype in _layout(spec, streams)))


def rows_in(descriptor: int, spec: Spec, streams: int) -> Step:
    """Returns a Step [streams, ..] of arrays in the shared memory, which stays mapped as long as these arrays exist."""
    mapped = mmap.mmap(descriptor, 0)
    arrays, offset = {}, 0
    for name, shape, dtype in _layout(spec, streams):
        arrays[name] = np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)
        offset += _padded(shape, dtype)
    obs = {key: arrays[f"obs/{key}"] for key in spec.obs}
    flags = (arrays[name] for name in ("is_first", "is_last", "is_terminal"))
    return Step(obs, arrays["action"], arrays["reward"], *flags)


def _layout(spec: Spec, streams: int) -> list[tuple[str, tuple[int, ...], np.dtype]]:
    """Returns (name, shape, dtype) of each array, in the order in which the arrays lie in the memory."""
    obs = [(f"obs/{key}", (streams, *space.shape), np.dtype(space.dtype)) for key, space in spec.obs.items()]
    flags = [(name, (streams,), np.dtype(bool)) for name in ("is_first", "is_last", "is_terminal")]
    numbers = [(name, shape, np.dtype(np.float32)) for name, shape in (
        ("action", (streams, spec.action_width)), ("reward", (streams,)))]  # fmt: skip
    return [*obs, *numbers, *flags]


def _padded(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _ALIGN) * _ALIGN
