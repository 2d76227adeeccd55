"""The code inside a Ray actor, which runs each environment in its own thread. No jax, and no ray.

A slow environment delays only itself, and a resource bound to a thread (a GL context) stays in its thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dreamer.runtime.workers.guarded import Guarded
from dreamer.runtime.workers.interface import Incident, WorkerPlan
from dreamer.spaces import Spec
from dreamer.steps import Step


class Actor:
    """Owns the environments with these `numbers`, each in a thread of its own. Methods can be called concurrently."""

    def __init__(self, plan: WorkerPlan, numbers: Sequence[int], spec: Spec | None, paths: Sequence[str]):
        """Makes no environment yet; `make` does.

        spec: the Spec that the environments must have; None: any | paths: sys.path of the caller, added to that of the
        actor; folders that do not exist on this machine do no harm
        """
        sys.path += [path for path in paths if path not in sys.path]
        self._envs = {number: Guarded(plan, number, spec) for number in numbers}
        self._threads = {number: ThreadPoolExecutor(1) for number in numbers}

    def make(self, number: int, seed: int) -> Spec | Incident:
        """Makes or replaces environment `number`. Returns its Spec, or an Incident if that fails."""
        return self._do(number, self._envs[number].make, seed)

    def step(self, number: int, actions: np.ndarray) -> tuple[Step, dict[int, dict[str, float]]] | Incident:
        """Steps an environment with actions [W, A] of W agents. Returns a Step of W rows, and metrics.

        The metrics {agent: {name: value}} are those that the environment itself reports about episodes that end in
        these rows. Returns an Incident if the environment fails.
        """
        return self._do(number, self._envs[number].step, actions)

    def get_state(self, number: int) -> bytes | str:
        """Returns the state of an environment as bytes, or the reason (str) why it cannot be saved."""
        return self._do(number, self._envs[number].get_state)

    def render(self, number: int) -> np.ndarray | str | None:
        """Returns an image uint8 [H, W, 3], None if the environment does not render, or a reason (str) if it fails."""
        return self._do(number, self._envs[number].render)

    def set_state(self, number: int, state: bytes) -> tuple[str, dict[int, dict[str, float]]]:
        """Restores a state. Returns "" or the reason for a failure, and metrics as in `step`."""
        return self._do(number, self._envs[number].set_state, state)

    def close(self) -> None:
        """Closes all environments and waits for them. If the close() of one hangs, this call does not return."""
        closing = [self._threads[number].submit(env.close) for number, env in self._envs.items()]
        for done in closing:
            done.result()

    def _do(self, number: int, method: Callable[..., Any], *args: Any) -> Any:
        return self._threads[number].submit(method, *args).result()
