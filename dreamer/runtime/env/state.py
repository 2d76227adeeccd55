"""Saves the state of an environment as bytes and restores it, but only if the state is sure to be complete.

This module imports no jax.

Whole environments are never pickled: many would rebuild themselves from their arguments and silently lose their state.
These environments can be saved; for all others `get_state` returns the reason why not:

    environment                                                  what is saved
    its outermost layer has get_state() and set_state(state)     the result of get_state(), if it can be pickled
    such an environment in known gymnasium wrappers              the same, and the wrappers' own counters
    gymnasium's classic_control and toy_text, also wrapped       its attributes, without spaces and rendering

The first byte tells the format: PLAIN for the encoding of `plain_state`, which runs no code when it is read, or PICKLED
for values that `plain_state` cannot encode. Only give bytes from a file to `set_state` if they are PLAIN or if the user
trusts the file.
"""

from __future__ import annotations

import pickle
import zlib
from typing import Any

import gymnasium
from gymnasium import wrappers

from dreamer.runtime.files import plain_state

PLAIN, PICKLED = b"\0", b"\1"

OWN = ("gymnasium.envs.classic_control.", "gymnasium.envs.toy_text.")  # their whole state is in their attributes
# The attributes that each known wrapper changes while it runs.
WRAPPERS: dict[type, tuple[str, ...]] = {
    wrappers.TimeLimit: ("_elapsed_steps",),
    wrappers.OrderEnforcing: ("_has_reset",),
    wrappers.PassiveEnvChecker: (
        "checked_reset", "checked_step", "checked_render", "checked_data_reuse", "_previous_data",
    ),
}  # fmt: skip
DRAWS = {"screen", "clock", "surf", "window", "window_surface", "isopen", "spec", "render_mode"}


def get_state(env: gymnasium.Env, more: Any = None) -> bytes | str:
    """Returns the state of `env` as bytes, or a short reason (str) why it cannot be saved.

    The reason can be put after "since" in a sentence. more: a value of the caller that is saved with the state;
    `set_state` returns it.
    """
    layers, base = _layers(env)
    if not _known(base):
        if isinstance(base, gymnasium.Wrapper):
            return f"the wrapper {type(base).__name__} may keep state of its own: give it get_state and set_state"
        return f"{type(base).__name__} has no get_state and set_state"
    try:
        own = base.get_state() if _gives(base) else _attributes(base)
        return _packed(([_counters(layer) for layer in layers], own, more))
    except Exception as error:  # a state that cannot be read or pickled cannot be restored
        return f"the state of {type(base).__name__} cannot be read, {type(error).__name__}: {error}"


def set_state(env: gymnasium.Env, state: bytes) -> Any:
    """Restores a state in an environment that was made in the same way. Returns the argument `more` of `get_state`.

    Reading a `pickled` state can run arbitrary code. Raises ValueError for an invalid state, and passes on errors of
    the environment's own set_state.
    """
    layers, base = _layers(env)
    if not _known(base):
        raise ValueError(f"the state of {env} cannot be set")
    counters, own, more = _unpacked(state)
    for layer, values in zip(layers, counters, strict=True):
        if not set(values) <= set(WRAPPERS[type(layer)]):
            raise ValueError(f"{type(layer).__name__} keeps no {', '.join(map(str, values))}")
        vars(layer).update(values)
    if _gives(base):
        base.set_state(own)
    else:
        vars(base).update(own)
    return more


def pickled(state: bytes) -> bool:
    """Whether a state contains a pickle, which can run code when `set_state` reads it."""
    return state[:1] != PLAIN


def _packed(value: Any) -> bytes:
    try:
        return PLAIN + plain_state.encode(value)
    except plain_state.NotPlain:
        return PICKLED + zlib.compress(pickle.dumps(value), 1)


def _unpacked(state: bytes) -> Any:
    if state[:1] == PLAIN:
        return plain_state.decode(state[1:])
    if state[:1] == PICKLED:
        return pickle.loads(zlib.decompress(state[1:]))
    env, *more = pickle.loads(state)  # the format of older versions
    return *pickle.loads(env), tuple(more)


def _layers(env: gymnasium.Env) -> tuple[list[gymnasium.Wrapper], Any]:
    """Returns the known wrappers around an environment, outermost first, and the environment inside them."""
    layers: list[gymnasium.Wrapper] = []
    while not _gives(env) and type(env) in WRAPPERS:
        layers.append(env)  # type: ignore[arg-type]
        env = env.env  # type: ignore[attr-defined]
    return layers, env


def _known(base: Any) -> bool:
    """Whether the complete state of an environment can be read."""
    return _gives(base) or type(base).__module__.startswith(OWN)


def _gives(env: Any) -> bool:
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))


def _counters(layer: gymnasium.Wrapper) -> dict[str, Any]:
    return {name: vars(layer)[name] for name in WRAPPERS[type(layer)] if name in vars(layer)}


def _attributes(env: gymnasium.Env) -> dict[str, Any]:
    values = {name: value for name, value in vars(env).items() if name not in DRAWS and not _images(value)}
    return {name: value for name, value in values.items() if not isinstance(value, gymnasium.Space)}


def _images(value: Any) -> bool:
    """Whether a value is an object of pygame, or contains only such objects."""
    items = value if isinstance(value, list | tuple) and value else [value]
    return all(type(item).__module__.startswith("pygame") for item in items)
