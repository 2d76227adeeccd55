"""What the spaces of an environment become on their way to the agent. No jax."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np

from dreamer.apps.checks.looks import Key
from dreamer.apps.checks.verdicts import Verdict, counted, ok, warning
from dreamer.runtime.actions import action_reader
from dreamer.spaces import MASK, Space

MASKED = "action mask -> allowed or not, as two classes each; predicted by a head of its own, obeyed in dreams"


def check(env: gymnasium.Env, keys: Sequence[Key]) -> list[Verdict]:
    """A verdict a key, and one for the action. Raises UserError for spaces that are not supported."""
    masked = bool(action_reader(env).action.onehots)
    verdicts = [
        ok("observation", f"{key.name!r}: {MASKED if masked and key.name == MASK else described(key.reader.space)}")
        for key in keys
    ]
    return verdicts + _action(env)


def described(space: Space) -> str:
    """One key in words: what it is; how it is encoded, how it is decoded (dreamer/nets/encoder.py, decoder.py)."""
    shape = "x".join(map(str, space.shape))
    if space.image:
        values = "" if space.bounds is None else f" of {space.bounds[0]:g} to {space.bounds[1]:g}"
        kind = f"picture {shape} {space.dtype}{values}"
        return f"{kind} -> scaled to -0.5..0.5, convolutions; decoded as pixels 0..1, squared error"
    if space.classes is not None:
        many = f"{shape} numbers, each " if space.shape else ""
        kind = f"{many}one of {space.classes} classes"
        return f"{kind} -> one-hot ({space.width} numbers), MLP; decoded as class probabilities, cross-entropy"
    kind = counted(space.width, "number") + (f" ({shape})" if len(space.shape) > 1 else "")
    return f"vector of {kind} {space.dtype} -> symlog, MLP; decoded as symlog values, squared error"


def _action(env: gymnasium.Env) -> list[Verdict]:
    space, kind = env.action_space, action_reader(env).action
    if not isinstance(space, gymnasium.spaces.Box) or space.dtype.kind != "f":
        parts = "one-hots" if kind.discrete else "one-hots and numbers" if kind.onehots else "numbers"
        return [ok("action", f"{space}: {kind.text} -> a vector of {kind.width}, {parts}")]
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    free = ~(np.isfinite(low) & np.isfinite(high))
    verdicts = [ok("action", f"{counted(kind.width, 'number')}, each -1..1 stretched to {_bounds(low, high)}")]
    if free.any():
        text = (
            f"{int(free.sum())} of {kind.width} actions have no finite bounds: the agent uses -1..1 of them only; "
            "say in action_space which values make sense"
        )
        verdicts.append(warning("action-bounds", text))
    if (low >= high).any():
        text = f"{int((low >= high).sum())} of {kind.width} actions have equal bounds: they can do nothing"
        verdicts.append(warning("action-bounds", text))
    return verdicts


def _bounds(low: np.ndarray, high: np.ndarray) -> str:
    low, high = (np.where(np.isfinite(side), side, sign) for side, sign in ((low, -1.0), (high, 1.0)))
    if np.ptp(low) == np.ptp(high) == 0:
        return f"{low.min():.6g}..{high.max():.6g}"
    return "the bounds of each"
