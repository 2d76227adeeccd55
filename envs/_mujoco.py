"""Lets MuJoCo render without a screen, and imports dm_control without warnings. Not a suite itself."""

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
    """Selects a renderer for dm_control that needs no screen, because the default renderer fails without one.

    Does nothing if MUJOCO_GL is set, if there is a screen, or outside Linux. Raises ValueError if no renderer is
    installed. suite: its name for the message.
    """
    if "MUJOCO_GL" in os.environ or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ:
        return
    if sys.platform != "linux":
        return
    for library, backend in (("EGL", "egl"), ("OSMesa", "osmesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            if "dm_control._render" in sys.modules:  # an earlier import has chosen a screen
                importlib.reload(sys.modules["dm_control._render"])
            return
    advice = "on Debian or Ubuntu: apt install libegl1 libgl1, or libosmesa6 and MUJOCO_GL=osmesa"
    raise ValueError(f"{suite} cannot draw: no OpenGL library is installed; {advice}")


@contextlib.contextmanager
def loading(library: str) -> Iterator[None]:
    """A context for imports that load dm_control. Hides warnings of glfw, which dm_control imports.

    If `library` is installed but fails to load, raises an ImportError with its name and the value of MUJOCO_GL.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="glfw")  # glfw looks for a screen even if none is needed
            yield
    except ModuleNotFoundError:
        raise
    except Exception as error:
        graphics = f" with MUJOCO_GL={os.environ['MUJOCO_GL']}" if "MUJOCO_GL" in os.environ else ""
        raise ImportError(f"{library} failed to import{graphics}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context that hides MuJoCo's deprecation warnings, which dm_control's models cause in every environment."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
