"""Environments written in JAX as workers: all of them make a step together, in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.interfaces import Array, JaxEnv
from dreamer.jax_leaves import from_plain, to_plain
from dreamer.runtime.env import state as env_state
from dreamer.runtime.env.own_numbers import named
from dreamer.runtime.env.rows import empty_step
from dreamer.runtime.files import plain_state
from dreamer.runtime.fused import envs as environments
from dreamer.runtime.fused import evaluation
from dreamer.runtime.fused.envs import Envs, Functions
from dreamer.runtime.fused.loop import envs_of, streams_of
from dreamer.runtime.fused.row_checks import check_rows, resets_after
from dreamer.runtime.workers import Incident, Ready, WorkersState
from dreamer.runtime.workers.faults import Faults
from dreamer.runtime.workers.interface import WorkerPlan
from dreamer.runtime.workers.table import BUSY, READY, Table, check_fresh
from dreamer.steps import Step


class Programs(NamedTuple):
    """The compiled functions of an environment. Workers that share them compile them once for each number of copies.

    functions: see `envs.Functions` | begin, turn, metrics: the same, jitted
    render: jitted; None: there is nothing to draw
    player(act) -> the program of an evaluation with `Agent.act`, jitted, see `evaluation.make_play`
    """

    env: JaxEnv
    functions: Functions
    begin: Callable[..., Envs]
    turn: Callable[..., Envs]
    metrics: Callable[[Envs], Mapping[str, Array]]
    render: Callable[..., Array] | None
    player: Callable[[Callable[..., Any]], Callable[..., Any]]


def programs_of(env: JaxEnv) -> Programs:
    """Returns the functions of an environment, which are compiled when they are first called."""
    functions = environments.make(env)
    render = jax.jit(env.render) if env.render else None

    @functools.lru_cache(maxsize=2)  # so that all evaluations of one agent, and of a population, compile it once
    def player(act: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(evaluation.make_play(act, env.spec, functions), static_argnames="mode")

    begin, turn, metrics = (jax.jit(function) for function in functions)  # type: ignore[arg-type]
    return Programs(env, functions, begin, turn, metrics, render, player)


class JaxWorkers:
    """Owns E environments on the first device of this process, with the methods of `Workers`.

    No failure could be repaired by a new environment, so there are no incidents. The fused loop takes the environments,
    and gives them back before a checkpoint.
    """

    backend = "jax"

    def __init__(self, programs: Programs, plan: WorkerPlan):
        """plan: names the environments, and gives their number and seeds. Resets all environments.

        Raises UserError if an environment has a metric whose name the run itself uses.
        """
        self.spec = programs.env.spec
        self.envs, self.folder, self.streams = plan.envs, plan.folder, plan.envs * self.spec.agents
        self._plan, self._faults = plan, Faults(plan, restarts=0)
        self.functions, self._begin, self._turn = programs.functions, programs.begin, programs.turn
        self._metrics, self._render, self.player = programs.metrics, programs.render, programs.player
        self.state: Envs = self._begin(self._keys())
        named(dict.fromkeys(jax.eval_shape(self._metrics, self.state), 0.0), str(plan.env_name))
        self._begun = False
        self._fresh = np.zeros(self.envs, bool)  # the environments that begin at their next step
        self._table = Table(empty_step(self.spec, self.streams), self.spec.agents)

    def receive(self, min_ready: int | None = None, max_wait: float = 0.0) -> Ready:
        """Steps all environments that were sent an action, and returns their next rows [R].

        Raises RuntimeError if no environment was sent an action. With `min_ready` None, also raises it if some were
        not. `max_wait` and the number in `min_ready` have no effect.
        """
        self._table.wanted(min_ready)
        self._step()
        ready = self._table.take()
        self._faults.delivered(ready, self._table.agents)
        return ready

    def send(self, streams: np.ndarray, actions: np.ndarray) -> None:
        """Answers the rows of `streams` [R] with `actions` [R, A]."""
        self._table.answer(streams, actions)

    def finished(self) -> Mapping[int, Mapping[str, float]]:
        """Returns the environments' own metrics of the episodes that end in the last received rows."""
        return self._table.finished

    def render(self, number: int) -> np.ndarray | str | None:
        """Returns an image uint8 [H, W, 3] of an environment, or None if it cannot draw itself."""
        if self._render is None or self._plan.render_mode is None:
            return None
        return np.asarray(self._render(jax.tree.map(lambda x: x[number], self.state.env)))

    def restart(self, number: int) -> None:
        """Gives an environment a new seed. It ignores the next action, and its next row is a reset row."""
        self._faults.resets[number] += 1
        self._fresh[number] = True

    def incidents(self) -> list[Incident]:
        """Returns the incidents since the last call of this method."""
        return self._faults.drain()

    def seed(self, number: int) -> int:
        """Returns the seed of the current copy of environment `number`; each replacement has a new seed."""
        return self._faults.seed(number)

    def named(self, number: int) -> str:
        """Returns the name of environment `number` for messages."""
        return self._plan.named(number)

    def describe(self) -> str:
        """Returns one line: where the environments run, and why."""
        device = jax.local_devices()[0].device_kind
        return f"workers: {self.envs} environments in one program on {device}, because they are written in JAX"

    def states(self) -> WorkersState:
        """Returns the state of every environment, and the rows that were not received yet."""
        self._table.wanted(None)
        self._step()
        return WorkersState(states_of(self.state), self._table.peek(), self._faults.resets.copy())

    def restore(self, states: Sequence[bytes | str], ready: Ready, resets: np.ndarray) -> dict[int, str]:
        """Restores a WorkersState. Returns {number: reason} for the environments that start a new episode instead."""
        check_fresh(self._faults.received, states, ready, self.envs, self._table.agents)
        self._faults.restore(resets)
        columns = _columns(self.state)
        refused = {i: s if isinstance(s, str) else _load(columns, i, s) for i, s in enumerate(states)}
        lost = {number: why for number, why in refused.items() if why}
        kept = [number for number in range(self.envs) if number not in lost]
        self.state = _placed(columns, self.state)
        self._table.put(kept, ready)
        self._note(np.isin(np.arange(self.envs), kept))
        self._begun = True
        for number in lost:
            self.restart(number)
            self._table.phase[number] = BUSY
        return lost

    def give_back(self, state: Envs) -> None:
        """Takes over environments that the fused loop has stepped. Their newest rows are ready to be received.

        Raises UserError if these rows break the contract of a JaxEnv.
        """
        self.state, self._begun = state, True
        self._table.phase[:] = BUSY
        everyone = np.ones(self.envs, bool)
        self._write(everyone)
        self._check(everyone, self._table.rows.is_first)

    def take(self) -> Envs:
        """Returns the environments, for the fused loop. Their newest rows are those that `receive` would return."""
        self._step()
        return self.state

    def shorten_timeouts(self) -> None:
        """Does nothing, because a program on a device cannot be interrupted."""

    def close(self) -> None:
        """Does nothing, because no process and no file is open."""

    def __enter__(self) -> JaxWorkers:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _keys(self) -> Array:
        return environments.env_keys(jnp.array([self._faults.seed(i) for i in range(self.envs)], jnp.uint32))

    def _step(self) -> None:
        busy = self._table.phase == BUSY
        if not busy.any():
            return
        fresh = busy & self._fresh
        begins = np.repeat(fresh, self.spec.agents) | (not self._begun)
        first = begins | resets_after(self.spec, self._table.rows.is_last)
        if self._begun:
            action = envs_of(self.spec, jnp.asarray(self._table.rows.action))
            self.state = self._turn(self.state, action, jnp.asarray(busy & ~fresh))
        if fresh.any():
            self.state = environments.choose(jnp.asarray(fresh), self._begin(self._keys()), self.state)
            self._fresh &= ~fresh
        self._begun = True
        self._write(busy)
        self._check(busy, first)

    def _write(self, busy: np.ndarray) -> None:
        """Copies the newest rows of the environments in `busy` [E] to the table, and marks them as ready."""
        row: Step = jax.tree.map(np.asarray, streams_of(self.spec, self.state.row))
        rows, where = self._table.rows, np.repeat(busy, self.spec.agents)
        for name, array in row.obs.items():
            rows.obs[name][where] = array[where]
        for name in ("reward", "is_first", "is_last", "is_terminal"):
            getattr(rows, name)[where] = getattr(row, name)[where]
        self._table.phase[busy] = READY
        self._note(busy)

    def _check(self, busy: np.ndarray, first: np.ndarray) -> None:
        """Raises UserError if the newest rows of `busy` [E] break the contract of a JaxEnv. first [S]: reset rows."""
        rows, where = self._table.rows, np.repeat(busy, self.spec.agents)
        columns = {**{f"obs/{key}": x for key, x in rows.obs.items()}, **rows._asdict()}
        own = {name: x[:, None] for name, x in columns.items() if name not in ("obs", "action")}
        if not busy.all():  # the other rows were checked before
            own, first = {name: x[where] for name, x in own.items()}, first[where]
        check_rows(self.spec, own, first[:, None], lambda place: self._plan.named(int(np.flatnonzero(busy)[place])))

    def _note(self, fresh: np.ndarray) -> None:
        """Stores the environments' own metrics of the episodes that end in the newest rows of `fresh` [E]."""
        ended = fresh & np.asarray(self.state.row.is_last).reshape(self.envs, -1).any(1)
        own = self._metrics(self.state) if ended.any() else {}
        host = {name: np.asarray(x) for name, x in own.items()}
        for number in np.flatnonzero(ended).tolist() if host else ():
            numbers = {name: float(x[number]) for name, x in host.items()}
            self._table.note(number, dict.fromkeys(range(self.spec.agents), numbers), self._plan.named(number))


def states_of(state: Envs) -> list[bytes]:
    """Returns the state, row and key of each environment as bytes, in a form that `Workers.restore` accepts."""
    columns = _columns(state)
    return [env_state.PLAIN + plain_state.encode([column[i] for column in columns]) for i in range(len(columns[0]))]


def _columns(state: Envs) -> list[np.ndarray]:
    """Returns copies of the leaves [E, ..], in a form that can be encoded, see `to_plain`."""
    return [to_plain(leaf) for leaf in jax.tree.leaves(state)]


def _placed(columns: list[np.ndarray], like: Envs) -> Envs:
    """Returns the environments whose leaves are `columns`; `like` gives the tree and the forms of the leaves."""
    leaves, tree = jax.tree.flatten(like)
    placed = [from_plain(leaf, column) for leaf, column in zip(leaves, columns, strict=True)]
    return jax.device_put(jax.tree.unflatten(tree, placed), jax.local_devices()[0])


def _load(columns: list[np.ndarray], number: int, state: bytes) -> str:
    """Writes the state of environment `number` into `columns`. Returns "" on success, else the reason."""
    try:
        values = [np.asarray(value) for value in plain_state.decode(state.removeprefix(env_state.PLAIN))]
    except (ValueError, TypeError) as error:
        return f"its saved state cannot be read: {error}"
    forms = [(value.shape, value.dtype) for value in values]
    if forms != [(column.shape[1:], column.dtype) for column in columns]:
        return "its saved state has another form: the environment has changed"
    for column, value in zip(columns, values, strict=True):
        column[number] = value
    return ""
