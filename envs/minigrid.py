"""MiniGrid and BabyAI: `make("Empty-5x5-v0")` is gymnasium's MiniGrid-Empty-5x5-v0.

Observations do not contain the text of the mission. In tasks with several missions (most of BabyAI), the agent thus
does not see the goal.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from ._suite import Plain, check_choice, extra, find_task

VIEWS = ("picture", "symbols", "whole")


def make(
    task: str, view: str = "picture", tile: int = 8, render_mode: str | None = None, **options: Any
) -> gymnasium.Env:
    """Makes one task. view: what the agent observes.

    view "picture": an image of the 7 x 7 fields ahead, uint8 [7 * tile, 7 * tile, 3]. With tile 8 it is [56, 56, 3].
    view "symbols": the same fields as classes. "image" [147] holds three classes for each field: its object, its colour
        and its state, with at most 11 classes each. "direction" is one of 4 classes.
    view "whole": an image of the whole grid. With tile 8 and a grid of 8 x 8 fields, it is [64, 64, 3].
    All other options go to gymnasium.make. Raises ValueError and ImportError.
    """
    with extra("minigrid"):
        from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper, RGBImgPartialObsWrapper
    check_choice("minigrid", "view", view, VIEWS)
    known = [name for name in sorted(gymnasium.registry) if name.startswith(("MiniGrid-", "BabyAI-"))]
    wanted = task if task.lower().startswith(("minigrid", "babyai")) else f"MiniGrid-{task}"
    name = find_task("minigrid", wanted, known)
    env = gymnasium.make(name, render_mode=render_mode, disable_env_checker=True, **options)
    if view == "symbols":
        return Plain(Symbols(env))
    draw = RGBImgPartialObsWrapper if view == "picture" else RGBImgObsWrapper
    return Plain(ImgObsWrapper(draw(env, tile_size=tile)))


class Symbols(gymnasium.ObservationWrapper):
    """Observes the fields ahead of the agent as classes, as described in `make`."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

        fields = int(np.prod(env.observation_space["image"].shape[:2]))  # type: ignore[index]
        classes = [len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX)] * fields
        parts = {"image": gymnasium.spaces.MultiDiscrete(classes), "direction": gymnasium.spaces.Discrete(4)}
        self.observation_space = gymnasium.spaces.Dict(parts)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Drops the mission and flattens the fields."""
        image = observation["image"].astype(np.int64).ravel()
        return {"image": image, "direction": np.int64(observation["direction"])}
