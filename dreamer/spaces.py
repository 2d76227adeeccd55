"""What an environment shows and takes, as plain numpy facts: `Space`, `Action`, `Spec`. Imports no jax."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

MASK = "action_mask"  # the observation that tells which discrete actions are allowed now
BYTE = (0.0, 255.0)  # bounds of a picture that has none of its own


class Encoding(NamedTuple):
    """How the agent takes and predicts one key of the observation; the networks and `dreamer check` read the same one.

    input: what the encoder sees | network: that sees it | target: what the decoder predicts | loss: between the two
    """

    input: Literal["unit", "one-hot", "symlog"]
    network: Literal["convolutions", "MLP"]
    target: Literal["unit", "one-hot", "symlog"]
    loss: Literal["squared error", "cross-entropy"]


PICTURE = Encoding("unit", "convolutions", "unit", "squared error")
CLASSES = Encoding("one-hot", "MLP", "one-hot", "cross-entropy")
NUMBERS = Encoding("symlog", "MLP", "symlog", "squared error")
CENTRE = 0.5  # a picture is scaled to 0..1, and the encoder takes this off


@dataclasses.dataclass(frozen=True)
class Space:
    """One array of an observation or a stored latent.

    shape: without batch and time axes. dtype: as replay keeps it, numpy's name ("float32", "uint8", "bfloat16").
    classes: number of classes of a discrete value (0 .. classes - 1), None otherwise.
    bounds: the values of a picture from black to white; None for 0 to 255, and for what is no picture.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: int | None = None
    bounds: tuple[float, float] | None = None

    @property
    def discrete(self) -> bool:
        """Whether values are class indices."""
        return self.classes is not None

    @property
    def image(self) -> bool:
        """Whether this is a picture [height, width, channels]: of uint8, or of values within `bounds`."""
        return len(self.shape) == 3 and not self.discrete and (self.dtype == "uint8" or self.bounds is not None)

    @property
    def encoding(self) -> Encoding:
        """How the agent takes and predicts it."""
        return PICTURE if self.image else CLASSES if self.discrete else NUMBERS

    @property
    def ends(self) -> tuple[float, float]:
        """The values of a picture that are black and white to the agent."""
        return self.bounds or BYTE

    @property
    def width(self) -> int:
        """Length of the flat vector that a network sees; a discrete value counts as its one-hot."""
        return math.prod(self.shape) * (self.classes or 1)

    @property
    def device_dtype(self) -> str:
        """The dtype in which an observation reaches the agent: int32 classes, uint8 as it is, all others float32."""
        return "int32" if self.discrete else self.dtype if self.dtype == "uint8" else "float32"


@dataclasses.dataclass(frozen=True)
class Action:
    """What an action is to the agent: one float32 vector [A].

    First one-hots, of `classes` each, then `continuous` numbers normalised to [-1, 1]; either may be missing.
    """

    classes: tuple[int, ...] = ()
    continuous: int = 0

    @property
    def discrete(self) -> bool:
        """Whether it holds one-hots only."""
        return not self.continuous

    @property
    def onehots(self) -> int:
        """Length of all one-hots together."""
        return sum(self.classes)

    @property
    def width(self) -> int:
        """A, the length of the vector."""
        return self.onehots + self.continuous

    @property
    def text(self) -> str:
        """In a few characters: "one of 18", "6 numbers", "2 x one of 3, 1 number"."""
        runs = [(size, len(list(same))) for size, same in itertools.groupby(self.classes)]
        parts = [f"{f'{count} x ' if count > 1 else ''}one of {size}" for size, count in runs]
        if self.continuous:
            parts.append(f"{self.continuous} number{'s' if self.continuous > 1 else ''}")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an environment shows (`obs`, by key) and takes (`action`); of several agents what each of them does."""

    obs: Mapping[str, Space]
    action: Action
    agents: int = 1
    """How many act in one environment, each with rows of its own."""

    @property
    def action_width(self) -> int:
        """A, the length of the action vector."""
        return self.action.width

    @property
    def masked(self) -> bool:
        """Whether an observation MASK tells for each entry of the one-hots whether it is allowed."""
        mask = self.obs.get(MASK)
        return mask is not None and mask.classes == 2 and mask.shape == (self.action.onehots,)


def for_device(spaces: Mapping[str, Space], obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Observations {k: [.., ..]} in the dtypes in which they reach the agent; those that have them are not copied."""
    dtypes = {key: spaces[key].device_dtype for key in obs}
    return {key: x if x.dtype == dtypes[key] else np.asarray(x).astype(dtypes[key]) for key, x in obs.items()}
