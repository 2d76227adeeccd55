"""Acts in the environments and fills the replay: rows in, actions out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dreamer.interfaces import Agent, Params
from dreamer.runtime import devices
from dreamer.runtime.replay import Replay
from dreamer.runtime.steps import Step
from dreamer.runtime.workers import Workers


class Collector:
    """Owns the acting state of all environments: one latent and one previous action each.

    The environments work between `collect` calls: actions are sent at the end of one, rows received in the next.
    """

    def __init__(self, agent: Agent, workers: Workers, replay: Replay, *, seed: int):
        self._policy: Callable[..., Any] = devices.jit_policy(agent)
        self._workers, self._replay = workers, replay
        self._key = jax.random.fold_in(jax.random.key(seed), 1)
        # On the device from the start, as it comes back from the policy: one compilation instead of two.
        self._carry = devices.first_copy(agent.initial_carry(workers.envs))
        self._count = 0

    def collect(self, params: Params) -> Step:
        """Receives a row of every environment, acts, stores the rows, sends the actions. Returns the stored rows.

        On last rows the policy looks too, for its latent, but the action is stored as zeros: nothing answers it.
        """
        envs, step = self._workers.receive()
        self._carry, action, latent = self._policy(
            params, self._key, self._count, self._carry, step.obs, step.is_first, "sample"
        )
        self._count += 1
        action = np.where(step.is_last[:, None], np.float32(0), np.asarray(action))
        step = step._replace(action=action)
        self._replay.add(step, devices.to_host(latent))
        self._workers.send(envs, action)
        return step
