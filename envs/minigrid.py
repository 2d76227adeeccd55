"""MiniGrid: `make("Empty-5x5-v0")` is gymnasium's MiniGrid-Empty-5x5-v0, seen as the picture of its partial view."""

from __future__ import annotations

from typing import Any

import gymnasium


def make(task: str, render_mode: str | None = None, **options: Any) -> gymnasium.Env:
    """One MiniGrid task, its text left out, with a picture [56, 56, 3]. Raises ValueError and ImportError."""
    try:
        from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper
    except ModuleNotFoundError as error:
        advice = 'pip install ".[minigrid]" in the checkout'
        raise ImportError(f"minigrid needs the package {error.name!r}: {advice}") from error
    name = task if task.startswith(("MiniGrid-", "BabyAI-")) else f"MiniGrid-{task}"
    try:
        env = gymnasium.make(name, render_mode=render_mode, disable_env_checker=True, **options)
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(str(error)) from error
    return ImgObsWrapper(RGBImgPartialObsWrapper(env))
