"""The first and the last lines that a run prints, and the name of its directory if the user gives none."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import jax

from dreamer import agent as agents
from dreamer.config import NO_ENV, Config
from dreamer.runtime.learning import ratio
from dreamer.runtime.learning.learner import Learner
from dreamer.spaces import Space, Spec

METRICS = "metrics: `dreamer metrics` explains the names below, `dreamer metrics dyn` one of them"


def describe(config: Config, spec: Spec, learner: Learner) -> list[str]:
    """Returns the lines that introduce a run: its environment, agent and replay ratio."""
    params = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in learner.state.params.items()}
    parts = ", ".join(f"{name} {count:,}" for name, count in params.items())
    dtype = agents.compute_dtype(config.agent.compute_dtype).name
    kinds = {device.device_kind for device in learner.mesh.devices.flat}
    sizes = config.replay
    where = f"{config.env} x {config.workers.envs}{f' of {spec.agents} agents' if spec.agents > 1 else ''}"
    pace = ratio.describe(config.replay_ratio, sizes.batch_size, sizes.batch_length)
    if config.updates:
        where = f"{config.env}, to evaluate" if config.env != NO_ENV else "none, no evaluation"
        pace = f"{config.updates:,} updates of {sizes.batch_size} x {sizes.batch_length} steps"
    return [
        f"env: {where}, shows {', '.join(f'{k} {text(s)}' for k, s in spec.obs.items())}, "
        f"takes {spec.action.text}{', masked' if spec.masked else ''}",
        f"agent: {sum(params.values()):,} parameters ({parts}), {dtype} on {learner.mesh.size} x {', '.join(kinds)}",
        pace,
    ]


def text(space: Space) -> str:
    """Returns a short description of a space, such as "uint8 64x64x3" or "one of 18"."""
    size = "x".join(map(str, space.shape))
    if space.discrete:
        return f"{size + ' ' if size else ''}one of {space.classes}"
    return f"{space.dtype} {size}"


def default_run_dir(config: Config) -> str:
    """Returns the run directory to use if the user gives none: runs/<time>-<env>-seed<seed>."""
    name = "offline" if config.env == NO_ENV else config.env
    env = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    return f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{env}-seed{config.seed}"


def next_steps(run_dir: Path, member: str = "") -> list[str]:
    """Returns the last lines that a finished run prints: its directory, and commands that show its results.

    member: the name of a member to play with, if the directory contains a population
    """
    place = _typed(run_dir)
    commands = {
        f"dreamer eval {_typed(run_dir / member)}": "play episodes with the agent",
        f"dreamer report {place}": "draw its curves, scores and videos on a page",
        f"tensorboard --logdir {place}": "browse every metric",
    }
    width = max(map(len, commands))
    return [f"done: {place}", *(f"  {command:{width}}  # {what}" for command, what in commands.items())]


def to_go_on(run_dir: Path) -> str:
    """Returns the command that resumes a run."""
    return f"dreamer train --resume --run-dir {_typed(run_dir)}"


def _typed(run_dir: Path) -> str:
    """Returns a path as a user would type it in a shell: relative if it is below the current folder."""
    here = Path(os.getcwd())
    return shlex.quote(str(run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir))
