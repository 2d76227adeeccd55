"""Shared code of the suites of environments in JAX: imports, spaces, pictures, random keys."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.interfaces import Array, Key
from dreamer.spaces import Space

from ._suite import extra, install

HERE = os.path.dirname(os.path.realpath(__file__))
SIDE = 16  # pixels of a cell in `cells`
MOST_CLASSES = 64  # integers with more values are numbers
WIDEST = 1e6  # an array with bounds further apart is no image, as in runtime/env/observations.py


@contextlib.contextmanager
def importing(suite: str) -> Iterator[None]:
    """A context for the imports of a suite. `import gymnax` finds the package, never envs/gymnax.py.

    The folder envs/ may be on sys.path, or be the current folder. Raises an ImportError that says what to install.
    """
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if os.path.realpath(entry or os.getcwd()) != HERE]
    try:
        with extra(suite, install("jaxenvs")):
            yield
    finally:
        sys.path[:] = before


def check_options(name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises ValueError if one of `options` is not in `known`. name: the environment's, for the message."""
    for option in options:
        if option not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ValueError(f"{name} takes no option {option!r}; options of its package: {listed}")


def box(low: Any, high: Any, shape: tuple[int, ...], dtype: Any) -> Space:
    """Returns the Space of numbers, or of an image if it has three axes with the channels last, and bounds."""
    low, high, name = float(np.min(low)), float(np.max(high)), np.dtype(dtype).name
    image = len(shape) == 3 and 0 < high - low <= WIDEST and shape[0] >= min(shape[1:])
    if image:
        return Space(shape, name, bounds=None if name == "uint8" and (low, high) == (0.0, 255.0) else (low, high))
    return numbers(shape, name)


def numbers(shape: tuple[int, ...], dtype: str = "float32") -> Space:
    """Returns the Space of numbers. Keeps one or two axes, others are flattened."""
    flat = shape or (1,) if len(shape) <= 2 else (int(np.prod(shape)),)
    return Space(flat, {"int64": "int32", "float64": "float32"}.get(dtype, dtype))


def integers(low: Any, high: Any, shape: tuple[int, ...], dtype: Any) -> Space:
    """Returns the Space of integers from `low` to `high`: classes if they begin at 0 and are few, else numbers."""
    if np.min(low) == 0 and np.max(high) < MOST_CLASSES and len(shape) < 3:
        return Space(shape, np.dtype(dtype).name, int(np.max(high)) + 1)
    return numbers(shape, np.dtype(dtype).name)


def as_layers(obs: Array) -> Array:
    """Returns layers of 0 and 1 [H, W, C] as bool, in which the replay takes a quarter of the memory of floats."""
    return obs > 0.5


def cells(layers: Array) -> Array:
    """Returns a picture uint8 [16 * H, 16 * W, 3] of layers bool [H, W, C]. The last layer is on top."""
    count = layers.shape[-1]
    turn = np.arange(count)[:, None] / count + np.array([0.0, 1 / 3, 2 / 3])
    palette = np.concatenate([np.zeros((1, 3)), 0.5 + 0.5 * np.cos(2 * np.pi * turn)])
    top = jnp.max(jnp.where(layers, jnp.arange(1, count + 1), 0), axis=-1)
    picture = jnp.asarray((255 * palette).astype(np.uint8))[top]
    return jnp.repeat(jnp.repeat(picture, SIDE, 0), SIDE, 1)


def at_limit(state: Any, limit: int | None) -> Array:
    """Whether a state, [] bool, is at the time limit of its game, for packages that report a limit as an end.

    limit: the most steps of an episode, or None. The steps so far have different names, some in a state inside `state`.
    """
    for name in ("step_count", "step", "time", "t"):
        if limit is not None and hasattr(state, name):
            return jnp.asarray(getattr(state, name) >= limit)
    return at_limit(state.state, limit) if hasattr(state, "state") else jnp.zeros((), bool)


def reset_task(env: Any, key: Key) -> tuple[Any, Any]:
    """Begins an episode of a task in the form of Brax, for `make_jax_env`: its state holds observation and reward."""
    state = env.reset(raw(key))
    return state, state.obs


def step_task(env: Any, key: Key, state: Any, action: Array) -> tuple[Any, ...]:
    """Makes a step of a task in the form of Brax, for `make_jax_env`. The task draws from the key in its state."""
    state = env.step(state, action)
    return state, state.obs, state.reward, state.done > 0, False


def raw(key: Key) -> Array:
    """Returns a random key as uint32 [2], for packages that know no other keys."""
    return jax.random.key_data(key)
