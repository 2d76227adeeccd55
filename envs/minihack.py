"""MiniHack: `make("Room-5x5-v0")` is MiniHack-Room-5x5-v0, small tasks in NetHack's world.

MiniHack requires NLE, which pins an older gymnasium; experiments/README.md has the command that installs both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium

from ._nle import NetHack, check_keys, take_over_limit
from ._suite import check_choice, extra, find_task

COMMAND = 'pip install "setuptools<81" && pip install --no-deps nle==1.3.0 minihack==1.0.2'


def make(
    task: str,
    fields: int = 9,
    size: Sequence[int] = (64, 64),
    keys: Sequence[str] = ("blstats", "message"),
    limit: int | None = None,
    render_mode: str | None = None,
    **options: Any,
) -> gymnasium.Env:
    """Makes one task. fields, size, keys: as in envs/nethack.py.

    limit: the number of steps after which an episode is truncated; None: the task's own limit.
    All other options go to gymnasium.make. Raises ValueError and ImportError.
    """
    with extra("minihack", COMMAND):
        import minihack  # noqa: F401 its import registers them
    check_choice("minihack", "render_mode", render_mode, (None, "rgb_array"))
    wanted = task if task.lower().startswith("minihack") else f"MiniHack-{task}"
    name = find_task("minihack", wanted, [name for name in sorted(gymnasium.registry) if name.startswith("MiniHack-")])
    check_keys("minihack", keys, fields)
    shown = tuple(dict.fromkeys(("blstats", *keys)))
    env = gymnasium.make(
        name, render_mode="pixel", observation_keys=shown, fix_moon_phase=True, disable_env_checker=True, **options
    ).unwrapped
    return NetHack(env, fields, (int(size[0]), int(size[1])), tuple(keys), take_over_limit(env, limit), render_mode)
