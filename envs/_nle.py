"""Wraps NLE as a gymnasium environment, for NetHack and MiniHack. Not a suite itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from ._suite import check_choice

TILE = 16  # pixels


def check_keys(suite: str, keys: Sequence[str], fields: int) -> None:
    """Raises ValueError if NLE has no observation with one of these keys, or if both keys and fields are empty.

    fields: the side of the image in map fields; 0: no image
    """
    from nle.env import base

    for key in keys:
        check_choice(suite, "one of keys", key, dict(base.NLE_SPACE_ITEMS))
    if not (fields or keys):
        raise ValueError(f"{suite}: without fields and keys there is no observation")


def take_over_limit(env: Any, limit: int | None) -> int:
    """Disables the step limit of `env`. Returns the limit to use instead: `limit`, or the former limit if it is None.

    The caller must count the steps, because NLE quits the game at its own limit before it shows the last state.
    """
    own, env._max_episode_steps = env._max_episode_steps, sys.maxsize
    return int(own) if limit is None else limit


class NetHack(gymnasium.Env):
    """A task of NLE as a gymnasium environment. fields, size, keys: as in envs/nethack.py.

    Death or the end of the task terminates an episode. `limit` steps or NLE's status ABORTED truncate it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, env: Any, fields: int, size: tuple[int, int], keys: tuple[str, ...], limit: int, render_mode: str | None
    ):
        self.render_mode = render_mode
        self._env, self._fields, self._size, self._keys, self._limit = env, fields, size, keys, limit
        self._time = 0
        self._seen: dict[str, np.ndarray] = {}
        parts: dict[str, gymnasium.Space] = {key: env.observation_space[key] for key in keys}
        if fields:
            parts["image"] = gymnasium.spaces.Box(0, 255, (*size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(parts)
        self.action_space = env.action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Begins a game. NLE's seeds are drawn from `np_random`; NLE cannot seed the task Challenge."""
        super().reset(seed=seed)
        if not type(self._env).__name__.endswith("Challenge"):
            self._env.seed(*(int(draw) for draw in self.np_random.integers(2**62, size=2)), reseed=False)
        obs, info = self._env.reset()
        self._time = 0
        return self._shown(obs), info

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        """Presses one key. If NLE aborts the game, returns the last observation again.

        NLE aborts the task Challenge after many steps during which the time in the game stands still.
        """
        obs, reward, over, _, info = self._env.step(int(action))
        self._time += 1
        aborted = info["end_status"] == self._env.StepStatus.ABORTED
        seen = self._seen if aborted else self._shown(obs)
        over = bool(over and not aborted)
        return seen, float(reward), over, bool(not over and (aborted or self._time >= self._limit)), info

    def render(self) -> np.ndarray:
        """Returns an image of the whole map, uint8 [336, 1264, 3]."""
        return self._env.render().copy()

    def close(self) -> None:
        """Ends the game."""
        self._env.close()

    def _shown(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._seen = {key: obs[key].copy() for key in self._keys}  # NLE overwrites these arrays
        if self._fields:
            self._seen["image"] = self._surroundings(*obs["blstats"][:2])
        return self._seen

    def _surroundings(self, x: int, y: int) -> np.ndarray:
        """Returns an image of the fields around column x and row y of the map. Fields outside the map are black."""
        half = self._fields // 2
        image = np.zeros((self._fields * TILE, self._fields * TILE, 3), np.uint8)
        drawn = self._env.render()
        rows, columns = drawn.shape[0] // TILE, drawn.shape[1] // TILE
        top, left = max(0, y - half), max(0, x - half)
        part = drawn[top * TILE : min(rows, y - half + self._fields) * TILE,
                     left * TILE : min(columns, x - half + self._fields) * TILE]  # fmt: skip
        row, column = (top - y + half) * TILE, (left - x + half) * TILE
        image[row : row + part.shape[0], column : column + part.shape[1]] = part
        height, width = self._size
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
