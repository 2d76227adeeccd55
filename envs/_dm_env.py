"""Wraps DeepMind's dm_env interface as a gymnasium environment, for the suites that use it. Not a suite itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np


class DMEnv(gymnasium.Env):
    """A dm_env.Environment as a gymnasium environment. A last step with discount 0 terminates, any other truncates.

    Arrays of uint8 stay unchanged, all others become float32, with shape [1] for a scalar. Subclasses define `_seed`
    and `render`.
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, env: Any, render_mode: str | None = None):
        self.render_mode = render_mode
        self._env = env
        self.observation_space = _spaces(env.observation_spec())
        self.action_space = _action_space(env.action_spec())

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Begins an episode. A seed also seeds the task's own random numbers."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed(seed)
        return self._observed(self._env.reset().observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Takes one step of the wrapped environment."""
        now = self._env.step(action if self.action_space.shape == () else np.asarray(action, np.float64))
        ended = now.last()
        terminated = bool(ended and now.discount == 0)
        return self._observed(now.observation), float(now.reward or 0.0), terminated, bool(ended and not terminated), {}

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def _seed(self, seed: int) -> None:
        raise NotImplementedError

    def _observed(self, observation: Any) -> Any:
        if isinstance(observation, Mapping):
            return {key: _array(value) for key, value in observation.items()}
        return _array(observation)


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array if array.dtype == np.uint8 else np.atleast_1d(array.astype(np.float32))


def _spaces(spec: Any) -> gymnasium.Space:
    if isinstance(spec, Mapping):
        return gymnasium.spaces.Dict({key: _spaces(inner) for key, inner in spec.items()})
    if spec.dtype == np.uint8:
        return gymnasium.spaces.Box(0, 255, spec.shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, spec.shape or (1,), np.float32)


def _action_space(spec: Any) -> gymnasium.Space:
    if hasattr(spec, "num_values"):
        return gymnasium.spaces.Discrete(spec.num_values)
    low, high = (np.broadcast_to(bound, spec.shape).astype(np.float32) for bound in (spec.minimum, spec.maximum))
    return gymnasium.spaces.Box(low, high, dtype=np.float32)
