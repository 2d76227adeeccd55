"""CartPole-v1 seen through a camera: the environment of docs/dream.yaml, and an example of your own environment."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.wrappers import AddRenderObservation, TransformObservation
from PIL import Image

VIEW = (120, 155, 480, 335)  # left, top, right, bottom: the middle of the track in the 600 x 400 rendering
WIDTH, HEIGHT = 64, 32  # pixels


def make(render_mode: str | None = None) -> gymnasium.Env:
    """The pole on its cart with an image uint8 [32, 64, 3] as the only observation. Needs the extra `classic`."""
    env = AddRenderObservation(gymnasium.make("CartPole-v1", render_mode="rgb_array"), render_only=True)
    space = gymnasium.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    return TransformObservation(env, look, space)


def look(rendering: np.ndarray) -> np.ndarray:
    """A rendering [400, 600, 3] as the camera shows it, [32, 64, 3]."""
    image = Image.fromarray(rendering).resize((WIDTH, HEIGHT), Image.Resampling.BOX, box=VIEW)
    return np.asarray(image)
