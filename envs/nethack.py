"""NetHack: `make("Score")` is NLE's NetHackScore-v0.

Observations are an image of the surroundings and vectors of numbers. NLE pins an older gymnasium than this library
needs, but also works with the newer gymnasium. The commands that install NLE are in experiments/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from ._nle import NetHack, check_keys, take_over_limit
from ._suite import check_choice, extra, find_task

COMMAND = "pip install --no-deps nle==1.3.0"


def make(
    task: str,
    fields: int = 9,
    size: Sequence[int] = (64, 64),
    keys: Sequence[str] = ("blstats", "message"),
    limit: int | None = None,
    render_mode: str | None = None,
    **options: Any,
) -> gymnasium.Env:
    """Makes one of NLE's tasks.

    fields: the side of the square of map fields around the hero that "image" shows; 0: no image.
    size: [height, width] of the image.
    keys: the observations of NLE to pass on unchanged, such as "blstats" [27] (the numbers of the status lines),
    "message" [256] (its character codes) or "glyphs" [21, 79] (the whole map in 5976 classes).
    limit: the number of steps after which an episode is truncated; None: NLE's own limit, 5,000, or 1,000,000 for the
    Challenge. All other options go to the task's class. Raises ValueError and ImportError.
    """
    with extra("nethack", COMMAND):
        from nle.env import tasks
    check_choice("nethack", "render_mode", render_mode, (None, "rgb_array"))
    known = {name.removeprefix("NetHack"): kind for name, kind in vars(tasks).items() if name.startswith("NetHack")}
    name = find_task("nethack", task, known)
    check_keys("nethack", keys, fields)
    env = known[name](
        render_mode="pixel",
        observation_keys=tuple(dict.fromkeys(("blstats", *keys))),
        fix_moon_phase=True,  # otherwise the game depends on today's date
        **options,
    )
    return NetHack(env, fields, (int(size[0]), int(size[1])), tuple(keys), take_over_limit(env, limit), render_mode)
