"""Describes the observations and actions of an environment: `Space`, `Action`, `Spec`. Imports no jax."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

MASK = "action_mask"  # the observation that marks the discrete actions allowed now
UNIT = 1.0  # an action without bounds ranges from -UNIT to UNIT; one with a single bound covers 2 * UNIT next to it
BYTE = (0.0, 255.0)  # bounds of an image whose Space has no bounds


class Encoding(NamedTuple):
    """How the agent encodes and predicts one key of the observation; used by the networks and by `dreamer check`.

    input: the form of the encoder's input; "unit" means scaled to 0..1 | network: the encoder's kind of network
    target: the form of the decoder's target | loss: compares the decoder's output with the target
    """

    input: Literal["unit", "one-hot", "symlog"]
    network: Literal["convolutions", "MLP"]
    target: Literal["unit", "one-hot", "symlog"]
    loss: Literal["squared error", "cross-entropy"]


PICTURE = Encoding("unit", "convolutions", "unit", "squared error")
CLASSES = Encoding("one-hot", "MLP", "one-hot", "cross-entropy")
NUMBERS = Encoding("symlog", "MLP", "symlog", "squared error")
CENTRE = 0.5  # an image is scaled to 0..1, and the encoder subtracts this


@dataclasses.dataclass(frozen=True)
class Space:
    """The form of one array in an observation or in a stored latent.

    shape: without batch and time axes. dtype: name of the numpy dtype in the replay ("float32", "uint8", "bfloat16").
    classes: the number of classes of a discrete value (0 .. classes - 1); None: the value is not discrete.
    bounds: the values of black and white in an image; None: they are 0 and 255, or the array is not an image.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: int | None = None
    bounds: tuple[float, float] | None = None

    @property
    def discrete(self) -> bool:
        """Whether the values are indices of classes."""
        return self.classes is not None

    @property
    def image(self) -> bool:
        """Whether this is an image [height, width, channels]: of uint8, or of values within `bounds`."""
        return len(self.shape) == 3 and not self.discrete and (self.dtype == "uint8" or self.bounds is not None)

    @property
    def encoding(self) -> Encoding:
        """How the agent encodes and predicts the array."""
        return PICTURE if self.image else CLASSES if self.discrete else NUMBERS

    @property
    def ends(self) -> tuple[float, float]:
        """The values of black and white in an image."""
        return self.bounds or BYTE

    @property
    def width(self) -> int:
        """The length of the flat vector that a network sees; a discrete value counts as its one-hot."""
        return math.prod(self.shape) * (self.classes or 1)

    @property
    def device_dtype(self) -> str:
        """The dtype of the observation for the agent: int32 for classes, uint8 unchanged, float32 for all others."""
        return "int32" if self.discrete else self.dtype if self.dtype == "uint8" else "float32"


@dataclasses.dataclass(frozen=True)
class Action:
    """An action as the agent sees it: one float32 vector [A].

    The vector begins with one-hots, whose lengths are `classes`. Then come `continuous` numbers, normalised to [-1, 1].
    Without one-hots, `classes` is (); without numbers, `continuous` is 0.
    """

    classes: tuple[int, ...] = ()
    continuous: int = 0

    @property
    def discrete(self) -> bool:
        """Whether the action consists of one-hots only."""
        return not self.continuous

    @property
    def onehots(self) -> int:
        """The total length of the one-hots."""
        return sum(self.classes)

    @property
    def width(self) -> int:
        """A, the length of the vector."""
        return self.onehots + self.continuous

    @property
    def text(self) -> str:
        """The action in words: "one of 18", "6 numbers", "2 x one of 3, 1 number"."""
        runs = [(size, len(list(same))) for size, same in itertools.groupby(self.classes)]
        parts = [f"{f'{count} x ' if count > 1 else ''}one of {size}" for size, count in runs]
        if self.continuous:
            parts.append(f"{self.continuous} number{'s' if self.continuous > 1 else ''}")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Spec:
    """The observations (`obs`, by key) and the action of an environment, or of each of its agents if it has several."""

    obs: Mapping[str, Space]
    action: Action
    agents: int = 1
    """Number of agents in one environment, each with its own rows."""

    @property
    def action_width(self) -> int:
        """A, the length of the action vector."""
        return self.action.width

    @property
    def masked(self) -> bool:
        """Whether the observation has an "action_mask", which marks the allowed entries of the action's one-hots."""
        mask = self.obs.get(MASK)
        return mask is not None and mask.classes == 2 and mask.shape == (self.action.onehots,)


def choosable(low: np.ndarray, high: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (lowest, highest, bounded): the range from which the agent can choose each number of an action.

    low, high: the environment's bounds, float64; from -most or most on they are no bounds
    lowest, highest: a number with two bounds has them as its range; one with a single bound covers the 2 * UNIT next to
    it; one without bounds ranges from -UNIT to UNIT | bounded: whether it has two bounds
    """
    has_low, has_high = low > -most, high < most
    lowest = np.where(has_low, low, np.where(has_high, high - 2 * UNIT, -UNIT))
    return lowest, np.where(has_high, high, np.where(has_low, low + 2 * UNIT, UNIT)), has_low & has_high


def for_device(spaces: Mapping[str, Space], obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns observations {k: [.., ..]} in the agent's dtypes; arrays that already have them are not copied."""
    dtypes = {key: spaces[key].device_dtype for key in obs}
    return {key: x if x.dtype == dtypes[key] else np.asarray(x).astype(dtypes[key]) for key, x in obs.items()}
