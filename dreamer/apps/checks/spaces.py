"""What the spaces of an environment become on their way to the agent. No jax."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
import numpy as np

from dreamer.apps.checks.looks import Key
from dreamer.apps.checks.verdicts import Verdict, counted, ok, warning
from dreamer.runtime.readers import action_reader
from dreamer.spaces import Space

STAGES = 4  # of the encoder's default (agent.world_model.mults): sides are halved as often, down to 3 to 16


def check(env: gymnasium.Env, keys: Sequence[Key]) -> list[Verdict]:
    """A verdict a key, and one for the action. Raises UserError for spaces that are not supported."""
    verdicts = [ok("observation", f"{key.name!r}: {described(key.reader.space)}") for key in keys]
    verdicts += _pictures({key.name: key.reader.space for key in keys if key.reader.space.image})
    return verdicts + _action(env)


def described(space: Space) -> str:
    """One key in words: what it is; how it is encoded, how it is decoded (dreamer/nets/encoder.py, decoder.py)."""
    shape = "x".join(map(str, space.shape))
    if space.image:
        return f"picture {shape} uint8 -> scaled to -0.5..0.5, convolutions; decoded as pixels 0..1, squared error"
    if space.classes is not None:
        many = f"{shape} numbers, each " if space.shape else ""
        kind = f"{many}one of {space.classes} classes"
        return f"{kind} -> one-hot ({space.width} numbers), MLP; decoded as class probabilities, cross-entropy"
    kind = counted(space.width, "number") + (f" ({shape})" if len(space.shape) > 1 else "")
    return f"vector of {kind} {space.dtype} -> symlog, MLP; decoded as symlog values, squared error"


def _pictures(pictures: dict[str, Space]) -> list[Verdict]:
    factor, verdicts = 2**STAGES, []
    for name, space in pictures.items():
        height, width, _ = space.shape
        if height % factor or width % factor or not all(3 <= side // factor <= 16 for side in (height, width)):
            text = (
                f"picture {name!r} is {height}x{width}; the encoder's {STAGES} stages take sides that are multiples of "
                f"{factor} from {3 * factor} to {16 * factor}: resize it in the environment "
                "(gymnasium.wrappers.ResizeObservation), or give agent.world_model.mults another number of stages"
            )
            verdicts.append(warning("picture-size", text))
    if len(sides := {space.shape[:2] for space in pictures.values()}) > 1:
        text = f"the pictures have the sizes {sorted(sides)}; the encoder takes one size for all: resize them"
        verdicts.append(warning("picture-size", text))
    return verdicts


def _action(env: gymnasium.Env) -> list[Verdict]:
    space, kind = env.action_space, action_reader(env)[0]
    if not isinstance(space, gymnasium.spaces.Box) or space.dtype.kind != "f":
        text = f"{space} -> one-hot of {kind.width}" if isinstance(space, gymnasium.spaces.Discrete) else f"{space}"
        return [ok("action", text)]
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
