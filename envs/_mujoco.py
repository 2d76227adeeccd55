"""How MuJoCo draws without a screen, and its state. No suite itself."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


def choose_graphics(suite: str) -> None:
    """Let dm_control draw without a screen: it would try one first and fail.

    MUJOCO_GL decides when it is set. Raises ValueError when nothing can draw.
    """
    if "MUJOCO_GL" in os.environ or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ:
        return
    if sys.platform != "linux":
        return
    for library, backend in (("EGL", "egl"), ("OSMesa", "osmesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            if "dm_control._render" in sys.modules:  # imported before for vectors alone, and settled on a screen
                importlib.reload(sys.modules["dm_control._render"])
            return
    advice = "on Debian or Ubuntu: apt install libegl1 libgl1, or libosmesa6 and MUJOCO_GL=osmesa"
    raise ValueError(f"{suite} cannot draw: no OpenGL library is installed; {advice}")


@contextlib.contextmanager
def loading(library: str) -> Iterator[None]:
    """Around imports of dm_control: one that is there and does not load is an ImportError that names MUJOCO_GL."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="glfw")  # it looks for a screen, also where none is needed
            yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        graphics = f" with MUJOCO_GL={os.environ['MUJOCO_GL']}" if "MUJOCO_GL" in os.environ else ""
        raise ImportError(f"{library} failed to import{graphics}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """dm_control's own models use what MuJoCo calls deprecated, and it says so once for every environment."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
