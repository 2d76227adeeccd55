"""MetaWorld: `make("reach-v3")`, one arm with one of 50 tasks (the MT1 benchmark of the suite).

MetaWorld pins an old MuJoCo that dm_control cannot use, so it needs a separate virtual environment
(experiments/README.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from ._mujoco import choose_graphics
from ._suite import check_choice, extra, find_task

CAMERAS = ("corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
ARM = 4  # numbers of the state that describe the arm: the hand's position and its opening


def make(
    task: str,
    goals: int = 50,
    image: bool = False,
    size: Sequence[int] = (64, 64),
    camera: str = "corner2",
    render_mode: str | None = None,
) -> gymnasium.Env:
    """Makes one task.

    The agent observes "state" [39], which holds the goal. "log/success" [1] is logged and hidden from the agent.
    goals: how many of the suite's 50 settings (positions of the object and the goal) to use; always the first ones.
    image: whether to observe, instead of the whole state, only the state [4] of the arm and an image from `camera`.
    size: [height, width] of the image. Raises ValueError and ImportError.
    """
    check_choice("metaworld", "render_mode", render_mode, (None, "rgb_array"))
    check_choice("metaworld", "camera", camera, CAMERAS)
    if image or render_mode:
        choose_graphics("metaworld")
    with extra("metaworld"):
        import metaworld
    name = find_task("metaworld", task if task.endswith("-v3") else f"{task}-v3", metaworld.ALL_V3_ENVIRONMENTS)
    if not 1 <= goals <= 50:
        raise ValueError(f"metaworld: goals must be from 1 to 50, not {goals}")
    benchmark = metaworld.MT1(name, seed=0)
    height, width = (int(size[0]), int(size[1])) if image else (240, 320)
    env = benchmark.train_classes[name](
        render_mode="rgb_array" if image or render_mode else None, camera_name=camera, height=height, width=width
    )
    # The cameras in the corners hang upside down.
    return MetaWorld(env, benchmark.train_tasks[:goals], image, camera.startswith("corner"), render_mode)


class MetaWorld(gymnasium.Env):
    """A MetaWorld task as a gymnasium environment. Each episode has one of the settings `tasks`, chosen at random."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(self, env: Any, tasks: Sequence[Any], image: bool, flipped: bool, render_mode: str | None):
        self.render_mode = render_mode
        self._env, self._tasks, self._image, self._flipped = env, tasks, image, flipped
        env.set_task(tasks[0])
        width = ARM if image else env.observation_space.shape[0]
        parts: dict[str, gymnasium.Space] = {
            "state": gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32),
            "log/success": gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32),
        }
        if image:
            parts["image"] = gymnasium.spaces.Box(0, 255, (env.height, env.width, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(parts)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, env.action_space.shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begins an episode in a random setting: positions of the object and the goal. Nothing else is random."""
        super().reset(seed=seed)
        self._env.set_task(self._tasks[int(self.np_random.integers(len(self._tasks)))])
        state, info = self._env.reset()
        return self._shown(state, 0.0), info

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Takes one step. The time limit truncates an episode; success does not end it."""
        state, reward, over, cut, info = self._env.step(np.asarray(action, np.float32))
        return self._shown(state, info["success"]), float(reward), bool(over), bool(cut), info

    def render(self) -> np.ndarray:
        """Returns the image uint8 [height, width, 3] that the camera sees."""
        image = self._env.render()
        return np.flipud(image) if self._flipped else image

    def close(self) -> None:
        """Closes the simulator and its graphics."""
        self._env.close()

    def _shown(self, state: np.ndarray, success: float) -> dict[str, np.ndarray]:
        obs = {"state": state.astype(np.float32), "log/success": np.full(1, success, np.float32)}
        if self._image:
            obs["state"] = obs["state"][:ARM]
            obs["image"] = np.ascontiguousarray(self.render())
        return obs
