"""ViZDoom's own scenarios: `make("basic")`. One step is one tic; the game has 35 tics per second.

To hold each action for four tics, use `--action-repeat 4`, as the preset does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from ._suite import check_choice, extra, find_task


def make(
    task: str,
    size: Sequence[int] = (64, 64),
    crop: Sequence[float] = (0, 1),
    variables: bool = True,
    buttons: int = 1,
    render_mode: str | None = None,
    **options: Any,
) -> gymnasium.Env:
    """Makes one scenario. The agent observes "image" uint8 [height, width, 3] and "variables", such as health.

    size: [height, width]. variables: whether to observe the variables.
    crop: [top, bottom], the rows of the game's picture that the image shows, as fractions of its height.
    buttons: the largest number of buttons that one Discrete action presses; 0: any number, with MultiBinary actions.
    All other options go to ViZDoom's gymnasium.make. Raises ValueError and ImportError.
    """
    with extra("vizdoom"):
        import vizdoom.gymnasium_wrapper  # noqa: F401 its import registers them
    check_choice("vizdoom", "render_mode", render_mode, (None, "rgb_array"))
    if len(crop) != 2 or not 0 <= crop[0] < crop[1] <= 1:
        raise ValueError(f"vizdoom: crop is [top, bottom] with 0 <= top < bottom <= 1, not {list(crop)}")
    known = {
        name.removeprefix("Vizdoom")[:-3]: name
        for name in sorted(gymnasium.registry)
        if name.startswith("Vizdoom") and name.endswith("-v1") and "MultiBinary" not in name
    }
    name = known[find_task("vizdoom", task, known)]
    env = gymnasium.make(
        name, render_mode=render_mode, max_buttons_pressed=buttons, disable_env_checker=True, **options
    )
    return ViZDoom(env, (int(size[0]), int(size[1])), (float(crop[0]), float(crop[1])), variables)


class ViZDoom(gymnasium.Wrapper):
    """A scenario with smaller images. At the end of a game, `step` returns the observation before it again."""

    def __init__(self, env: gymnasium.Env, size: tuple[int, int], crop: tuple[float, float], variables: bool):
        super().__init__(env)
        self._size, self._crop = size, crop
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        game: Any = env.unwrapped
        game.game.set_doom_config_path(str(Path(self._folder.name) / "settings.ini"))  # not in the current folder
        parts: dict[str, gymnasium.Space] = {"image": gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)}
        inner = env.observation_space
        self._variables = variables and "gamevariables" in inner  # type: ignore[operator]
        if self._variables:
            parts["variables"] = inner["gamevariables"]  # type: ignore[index]
        self.observation_space = gymnasium.spaces.Dict(parts)
        self._seen: dict[str, np.ndarray] = {}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begins an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._shown(obs), info

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """Advances by one tic. A time limit truncates the episode; any other end of the game terminates it."""
        obs, reward, over, timeout, info = self.env.step(action)
        if over or timeout:
            return self._seen, float(reward), bool(over and not timeout), bool(timeout), info
        return self._shown(obs), float(reward), False, False, info

    def close(self) -> None:
        """Ends the game."""
        self.env.close()
        self._folder.cleanup()

    def _shown(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        height, width = self._size
        rows = len(obs["screen"])
        top, bottom = (round(edge * rows) for edge in self._crop)
        image = Image.fromarray(obs["screen"][top:bottom]).resize((width, height), Image.Resampling.BILINEAR)
        self._seen = {"image": np.asarray(image)}
        if self._variables:
            self._seen["variables"] = obs["gamevariables"].astype(np.float32)
        return self._seen
