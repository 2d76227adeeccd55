"""DeepMind Control Suite: `make("walker-walk")`. Vectors need no graphics library, pictures need OpenGL."""

from __future__ import annotations

import contextlib
import ctypes.util
import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

CAMERAS = {"quadruped": 2}  # elsewhere camera 0; the quadruped's camera 0 looks past it


def make(
    task: str,
    image: bool = False,
    proprio: bool | None = None,
    size: tuple[int, int] = (64, 64),
    camera: int | None = None,
    render_mode: str | None = None,
) -> gymnasium.Env:
    """One task of the suite, "domain-task" ("walker-walk", "ball_in_cup-catch").

    image: show a picture `size` [height, width] under "image". proprio: show the vectors of the suite, by default when
    there is no picture. camera: number, by default the customary one. Raises ValueError and ImportError.
    """
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"dmc draws with render_mode 'rgb_array', not {render_mode!r}")
    if image or render_mode:
        _choose_graphics()
    suite = _suite()
    domain, name = _split(task, suite.ALL_TASKS)
    with _quiet():
        # The fixed seed makes the random models (lqr) one and the same in every worker; reset(seed) does the rest.
        env = suite.load(domain, name, task_kwargs={"random": 0})
    number = CAMERAS.get(domain, 0) if camera is None else camera
    proprio = not image if proprio is None else proprio
    if not (image or proprio):
        raise ValueError("dmc: with image and proprio both off there is nothing to see")
    return DMC(env, image, proprio, (int(size[0]), int(size[1])), number, render_mode)


class DMC(gymnasium.Env):
    """A dm_control environment with gymnasium's face: float32 vectors by key, scalars as [1].

    The suite's discount tells its two endings apart: 0 is a true end, 1 at the last step a time limit.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self, env: Any, image: bool, proprio: bool, size: tuple[int, int], camera: int, render_mode: str | None
    ):
        self.render_mode = render_mode
        self._env, self._image, self._proprio, self._size, self._camera = env, image, proprio, size, camera
        parts: dict[str, gymnasium.Space] = {}
        if proprio:
            for key, array in env.observation_spec().items():
                parts[key] = gymnasium.spaces.Box(-np.inf, np.inf, array.shape or (1,), np.float32)
        if image:
            parts["image"] = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(parts)
        action = env.action_spec()
        low, high = (np.broadcast_to(bound, action.shape) for bound in (action.minimum, action.maximum))
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begin an episode; `seed` seeds the task's own random numbers."""
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        return self._observed(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One control step of the suite."""
        now = self._env.step(np.asarray(action, np.float64))
        ended = now.last()
        terminated = bool(ended and now.discount == 0)
        return self._observed(now), float(now.reward or 0.0), terminated, bool(ended and not terminated), {}

    def render(self) -> np.ndarray:
        """A picture uint8 [height, width, 3], drawn large enough to be looked at."""
        return self._draw(240, 320)

    def close(self) -> None:
        """Free the simulator and its graphics."""
        self._env.close()

    def _observed(self, now: Any) -> dict[str, np.ndarray]:
        obs = {}
        if self._proprio:
            obs = {key: np.atleast_1d(np.asarray(value, np.float32)) for key, value in now.observation.items()}
        if self._image:
            obs["image"] = self._draw(*self._size)
        return obs

    def _draw(self, height: int, width: int) -> np.ndarray:
        return self._env.physics.render(height, width, camera_id=self._camera)


def _suite() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="glfw")  # it looks for a screen, also where none is needed
            from dm_control import suite
    except ModuleNotFoundError as error:
        # dm_control requires labmaze, which has no wheel for 3.13; the suite does without (pyproject.toml, extra dmc).
        alone = " && pip install --no-deps dm-control" if sys.version_info >= (3, 13) else ""
        command = f'pip install ".[dmc]"{alone}'
        raise ImportError(f"dmc needs the package {error.name!r}: {command} in the checkout") from error
    except Exception as error:
        graphics = f" with MUJOCO_GL={os.environ['MUJOCO_GL']}" if "MUJOCO_GL" in os.environ else ""
        raise ImportError(f"dm_control failed to import{graphics}: {type(error).__name__}: {error}") from error
    return suite


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The suite's own models use what MuJoCo calls deprecated, and it says so once for every environment."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _split(task: str, known: Any) -> tuple[str, str]:
    """The suite's domain and task; both may hold underscores, and any - stands for _."""
    by_name = {f"{domain}_{name}".lower(): (domain, name) for domain, name in known}
    wanted = task.replace("-", "_").lower()
    if wanted not in by_name:
        close = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.4)
        hint = f"; did you mean '{'-'.join(by_name[close[0]])}'?" if close else ""
        raise ValueError(f"dmc has no task {task!r}{hint}")
    return by_name[wanted]


def _choose_graphics() -> None:
    """Let dm_control draw without a screen: it would try one first and fail. Refuses when nothing can draw."""
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
    raise ValueError("dmc cannot draw: no OpenGL library is installed; on Debian or Ubuntu: apt install libegl1 libgl1")
