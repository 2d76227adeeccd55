"""Pendulum-v1 seen by a camera: the environment of docs/dream.yaml, and an example of an environment of your own."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.wrappers import AddRenderObservation, TransformObservation
from PIL import Image

VIEW = (106, 106, 394, 394)  # left, top, right, bottom: the part of the 500 x 500 rendering that the rod can reach


def make(side: int = 64, render_mode: str | None = None) -> gymnasium.Env:
    """The pendulum with an image uint8 [side, side, 3] as its only observation. Needs the extra `classic`."""
    env = AddRenderObservation(gymnasium.make("Pendulum-v1", render_mode="rgb_array"), render_only=True)
    space = gymnasium.spaces.Box(0, 255, (side, side, 3), np.uint8)
    return TransformObservation(env, lambda image: _look(image, side), space)


def _look(image: np.ndarray, side: int) -> np.ndarray:
    """A rendering [500, 500, 3] as the camera shows it, [side, side, 3]."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX, box=VIEW))
