"""Gymnasium's CarRacing as World Models (Ha and Schmidhuber 2018) show it: `make("v3")`, images of 64 x 64 pixels.

The lower edge of the game's picture, where bars show speed and steering, is cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from ._suite import extra, find_task

ROAD = 84  # rows of the game's 96 that show the road


def make(task: str, size: Sequence[int] = (64, 64), render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """Makes the game. The agent observes an image uint8 [height, width, 3], and gives steering, gas and brake.

    size: [height, width]. All other options go to gymnasium.make. Raises ValueError and ImportError.
    """
    with extra("box2d"):
        import Box2D  # noqa: F401 which gymnasium would look for when it makes the game only
    name = find_task("car_racing", task, ("v3",))
    env = gymnasium.make(f"CarRacing-{name}", render_mode=render_mode, disable_env_checker=True, **options)
    return Road(env, (int(size[0]), int(size[1])))


class Road(gymnasium.ObservationWrapper):
    """Shows the road only, in another size. size: (height, width)"""

    def __init__(self, env: gymnasium.Env, size: tuple[int, int]):
        super().__init__(env)
        self._size = size
        self.observation_space = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Cuts and scales a picture [96, 96, 3]."""
        height, width = self._size
        return np.asarray(Image.fromarray(observation[:ROAD]).resize((width, height), Image.Resampling.BILINEAR))
