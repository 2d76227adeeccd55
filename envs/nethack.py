"""NetHack: `make("Score")` is NLE's NetHackScore-v0. What is seen is the surroundings drawn in tiles, and numbers.

NLE pins an older gymnasium than this library needs, and works with it all the same: experiments/README.md has the
commands that install it.
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
    """One of NLE's tasks.

    fields: how many of the map's fields the image shows, [fields, fields] with the hero in the middle, drawn at
    `size` [height, width] under "image"; 0 for no image. keys: of NLE's observations, shown as they are: "blstats"
    [27] are the numbers of the bottom line, "message" [256] are letters, "glyphs" [21, 79] the whole map as numbers of
    one of 5976 things. limit: steps until an episode is cut off, by default NLE's own, 5,000, or 1,000,000 of the
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
        fix_moon_phase=True,  # else the day of the game is today
        **options,
    )
    return NetHack(env, fields, (int(size[0]), int(size[1])), tuple(keys), take_over_limit(env, limit), render_mode)
