"""Converts between the agent's Spec, JSON, and spaces of gymnasium that other programs understand. Imports no jax."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.runtime.env.actions import action_reader
from dreamer.runtime.env.observations import Reader, readers
from dreamer.spaces import MASK, Action, Space, Spec

_MOST = 1 << 20  # characters of a spec


class Form(NamedTuple):
    """How to read the recorded observations and actions of gymnasium spaces.

    keys: a Reader for each key of the observation | action: the space of the actions | spec: what the agent sees
    """

    keys: list[Reader]
    action: spaces.Space
    spec: Spec


class _Env(gymnasium.Env):
    """An environment that has nothing but spaces, for the functions that read those."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space


def form_of(observation: spaces.Space, action: spaces.Space, path: str) -> Form:
    """Returns the Form of spaces. Raises UserError with the dataset's `path` for spaces that are not supported."""
    env = _Env(observation, action)
    try:
        vector = action_reader(env).action
        keys = readers(env, "", vector)
    except UserError as error:
        what = str(error).removeprefix("env '': ")
        raise UserError(f"{path}: {what}") from None
    return Form(keys, action, Spec({reader.key: reader.space for reader in keys}, vector))


def to_json(spec: Spec) -> str:
    """Returns a spec as JSON, which `from_json` reads."""
    return json.dumps(dataclasses.asdict(spec))


def from_json(values: Any, path: str) -> Spec:
    """Returns the spec from JSON values or their text. Raises UserError if they are not one. path: for the error."""
    try:
        values = json.loads(values) if isinstance(values, str) and len(values) < _MOST else values
        obs = {str(key): _space(form) for key, form in values["obs"].items()}
        classes, continuous = tuple(values["action"]["classes"]), values["action"]["continuous"]
        agents = values["agents"]
        if not all(type(n) is int and n > 0 for n in (*classes, agents)) or type(continuous) is not int or not obs:
            raise ValueError("a number of classes is invalid")
        spec = Spec(dict(sorted(obs.items())), Action(classes, continuous), agents)
        if spec.action_width < 1 or continuous < 0:
            raise ValueError("the action has no width")
        return spec
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the description of its spaces is invalid, {str(error)[:100]}") from None


def gym_spaces(spec: Spec) -> tuple[spaces.Space, spaces.Space]:
    """Returns spaces (observation, action) of gymnasium whose values are the rows of `spec`.

    The observation is one space for a single key "vector" or "image", and a Dict otherwise; keys with "/" are nested.
    Numbers of an action range from -1 to 1. Raises UserError if no space of gymnasium means the same.
    """
    leaves = {key: _leaf(key, space) for key, space in spec.obs.items()}
    whole: dict[str, Any] = {}
    for key, leaf in leaves.items():
        place, names = whole, key.split("/")
        for name in names[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise UserError(f"the observation keys {key!r} and {key.rpartition('/')[0]!r} cannot be nested")
        if names[-1] in place:
            raise UserError(f"the observation key {key!r} is also the beginning of another key: it cannot be nested")
        place[names[-1]] = leaf
    plain = set(leaves) in ({"vector"}, {"image"})
    observation = next(iter(leaves.values())) if plain else _nested(whole)
    action = _action(spec.action)
    found = form_of(observation, action, "the spaces of these rows").spec
    if found != Spec(spec.obs, spec.action):
        odd = next(key for key in spec.obs if found.obs.get(key) != spec.obs[key])
        raise UserError(f"no gymnasium space means the same as the observation {odd!r}, {spec.obs[odd]}")
    return observation, action


def nested(spec: Spec, columns: dict[str, np.ndarray]) -> Any:
    """Returns observations {k: [T, ..]} nested like the space of `gym_spaces`."""
    if set(spec.obs) in ({"vector"}, {"image"}):
        return next(iter(columns.values()))
    whole: dict[str, Any] = {}
    for key, values in columns.items():
        place = whole
        *outer, last = key.split("/")
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = values
    return whole


def gym_action(action: Action, vectors: np.ndarray) -> Any:
    """Converts vectors [N, A] to actions of the action space of `gym_spaces`."""
    ends = np.cumsum(action.classes, dtype=int)[:-1]
    parts = np.split(vectors[:, : action.onehots], ends, 1) if action.classes else []
    chosen = [part.argmax(1) for part in parts]
    numbers = vectors[:, action.onehots :]
    if len(chosen) == 1 and not action.continuous:
        return chosen[0].astype(np.int64)
    if not chosen:
        return numbers
    classes = np.stack(chosen, 1).astype(np.int64)
    return {"classes": classes, "numbers": numbers} if action.continuous else classes


def _nested(values: dict[str, Any]) -> spaces.Space:
    return spaces.Dict({key: _nested(own) if isinstance(own, dict) else own for key, own in values.items()})


def _leaf(key: str, space: Space) -> spaces.Space:
    dtype = np.dtype(space.dtype)
    if key == MASK and space.classes == 2:
        return spaces.MultiBinary(space.shape[0])
    if space.classes is not None:
        if space.shape == ():
            return spaces.Discrete(space.classes)
        return spaces.MultiDiscrete(np.full(space.shape, space.classes), dtype=dtype.type)
    if space.bounds is not None:
        return spaces.Box(space.bounds[0], space.bounds[1], space.shape, dtype.type)
    if dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, space.shape, dtype.type)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return spaces.Box(low, high, space.shape, dtype.type)


def _action(action: Action) -> spaces.Space:
    numbers = spaces.Box(-1, 1, (action.continuous,), np.float32)
    if not action.classes:
        return numbers
    if len(action.classes) == 1 and not action.continuous:
        return spaces.Discrete(action.classes[0])
    classes = spaces.MultiDiscrete(list(action.classes))
    return spaces.Dict({"classes": classes, "numbers": numbers}) if action.continuous else classes


def _space(form: Any) -> Space:
    shape, dtype, classes, bounds = tuple(form["shape"]), form["dtype"], form.get("classes"), form.get("bounds")
    if not all(type(n) is int and n >= 0 for n in shape) or np.dtype(dtype).kind not in "biuf":
        raise ValueError("the form of an observation is invalid")
    if classes is not None and (type(classes) is not int or classes < 1):
        raise ValueError("a number of classes is invalid")
    if bounds is not None:
        bounds = (float(bounds[0]), float(bounds[1]))
    return Space(shape, np.dtype(dtype).name, classes, bounds)
