"""Keeps environments that only render images from opening windows. No jax."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# SDL looks for a screen and a sound card even if pygame draws into memory, and prints errors if there is none.
DRIVERS = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
LINUX = sys.platform == "linux"


def without_screen(environment: Mapping[str, str], render_mode: str | None) -> dict[str, str]:
    """Returns the variables to add to `environment` for this render mode. Leaves out variables that the user has set.

    Without a screen, every render mode needs them, because an environment may draw observations with pygame.
    """
    if render_mode != "rgb_array" and (not LINUX or any(environment.get(name) for name in SCREENS)):
        return {}
    return {name: driver for name, driver in DRIVERS.items() if name not in environment}


class NoScreen:
    """Sets environment variables in this process, and keeps them until `close`."""

    def __init__(self, render_mode: str | None):
        self._set = without_screen(os.environ, render_mode)
        os.environ.update(self._set)

    def close(self) -> None:
        """Removes the variables again. May be called again."""
        for name in self._set:
            os.environ.pop(name, None)
        self._set = {}
