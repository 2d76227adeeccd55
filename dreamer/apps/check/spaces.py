"""Reports how the agent sees the spaces of an environment, based on the agent's own Space and Action.

This module imports no jax.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np

from dreamer.apps.check.looks import Key
from dreamer.apps.check.verdicts import Verdict, counted, note, ok, warning
from dreamer.runtime.env.actions import action_reader, ranges
from dreamer.runtime.env.observations import dropped
from dreamer.spaces import CENTRE, MASK, Space

SEEN = {
    "unit": f"scaled to {-CENTRE:g}..{1 - CENTRE:g}", "one-hot": "one-hot ({width} numbers)", "symlog": "symlog",
}  # fmt: skip
PREDICTED = {"unit": "pixels 0..1", "one-hot": "class probabilities", "symlog": "symlog values"}
MASKED = "action mask -> allowed or not, as two classes each; predicted by its own head, obeyed in dreams"


def check(env: gymnasium.Env, keys: Sequence[Key]) -> list[Verdict]:
    """Returns verdicts on each observation key and on the action. Raises UserError for an unsupported space."""
    masked = bool(action_reader(env).action.onehots)
    verdicts = [
        ok("observation", f"{key.name!r}: {MASKED if masked and key.name == MASK else described(key.reader.space)}")
        for key in keys
    ]
    left_out = [note("observation", f"{key!r}: not given to the agent, {why}") for key, why in dropped(env).items()]
    return verdicts + left_out + _action(env)


def described(space: Space) -> str:
    """Describes one observation key in words: its kind, how it is encoded, and how it is decoded."""
    way = space.encoding
    seen = SEEN[way.input].format(width=space.width)
    return f"{_kind(space)} -> {seen}, {way.network}; decoded as {PREDICTED[way.target]}, {way.loss}"


def _kind(space: Space) -> str:
    shape = "x".join(map(str, space.shape))
    if space.image:
        low, high = space.ends
        return f"picture {shape} {space.dtype} of {low:g} to {high:g}"
    if space.classes is not None:
        many = f"{shape} numbers, each " if space.shape else ""
        return f"{many}one of {space.classes} classes"
    return f"vector of {counted(space.width, 'number')}{f' ({shape})' if len(space.shape) > 1 else ''} {space.dtype}"


def _action(env: gymnasium.Env) -> list[Verdict]:
    space, kind = env.action_space, action_reader(env).action
    if isinstance(space, gymnasium.spaces.Box) and space.dtype.kind == "f":
        low, high, _ = ranges(space)
        first = ok("action", f"{counted(kind.width, 'number')}, each -1..1 stretched to {_span(low, high)}")
    else:
        parts = "one-hots" if kind.discrete else "one-hots and numbers" if kind.onehots else "numbers"
        first = ok("action", f"{space}: {kind.text} -> a vector of {kind.width}, {parts}")
    verdicts = [first, *_unbounded(space), *_powerless(space)]
    if kind.discrete and set(kind.classes) == {1}:
        verdicts.append(warning("action-bounds", "there is only one action: the agent has nothing to choose"))
    return verdicts


def _boxes(space: gymnasium.Space) -> list[gymnasium.spaces.Box]:
    """Returns the Box spaces in an action space, at any depth."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        return [box for inner in _inner(space) for box in _boxes(inner)]
    return [space] if isinstance(space, gymnasium.spaces.Box) else []


def _inner(space: gymnasium.spaces.Dict | gymnasium.spaces.Tuple) -> list[gymnasium.Space]:
    return list(space.values() if isinstance(space, gymnasium.spaces.Dict) else space.spaces)


def _unbounded(space: gymnasium.Space) -> list[Verdict]:
    parts = [ranges(box) for box in _boxes(space)]
    if not parts:
        return []
    low, high, bounded = (np.concatenate(side) for side in zip(*parts, strict=True))
    if bounded.all():
        return []
    text = (
        f"{int((~bounded).sum())} of {bounded.size} actions have no finite bounds: the agent uses "
        f"{_span(low[~bounded], high[~bounded])} only; set meaningful bounds in action_space"
    )
    return [warning("action-bounds", text)]


def _powerless(space: gymnasium.Space) -> list[Verdict]:
    equal = sum(int((box.low == box.high).sum()) for box in _boxes(space))
    many = sum(box.low.size for box in _boxes(space))
    text = f"{equal} of {many} actions have equal bounds: they have no effect"
    return [warning("action-bounds", text)] if equal else []


def _span(low: np.ndarray, high: np.ndarray) -> str:
    if np.ptp(low) == np.ptp(high) == 0:
        return f"{low.min():.6g}..{high.max():.6g}"
    return f"the bounds of each, {low.min():.6g}..{high.max():.6g} in all"
