"""What an environment shows and takes, as plain numpy facts: `Space`, `Spec`. Imports no jax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Space:
    """One array of an observation, an action or a stored latent.

    shape: without batch and time axes. dtype: numpy's name ("float32", "uint8", "int32", "bfloat16").
    classes: number of classes of a discrete value (0 .. classes - 1), None when continuous.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: int | None = None

    @property
    def discrete(self) -> bool:
        """Whether values are class indices."""
        return self.classes is not None

    @property
    def image(self) -> bool:
        """Whether this is a picture [height, width, channels] of uint8."""
        return len(self.shape) == 3 and self.dtype == "uint8"

    @property
    def width(self) -> int:
        """Length of the flat vector that a network sees; a discrete value counts as its one-hot."""
        return math.prod(self.shape) * (self.classes or 1)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an environment shows (`obs`, by key) and takes (`action`).

    An action is always one float32 vector [A]: the one-hot of a discrete action, or a continuous one
    normalised to [-1, 1]. `action` says which: `classes` is set, or `shape` is (A,).
    """

    obs: Mapping[str, Space]
    action: Space

    @property
    def action_width(self) -> int:
        """A, the length of the action vector."""
        return self.action.width
