"""The environment's own metrics of its episodes, logged as `episode/<name>` and `eval/<name>`. Imports no jax.

    info["is_success"]     a scalar of `info` in the last row of an episode, logged as is_success
    obs["log/height"]      an observation key "log/..." of one number, which the agent does not see, logged as
                           height/mean and height/max over all rows of an episode, including the reset row

Nested dicts, arrays and strings in `info` are not logged. Keys "log/..." with several numbers are not logged either.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.spaces import MASK

OURS = ("return", "return_std", "length")  # names that the run itself logs for episodes
PREFIX = "log/"
LONGEST = 100  # characters of a name
_ODD = re.compile(r"[^\w./-]+")


class Tally:
    """Collects the metrics that one environment reports about its current episode.

    space: the observation space | finished {name: value}: the metrics of the episode if it has ended, else {}
    """

    def __init__(self, space: spaces.Space):
        self.keys = dict(_logged(space, ()))
        self._sums: dict[str, list[float]] = {}  # total, rows, highest
        self.finished: dict[str, float] = {}

    def begin(self) -> None:
        """Starts a new episode and clears `finished`."""
        self._sums, self.finished = {}, {}

    def add(self, obs: Any) -> None:
        """Adds the values of the keys "log/..." in one observation. Skips missing keys."""
        for name, path in self.keys.items():
            value = _scalar(_inner(obs, path))
            if value is None:
                continue
            total, rows, highest = self._sums.get(name, [0.0, 0, -math.inf])
            kept = value <= highest or math.isnan(highest)  # NaN stays NaN
            self._sums[name] = [total + value, rows + 1, highest if kept else value]

    def end(self, info: Any) -> None:
        """Ends the episode and sets `finished`. info: the info of its last row."""
        found: dict[str, float] = {}
        for key, value in info.items() if info and isinstance(info, Mapping) else ():
            number = _scalar(value) if key != MASK else None
            if number is not None:
                found[str(key)] = number
        for name, (total, rows, highest) in self._sums.items():
            found[f"{PREFIX}{name}/mean"] = total / rows
            found[f"{PREFIX}{name}/max"] = highest
        self.finished = found

    def state(self) -> dict[str, Any]:
        """Returns {"sums": the sums of each metric in this episode, "finished": `finished`}, as Python values."""
        return {"sums": {name: list(sums) for name, sums in self._sums.items()}, "finished": dict(self.finished)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned. Raises ValueError, TypeError or KeyError for any other value."""
        sums = {str(name): (float(total), int(rows), float(highest)) for name, (total, rows, highest) in
                state["sums"].items()}  # fmt: skip
        if any(rows < 1 for _, rows, _ in sums.values()):
            raise ValueError("its own metrics are sums over no row")
        self._sums = {name: list(values) for name, values in sums.items()}
        self.finished = {str(name): float(value) for name, value in state["finished"].items()}


def named(finished: Mapping[str, float], env: str) -> dict[str, float]:
    """Returns the metrics of a finished episode under their names in the log.

    Characters that are not allowed in these names become "_". finished: from `Tally.finished`
    env: the environment's name in errors. Raises UserError for a name that the run itself uses, that is too long, or
    that two metrics share.
    """
    found: dict[str, float] = {}
    keys: dict[str, str] = {}
    for key, value in finished.items():
        name = _ODD.sub("_", key.removeprefix(PREFIX)).strip("/") or "_"
        what = f"env {env!r}: the {_source(key)} would be logged as episode/{name[:LONGEST]}"
        if name in OURS:
            raise UserError(f"{what}, which the run itself uses; rename it in the environment or in a wrapper")
        if len(name) > LONGEST:
            raise UserError(f"{what}..., which has more than {LONGEST} characters; give it a shorter name")
        if name in found:
            raise UserError(f"{what}, as would the {_source(keys[name])}; rename one of them")
        found[name], keys[name] = value, key
    return found


def check_keys(space: spaces.Space, env: str) -> None:
    """Raises UserError if an observation space has a key "log/..." whose name cannot be logged.

    env: the environment's name in errors.
    """
    named({f"{PREFIX}{name}/mean": 0.0 for name, _ in _logged(space, ())}, env)


def _source(key: str) -> str:
    if key.startswith(PREFIX):
        return f"observation key {key.removesuffix('/mean').removesuffix('/max')!r}"
    return f"info key {key!r}"


def _logged(space: spaces.Space, path: tuple) -> Iterator[tuple[str, tuple]]:
    """Yields (name, path) for each leaf of `space` with one number and a flattened key "log/<name>"."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for key, inner in space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
            yield from _logged(inner, (*path, key))
        return
    key = "/".join(map(str, path))
    if key.startswith(PREFIX) and space.shape is not None and math.prod(space.shape) == 1:
        yield key.removeprefix(PREFIX), path


def _inner(obs: Any, path: tuple) -> Any:
    """Returns the value at `path` in an observation, or None if there is no value at `path`."""
    for key in path:
        try:
            obs = obs[key]
        except (KeyError, IndexError, TypeError):
            return None
    return obs.reshape(()) if isinstance(obs, np.ndarray) and obs.size == 1 else obs


def _scalar(value: Any) -> float | None:
    """Returns a number as a float, or None if `value` is not a number."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if not isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
