"""Conventions that encoder and decoder share for images: groups of equal size, convolutional stages, values in 0..1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer.spaces import Space

Array = jax.Array
SMALLEST, LARGEST = 3, 16  # sides of the grid after the last stage


class Group(NamedTuple):
    """The images of one size, which share their convolutions.

    prefix: the layers' names begin with it; "": there is only one group | keys: the images' keys, sorted
    height, width: the size of the images
    mults: the number of channels of each stage, as a multiple of `depth`. The first stage is the one next to the image.
    """

    prefix: str
    keys: tuple[str, ...]
    mults: tuple[int, ...]
    height: int
    width: int

    @property
    def grid(self) -> tuple[int, int]:
        """The size (height, width) after the last stage. Each stage halves height and width, rounding up."""
        return halved(self.height, len(self.mults)), halved(self.width, len(self.mults))

    @property
    def padded(self) -> tuple[int, int]:
        """The size (height, width) to which images are padded, so that every stage can halve it exactly."""
        return self.grid[0] << len(self.mults), self.grid[1] << len(self.mults)


def groups(spaces: Mapping[str, Space], mults: Sequence[int]) -> list[Group]:
    """Groups the images among `spaces` by size. mults: as in `stages`."""
    sizes: dict[tuple[int, ...], list[str]] = {}
    for key in sorted(key for key, space in spaces.items() if space.image):
        sizes.setdefault(spaces[key].shape[:2], []).append(key)
    return [
        Group(f"{h}x{w}_" if len(sizes) > 1 else "", tuple(keys), stages(h, w, mults), h, w)
        for (h, w), keys in sorted(sizes.items())
    ]


def stages(height: int, width: int, mults: Sequence[int]) -> tuple[int, ...]:
    """Returns the channels of each stage, as multiples of depth, for images of this size.

    They are usually `mults`. If the grid after the last stage would be smaller than 3, the first entries are left out;
    if it would be larger than 16, the last entry is repeated. With 4 mults, images with sides of 33 to 256 pixels have
    4 stages, as in the reference.
    """
    count = len(mults)
    while count and min(halved(height, count), halved(width, count)) < SMALLEST:
        count -= 1
    if count < len(mults):
        return tuple(mults[len(mults) - count :])
    while (
        max(halved(height, count), halved(width, count)) > LARGEST
        and min(halved(height, count + 1), halved(width, count + 1)) >= SMALLEST
    ):
        count += 1
    return (*mults, *[mults[-1]] * (count - len(mults)))


def halved(side: int, times: int) -> int:
    """Returns side / 2**times, rounded up."""
    return -(-side // 2**times)


def to_unit(space: Space, image: Array, dtype: Any = jnp.float32) -> Array:
    """Scales an image [.., H, W, C] to values from 0 to 1, in dtype."""
    if space.bounds is None:
        return image.astype(dtype) / 255
    low, high = space.ends
    return ((image.astype(jnp.float32) - low) / (high - low)).astype(dtype)


def from_unit(space: Space, unit: Array) -> Array:
    """The inverse of `to_unit`: [.., H, W, C] in the dtype that the agent receives. Integers are rounded."""
    low, high = space.ends
    value = unit * 255 if space.bounds is None else low + unit * (high - low)
    whole = not space.dtype.startswith("float")
    return (jnp.round(value) if whole else value).astype(space.device_dtype)
