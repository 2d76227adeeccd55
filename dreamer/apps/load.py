"""`dreamer.load`: loads the agent of a run directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Literal

from dreamer import plugins
from dreamer.apps.acting import LoadedAgent, MakeEnv, env_of, restore, run_config
from dreamer.apps.team import LoadedTeam
from dreamer.runtime.env.parallel import adapt_agents, is_parallel, sides_of


def load(
    run: str | os.PathLike, *, mode: Literal["sample", "mode"] | None = None, seed: int = 0, step: int | None = None,
    make_env: MakeEnv = None, env_options: Mapping[str, Any] | None = None, trust: bool = False,
) -> LoadedAgent | LoadedTeam:  # fmt: skip
    """Loads the agent of a run directory, ready to act. Raises UserError.

    If the environment has several agents, returns a LoadedTeam, which acts for all of them.

    mode: how to choose actions; None: as in the evaluations of the run. seed: of the sampled actions.
    step: the environment step of the checkpoint; None: the newest.
    make_env: the function given to `train`; needed if the function is not an attribute of a module.
    env_options: changes to the options of the run's environment; its spaces must stay the same.
    trust: import the code that the run names, even if another user or another machine made the run.
    """
    config = run_config(run, env_options, make_env, trust)
    with contextlib.closing(plugins.make_env(env_of(config, make_env), config.env_options)) as env:
        trained = restore(run, env, step, make_env, env_options, trust)
        mode = mode or config.eval.mode
        if not is_parallel(env):
            return LoadedAgent(trained, env, mode=mode, seed=seed, make_env=make_env)
        sides = sides_of(env, config.env)
        known, _ = adapt_agents(env, sides, config.env)
        return LoadedTeam(LoadedAgent(trained, sides[0], mode=mode, seed=seed, known=known), sides)
