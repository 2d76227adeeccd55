"""BSuite: `make("catch/0")` names an experiment and the number of its setting. Each small task tests one skill.

An experiment lasts a fixed number of episodes, `BSuite.episodes`. Every episode ends with `terminated`, even at a time
limit. The experiments mnist, mnist_noise and mnist_scale download their images when they are first made.
"""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium

from ._dm_env import DMEnv
from ._suite import extra, find_task, get_attributes, set_attributes


def make(task: str) -> gymnasium.Env:
    """Makes an experiment in one of its settings; "catch" means "catch/0". Raises ValueError and ImportError."""
    with extra("bsuite"), warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # old texts of the suite
        import bsuite
        from bsuite import sweep
    experiments = sorted({name.split("/")[0] for name in sweep.SWEEP})
    name, _, setting = task.partition("/")
    name = find_task("bsuite", name, experiments)
    known = [known for known in sweep.SWEEP if known.split("/")[0] == name]
    if (wanted := f"{name}/{setting or 0}") not in known:
        raise ValueError(f"bsuite has no task {task!r}; {name} has the settings 0 to {len(known) - 1}")
    return BSuite(bsuite.load(name, sweep.SETTINGS[wanted]))


class BSuite(DMEnv):
    """An environment of the suite. Its observations have one or two axes. It renders no images."""

    metadata = {"render_modes": []}

    @property
    def episodes(self) -> int:
        """The number of episodes in the experiment."""
        return self._env.bsuite_num_episodes

    def get_state(self) -> list[dict[str, Any]]:
        """Returns everything that the next steps depend on."""
        return [{"random": self.np_random.bit_generator.state}, *get_attributes(self._env)]

    def set_state(self, state: list[dict[str, Any]]) -> None:
        """Continues from a state that `get_state` returned."""
        self.np_random.bit_generator.state = state[0]["random"]
        set_attributes(self._env, state[1:])

    def _seed(self, seed: int) -> None:
        """Seeds the random numbers of episodes. The setting still fixes the rest, such as the best arm of a bandit."""
        layer = self._env
        while layer is not None:
            if "_rng" in vars(layer):
                layer._rng.seed(self.np_random.integers(2**32))
            layer = vars(layer).get("_env")
