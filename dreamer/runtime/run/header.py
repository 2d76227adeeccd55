"""The lines that a run prints before it begins, and the name of its directory when none was given."""

from __future__ import annotations

import time

import jax

from dreamer import agent as agents
from dreamer.config import Config
from dreamer.runtime.run import ratio
from dreamer.runtime.run.learner import Learner
from dreamer.spaces import Space, Spec


def describe(config: Config, spec: Spec, learner: Learner) -> list[str]:
    """The lines that introduce a run."""
    params = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in learner.state.params.items()}
    parts = ", ".join(f"{name} {count:,}" for name, count in params.items())
    dtype = agents.compute_dtype(config.agent.compute_dtype).name
    kinds = {device.device_kind for device in learner.mesh.devices.flat}
    sizes = config.replay
    return [
        f"env: {config.env} x {config.workers.envs}{f' of {spec.agents} agents' if spec.agents > 1 else ''}, "
        f"shows {', '.join(f'{k} {text(s)}' for k, s in spec.obs.items())}, "
        f"takes {spec.action.text}{', masked' if spec.masked else ''}",
        f"agent: {sum(params.values()):,} parameters ({parts}), {dtype} on {learner.mesh.size} x {', '.join(kinds)}",
        ratio.describe(config.replay_ratio, sizes.batch_size, sizes.batch_length),
    ]


def text(space: Space) -> str:
    """A space in a few characters: "uint8 64x64x3", "one of 18"."""
    size = "x".join(map(str, space.shape))
    if space.discrete:
        return f"{size + ' ' if size else ''}one of {space.classes}"
    return f"{space.dtype} {size}"


def default_run_dir(config: Config) -> str:
    """runs/<time>-<env>-seed<seed>."""
    env = "".join(c if c.isalnum() or c in "-_." else "-" for c in config.env)
    return f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{env}-seed{config.seed}"
