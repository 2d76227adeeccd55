"""DeepMind Control Suite: `make("walker-walk")`. Images need OpenGL; vectors need no graphics library."""

from __future__ import annotations

import copy
import sys
from typing import Any

import gymnasium
import numpy as np

from ._dm_env import DMEnv
from ._mujoco import choose_graphics, loading, quiet
from ._suite import check_choice, extra, find_task, install

CAMERAS = {"quadruped": 2}  # all others use camera 0; the quadruped's camera 0 looks past it

# The parts of the model that tasks change when an episode begins.
CHANGED = (
    "body_pos", "body_quat", "dof_damping", "geom_pos", "geom_quat", "geom_size", "geom_rgba", "site_pos", "site_rgba",
    "site_size", "light_pos", "wrap_prm",
)  # fmt: skip
COUNTS = ("_step_count", "_reset_next_step")


def make(
    task: str,
    image: bool = False,
    proprio: bool | None = None,
    size: tuple[int, int] = (64, 64),
    camera: int | None = None,
    render_mode: str | None = None,
) -> gymnasium.Env:
    """Makes the environment of a task, named "domain-task" ("walker-walk", "ball_in_cup-catch").

    image: whether to observe an image of `size` [height, width] as "image".
    proprio: whether to observe the task's vectors, such as positions; None: only if there is no image.
    camera: the number of the camera; None: 2 for the quadruped, else 0.
    Raises ValueError for a wrong argument, and ImportError if the extra is not installed.
    """
    check_choice("dmc", "render_mode", render_mode, (None, "rgb_array"))
    if image or render_mode:
        choose_graphics("dmc")
    suite = _suite()
    by_name = {f"{domain}-{name}": (domain, name) for domain, name in suite.ALL_TASKS}
    domain, name = by_name[find_task("dmc", task, by_name)]
    with quiet():
        # With a fixed seed, random models (lqr) are the same in every worker; reset(seed) seeds everything else.
        env = suite.load(domain, name, task_kwargs={"random": 0})
    number = CAMERAS.get(domain, 0) if camera is None else camera
    proprio = not image if proprio is None else proprio
    if not (image or proprio):
        raise ValueError("dmc: with image and proprio both off there is no observation")
    return DMC(env, image, proprio, (int(size[0]), int(size[1])), number, render_mode)


class DMC(DMEnv):
    """A dm_control task as a gymnasium environment. Observations are a dict of float32 vectors, an image, or both."""

    def __init__(
        self, env: Any, image: bool, proprio: bool, size: tuple[int, int], camera: int, render_mode: str | None
    ):
        super().__init__(env, render_mode)
        self._image, self._proprio, self._size, self._camera = image, proprio, size, camera
        parts = dict(self.observation_space.items()) if proprio else {}  # type: ignore[attr-defined]
        if image:
            parts["image"] = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(parts)

    def render(self) -> np.ndarray:
        """Returns an image uint8 [240, 320, 3], large enough for a video."""
        return self._draw(240, 320)

    def get_state(self) -> dict[str, Any]:
        """Returns everything that the next steps depend on. `set_state` computes derived values with `mj_step1`.

        Raises ValueError for quadruped-escape, because its terrain is also stored in the graphics library.
        """
        import mujoco

        model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
        if type(self._env.task).__name__ == "Escape":
            raise ValueError("its terrain, which is random in each episode, cannot be set")
        simulator = np.empty(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model, data, simulator, mujoco.mjtState.mjSTATE_INTEGRATION)
        return {
            "simulator": simulator,
            "model": {key: getattr(model, key).copy() for key in CHANGED},
            "task": copy.deepcopy(vars(self._env.task)),
            "counts": {key: getattr(self._env, key) for key in COUNTS},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned."""
        import mujoco

        model, data = self._env.physics.model.ptr, self._env.physics.data.ptr
        for key, array in state["model"].items():
            getattr(model, key)[:] = array
        mujoco.mj_setState(model, data, state["simulator"], mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_step1(model, data)
        vars(self._env.task).update(copy.deepcopy(state["task"]))
        vars(self._env).update(state["counts"])

    def _seed(self, seed: int) -> None:
        self._env.task.random.seed(seed)

    def _observed(self, observation: Any) -> dict[str, np.ndarray]:
        obs = super()._observed(observation) if self._proprio else {}
        if self._image:
            obs["image"] = self._draw(*self._size)
        return obs

    def _draw(self, height: int, width: int) -> np.ndarray:
        return self._env.physics.render(height, width, camera_id=self._camera)


def _suite() -> Any:
    # dm_control requires labmaze, which has no wheel for 3.13; the suite works without it (pyproject.toml, extra dmc).
    alone = " && pip install --no-deps dm-control" if sys.version_info >= (3, 13) else ""
    with extra("dmc", install("dmc", alone)), loading("dm_control"):
        from dm_control import suite
    return suite
