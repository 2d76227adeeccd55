"""PettingZoo's parallel environments, and those of MPE: `make("knights_archers_zombies")`, `make("simple_spread")`.

All agents of a task share one policy, so their spaces must be equal. MPE tasks with roles, such as simple_tag and
simple_adversary, have different spaces and cannot be used. The pip extra `pettingzoo` also suffices for pursuit, but
multiwalker needs the extra `box2d`, too. Images are large, 280 x 480 in cooperative_pong: scale them before training,
with SuperSuit or your own wrapper.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Any

from ._suite import extra, find_task

FAMILIES = ("pettingzoo.butterfly", "pettingzoo.sisl", "mpe2")
_VERSION = re.compile(r"_v\d+$")


def make(task: str, render_mode: str | None = None, **options: Any) -> Any:
    """Makes the ParallelEnv called `task`: "pursuit", or with family and version "sisl/pursuit_v4".

    All other options go to the function parallel_env of the task. Raises ValueError and ImportError.
    """
    known: dict[str, str] = {}
    for family in FAMILIES:
        with extra("pettingzoo"):
            folder = importlib.import_module(family)
        names = [module.name for module in pkgutil.iter_modules(folder.__path__) if _VERSION.search(module.name)]
        known |= {_VERSION.sub("", name): f"{family}.{name}" for name in names}
    wanted = task.rpartition("/")[2]
    module = known[find_task("pettingzoo", _VERSION.sub("", wanted), known)]
    version = _VERSION.search(wanted)
    if version and not module.endswith(version.group()):
        raise ValueError(f"pettingzoo has no task {task!r}; the installed version is {module.rpartition('.')[2]!r}")
    with extra("box2d" if "multiwalker" in module else "pettingzoo"):
        made = importlib.import_module(module)
    return made.parallel_env(render_mode=render_mode, **options)
