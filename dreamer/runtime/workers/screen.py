"""Keeps environments that only render images from opening windows. Imports no jax."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# SDL looks for a screen and a sound card even if pygame draws into memory, and prints errors if there is none.
DRIVERS = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
LINUX = sys.platform == "linux"


def without_screen(environment: Mapping[str, str], render_mode: str | None) -> dict[str, str]:
    """Returns the variables DRIVERS, which keep pygame from opening a window, except those already in `environment`.

    Returns {} if there is a screen (assumed outside Linux) and the render mode is not "rgb_array". Without a screen,
    every render mode needs the variables, because an environment may draw its observations with pygame.
    environment: the environment variables of the process
    """
    if render_mode != "rgb_array" and (not LINUX or any(environment.get(name) for name in SCREENS)):
        return {}
    return {name: driver for name, driver in DRIVERS.items() if name not in environment}


class NoScreen:
    """Sets the variables of `without_screen` in this process, and keeps them until `close`."""

    def __init__(self, render_mode: str | None):
        self._set = without_screen(os.environ, render_mode)
        os.environ.update(self._set)

    def close(self) -> None:
        """Removes the variables. May be called twice."""
        for name in self._set:
            os.environ.pop(name, None)
        self._set = {}
