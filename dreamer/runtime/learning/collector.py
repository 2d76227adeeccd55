"""Acts in the environments and fills the replay, in the main thread or in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from dreamer.interfaces import Agent
from dreamer.runtime.devices import placement, programs
from dreamer.runtime.devices.programs import PolicyPart
from dreamer.runtime.learning.learner import PolicyParams
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.workers import Ready, Workers
from dreamer.spaces import for_device

BUCKETS = 3  # number of batch sizes to compile the policy for: all environments, a half, a quarter


class Collector:
    """Acts in the environments and stores their rows in the replay.

    Owns the acting state of all streams: one latent and one previous action for each agent of each environment.
    policy: the compiled function that acts
    The environments step between `collect` calls: one call ends by sending actions, and the next receives the rows.
    """

    def __init__(
        self, agent: Agent, part: PolicyPart, workers: Workers, replay: Replay, *, seed: int,
        policy: Callable[..., Any] | None = None, process: int = 0,
    ):  # fmt: skip
        """policy: that of another Collector with the same agent, which is then compiled once for both.

        process: the number of this process, if several train together; each draws other random numbers
        """
        self.policy: Callable[..., Any] = policy or programs.jit_act(agent, part.whole)
        self._workers, self._replay = workers, replay
        self._key = jax.random.fold_in(jax.random.key(seed), 1)
        if process:
            self._key = jax.random.fold_in(self._key, process)
        # On the device from the start, like the results of the policy, to compile it once instead of twice.
        self._carry = placement.first_copy(agent.initial_carry(workers.streams))
        self._count = 0
        self.seconds_for_envs = 0.0

    def collect(self, snapshot: PolicyParams, min_ready: int | None = None, max_wait: float = 0.0) -> Ready:
        """Receives rows, acts, stores the rows and sends the actions. Returns the stored rows.

        snapshot: the parameters to act with. min_ready: the number of environments to wait for; None: all.
        max_wait: the seconds after which one ready environment is enough. It is ignored if min_ready is None.
        The policy also runs on the last rows of episodes to get their latents. Its actions for them are not executed;
        zeros are stored instead.
        """
        start = time.monotonic()
        streams, step = self._workers.receive(min_ready, max_wait)
        self.seconds_for_envs += time.monotonic() - start
        rows, full = len(streams), self._bucket(len(streams))
        obs = for_device(self._workers.spec.obs, step.obs)
        self._carry, action, latent = self.policy(
            snapshot.leaves, self._key, self._count, self._carry, {k: _fill(x, full) for k, x in obs.items()},
            _fill(step.is_first, full), "collect", _fill(streams, full, self._workers.streams),
        )  # fmt: skip
        self._count += 1
        action = np.where(step.is_last[:, None], np.float32(0), np.asarray(action)[:rows])
        step = step._replace(action=action)
        self._replay.add(step, {name: x[:rows] for name, x in placement.to_host(latent).items()}, streams)
        self._workers.send(streams, action)
        return Ready(streams, step)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the acting state: {"carry/0000": [E, ..], .., "count": []}.

        These are the leaves of the carry, and the number of policy calls.
        """
        leaves = jax.tree.leaves(placement.to_host(self._carry))
        return {**{f"carry/{i:04d}": leaf for i, leaf in enumerate(leaves)}, "count": np.int64(self._count)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores what `state` returned; the leaves of the carry are [E, ..]."""
        leaves, tree = jax.tree.flatten(self._carry)
        saved = [state[f"carry/{i:04d}"].astype(leaf.dtype) for i, leaf in enumerate(leaves)]
        self._carry = placement.first_copy(jax.tree.unflatten(tree, saved))
        self._count = int(state["count"])

    def _bucket(self, rows: int) -> int:
        """Returns the smallest compiled batch size not below `rows`. So a few programs serve all numbers of rows."""
        full = self._workers.streams
        return min(size for size in (-(-full // 2**i) for i in range(BUCKETS)) if size >= rows)


class Collecting:
    """Owns a thread that calls `turn` again and again until it returns False. Use as a context manager.

    turn: collects once, and returns whether there is more to collect. If `turn` raises an error, the thread ends and
    `check` raises that error.
    """

    def __init__(self, turn: Callable[[], bool]):
        self._turn = turn
        self._between = threading.Lock()
        self._changed = threading.Condition()
        self._pauses, self._closed = 0, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def check(self) -> None:
        """Raises the error that ended the thread, if there is one."""
        if self._error is not None:
            raise self._error

    @property
    def failed(self) -> bool:
        """Whether an error has ended the thread."""
        return self._error is not None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the thread does not collect. First waits until the current call of `turn` has ended."""
        with self._changed:
            self._pauses += 1
        try:
            with self._between:
                yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def __enter__(self) -> Collecting:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._may_collect():
                with self._between:
                    if not self._turn():
                        return
        except BaseException as error:
            self._error = error

    def _may_collect(self) -> bool:
        """Waits until no context of `paused` is open. Returns False if `Collecting` is closed, else True."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._pauses)
            return not self._closed


def _fill(array: np.ndarray, rows: int, value: Any = 0) -> np.ndarray:
    """Returns `array` [n, ..] padded to [rows, ..] with `value`."""
    if len(array) == rows:
        return array
    rest = np.full((rows - len(array), *array.shape[1:]), value, array.dtype)
    return np.concatenate([array, rest])
