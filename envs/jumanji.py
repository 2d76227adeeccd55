"""Jumanji: `make("Snake")` is jumanji's Snake-v1. Games, packing and routing in JAX, with action masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dreamer.interfaces import Array, JaxEnv, Key
from dreamer.jax_envs import between, make_jax_env
from dreamer.spaces import MASK, Action, Space, Spec

from ._jax_suite import at_limit, box, importing, integers, numbers
from ._suite import find_task


class Choice(NamedTuple):
    """The action of a task. action: the agent's | native(vector [A]) -> the task's action; None: the plain one

    mask: the length of the action mask; 0: there is none
    """

    action: Action
    native: Callable[[Array], Array] | None = None
    mask: int = 0


def make(task: str, **options: Any) -> JaxEnv:
    """Makes one task. Its action mask is the observation "action_mask", which the agent obeys.

    Integers from 0 to at most 63 are classes. An action of several parts whose mask marks combinations of them
    (Minesweeper, Sudoku, BinPack) is one class for each combination. In tasks with a time limit, the step at the limit
    is truncated, although the package calls it an end. options: arguments of the task's class.
    Raises ValueError and ImportError.
    """
    with importing("jumanji"):
        import jumanji
        from jumanji import registration, specs
    versions = {name.rpartition("-v")[0]: name for name in sorted(registration.registered_environments())}
    name = task if task in versions.values() else versions[find_task("jumanji", task, versions)]
    try:
        env = jumanji.make(name, **options)
    except OSError as error:  # Sokoban fetches its levels
        raise ValueError(f"jumanji:{name} fetches files: {' '.join(str(error).split())[:100]}") from error
    leaves = dict(_leaves(env.observation_spec, specs.Spec))
    choice = _choice(f"jumanji:{name}", env.action_spec, leaves.pop(MASK, None))
    obs = {key: _space(leaf) for key, leaf in leaves.items()}
    if choice.mask:
        obs[MASK] = Space((choice.mask,), "int8", 2)
    keys = sorted(leaves)
    return make_jax_env(
        Spec(dict(sorted(obs.items())), choice.action),
        functools.partial(_reset, env, keys, choice.mask),
        functools.partial(_step, env, keys, choice.mask, getattr(env, "time_limit", None)),
        choice.native,
    )


def _leaves(spec: Any, kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the key and the spec of each array of a nested spec; keys are joined with "/"."""
    inner = {key: value for key, value in vars(spec).items() if isinstance(value, kind)}
    if not inner:
        yield prefix[:-1] or "vector", spec
    for key, value in inner.items():
        yield from _leaves(value, kind, f"{prefix}{key}/")


def _space(spec: Any) -> Space:
    if not hasattr(spec, "minimum"):
        return numbers(tuple(spec.shape), np.dtype(spec.dtype).name)
    if np.dtype(spec.dtype).kind in "iu":
        return integers(spec.minimum, spec.maximum, tuple(spec.shape), spec.dtype)
    return box(spec.minimum, spec.maximum, tuple(spec.shape), spec.dtype)


def _choice(name: str, spec: Any, mask: Any) -> Choice:
    """Returns the Choice for the action spec and the spec of the mask, which may be None. Raises ValueError."""
    shape = tuple(mask.shape) if mask is not None else ()
    if np.dtype(spec.dtype).kind == "f":
        return Choice(Action((), math.prod(spec.shape)), between(*_ends(spec)))
    if hasattr(spec, "num_values") and not spec.shape:
        return Choice(Action((int(spec.num_values),)), mask=math.prod(shape))
    sizes = tuple(int(high) + 1 for high in _ends(spec)[1].ravel())
    if shape == sizes:
        return Choice(Action((math.prod(sizes),)), functools.partial(_combination, sizes), math.prod(sizes))
    if mask is not None and not (len(shape) == 2 and shape[0] == len(sizes) and shape[1] <= min(sizes)):
        raise ValueError(f"{name}: its action mask {list(shape)} does not fit its action, {list(sizes)} choices")
    sizes = sizes if mask is None else (shape[1],) * len(sizes)
    return Choice(Action(sizes), functools.partial(_parts, sizes, spec.dtype), math.prod(shape) if shape else 0)


def _ends(spec: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.broadcast_to(np.asarray(end), spec.shape) for end in (spec.minimum, spec.maximum))
    return low, high


def _combination(sizes: tuple[int, ...], vector: Array) -> Array:
    """Returns the parts int32 [n] of the chosen combination."""
    return jnp.stack(jnp.unravel_index(jnp.argmax(vector), sizes)).astype(jnp.int32)


def _parts(sizes: tuple[int, ...], dtype: Any, vector: Array) -> Array:
    """Returns the choice of each part, [n]."""
    ends = np.cumsum(sizes)[:-1]
    return jnp.stack([jnp.argmax(part) for part in jnp.split(vector, ends)]).astype(dtype)


def _observed(keys: list[str], mask: int, obs: Any) -> dict[str, Array]:
    found = {key: _at(obs, key) for key in keys}
    return {**found, MASK: _at(obs, MASK).ravel()} if mask else found


def _at(obs: Any, key: str) -> Array:
    for part in key.split("/") if key != "vector" else ():
        obs = getattr(obs, part)
    return obs


def _reset(env: Any, keys: list[str], mask: int, key: Key) -> tuple[Any, dict[str, Array]]:
    state, timestep = env.reset(key)
    return state, _observed(keys, mask, timestep.observation)


def _step(
    env: Any, keys: list[str], mask: int, limit: int | None, key: Key, state: Any, action: Array
) -> tuple[Any, ...]:
    state, timestep = env.step(state, action)
    last = timestep.last()
    terminated = last & (jnp.max(timestep.discount) == 0) & ~at_limit(state, limit)
    return state, _observed(keys, mask, timestep.observation), jnp.sum(timestep.reward), terminated, last & ~terminated
