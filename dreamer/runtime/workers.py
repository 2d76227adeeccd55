"""Many environments, stepped together, in this process or in several. No jax.

Both sets have one face: `receive()` gives a row of every environment, `send(actions)` answers it; the first
receive needs no send and gives the reset rows. A worker process is a fresh interpreter, never a fork: the
user's script is not imported again, and no jax that runs in this process is copied.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from dreamer import plugins
from dreamer.errors import UserError, nearest
from dreamer.runtime.rows import EnvRows, empty_step
from dreamer.runtime.steps import Step
from dreamer.spaces import Spec

_ROWS, _SPEC, _ERROR = b"r", b"s", b"e"  # the first byte of a worker's message
_PATIENCE = 5.0  # seconds that workers get to end by themselves


@dataclasses.dataclass(frozen=True)
class Config:
    """How many environments run, and where."""

    backend: Literal["processes", "inline"] = "processes"
    """Where environments run: in worker processes, or inline in the main one."""
    envs: int = 16
    """Number of environments stepped together."""
    processes: int = 0
    """Number of worker processes; 0 is one per core. Never more than there are environments."""


class Workers(Protocol):
    """A set of E environments that step together.

    spec: Spec | envs: E | send(actions [E, A] float32) | receive() -> Step of E rows, actions zero
    The rows of environments that were is_last ignore their action and reset. Both raise UserError when an
    environment breaks its promises or a worker dies. close() ends everything; it may be called twice.
    """

    spec: Spec
    envs: int

    def send(self, actions: np.ndarray) -> None: ...
    def receive(self) -> Step: ...
    def close(self) -> None: ...
    def __enter__(self) -> Workers: ...
    def __exit__(self, *error: Any) -> None: ...


def make_workers(
    config: Config,
    env_name: str,
    options: Mapping[str, Any] | None = None,
    *,
    action_repeat: int = 1,
    seed: int = 0,
    render_mode: str | None = None,
) -> Workers:
    """`config.envs` copies of one environment; number i is seeded with seed + i. Raises UserError."""
    if config.envs < 1:
        raise UserError(f"workers.envs is {config.envs}; at least one environment is needed")
    if config.processes < 0:
        raise UserError(f"workers.processes is {config.processes}; give 0 (one per core) or more")
    plan = Plan(env_name, dict(options or {}), action_repeat, seed, render_mode, range(config.envs))
    if config.backend == "inline":
        return InlineWorkers(plan)
    if config.backend == "processes":
        return ProcessWorkers(plan, min(config.processes or _cores(), config.envs))
    raise UserError(f"workers.backend {config.backend!r} is unknown{nearest(config.backend, ['processes', 'inline'])}")


class Plan(NamedTuple):
    """Which environments one process runs: `numbers` of the set, seeded with seed + number."""

    env_name: str
    options: dict[str, Any]
    action_repeat: int
    seed: int
    render_mode: str | None
    numbers: range


class InlineWorkers:
    """All environments in this process, in `rows`."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self.envs = len(plan.numbers)
        self.rows = _make_rows(plan)
        self.spec = self.rows[0].spec
        self._actions: np.ndarray | None = np.zeros((self.envs, self.spec.action_width), np.float32)

    def send(self, actions: np.ndarray) -> None:
        """Answer the rows received last with `actions` [E, A]."""
        if self._actions is not None:
            raise RuntimeError("send() was called twice without receive()")
        self._actions = _checked_actions(actions, self.envs, self.spec)

    def receive(self) -> Step:
        """The next row of every environment."""
        if self._actions is None:
            raise RuntimeError("receive() was called twice without send()")
        actions, self._actions = self._actions, None
        out = empty_step(self.spec, self.envs)
        _write_rows(self.rows, actions, out, self._plan)
        return out

    def close(self) -> None:
        """Close the environments."""
        rows, self.rows = self.rows, []
        for row in rows:
            row.close()

    def __enter__(self) -> InlineWorkers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class ProcessWorkers:
    """The environments spread over worker processes, several in each."""

    def __init__(self, plan: Plan, processes: int):
        self.envs = len(plan.numbers)
        shares = [share for share in np.array_split(np.arange(self.envs), processes) if len(share)]
        plans = [plan._replace(numbers=range(int(share[0]), int(share[-1]) + 1)) for share in shares]
        self._workers: list[_Worker] = []
        self._sent = True
        try:
            for part in plans:
                self._workers.append(_Worker(part))
            self.spec: Spec = [pickle.loads(worker.read(_SPEC)) for worker in self._workers][0]
        except BaseException:
            self.close()
            raise

    def send(self, actions: np.ndarray) -> None:
        """Answer the rows received last with `actions` [E, A]."""
        if self._sent:
            raise RuntimeError("send() was called twice without receive()")
        actions = _checked_actions(actions, self.envs, self.spec)
        for worker in self._workers:
            numbers = worker.plan.numbers
            worker.write(actions[numbers.start : numbers.stop].tobytes())
        self._sent = True

    def receive(self) -> Step:
        """The next row of every environment."""
        if not self._sent:
            raise RuntimeError("receive() was called twice without send()")
        out = empty_step(self.spec, self.envs)
        for worker in self._workers:
            numbers = worker.plan.numbers
            rows = _unpack(worker.read(_ROWS), self.spec, len(numbers))
            for whole, part in zip(_arrays(out), rows, strict=True):
                whole[numbers.start : numbers.stop] = part
        self._sent = False
        return out

    def close(self) -> None:
        """End the worker processes: their pipe closes, they go; those that do not are killed."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.connection.close()
        deadline = time.monotonic() + _PATIENCE
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    def __enter__(self) -> ProcessWorkers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, plan: Plan):
        self.plan = plan
        plugins.add_current_folder()
        ours, theirs = socket.socketpair()
        # SIGINT first of all: Ctrl-C reaches the whole group, and only the parent shall answer it.
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from dreamer.runtime.workers import serve; serve({theirs.fileno()})"
        )
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=_environment()
            )
        self.connection = Connection(ours.detach())
        self.write(pickle.dumps(plan))

    def write(self, message: bytes) -> None:
        try:
            self.connection.send_bytes(message)
        except OSError as error:
            # A worker that failed has said why before it went; what it said is still in the pipe.
            self.read(_ROWS)
            raise self._death() from error

    def read(self, expected: bytes) -> memoryview:
        """The body of the next message, which must be of the kind `expected`; raises what the worker raised."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError) as cause:
            raise self._death() from cause
        tag, body = message[:1], memoryview(message)[1:]
        if tag == _ERROR:
            line, trace = pickle.loads(body)
            error = UserError(line + _script_hint(self.plan.env_name, line))
            if trace:
                error.add_note(f"in the worker process:\n{trace}")
            raise error
        if tag != expected:
            raise RuntimeError(f"a worker sent {tag!r} instead of {expected!r}")
        return body

    def _death(self) -> UserError:
        try:
            code = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return UserError(f"the worker of {_named(self.plan)} closed its pipe but still runs")
        name = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        memory = "; was the machine out of memory?" if code == -signal.SIGKILL else ""
        return UserError(f"the worker process of {_named(self.plan)} died with {name}{memory}")


def serve(descriptor: int) -> None:
    """The life of a worker process: read a Plan, send the Spec, then rows for actions until the pipe closes."""
    connection = Connection(descriptor)
    rows: list[EnvRows] = []
    try:
        plan = pickle.loads(connection.recv_bytes())
        rows = _make_rows(plan)
        spec = rows[0].spec
        connection.send_bytes(_SPEC + pickle.dumps(spec))
        actions = np.zeros((len(rows), spec.action_width), np.float32)
        while True:
            out = empty_step(spec, len(rows))
            _write_rows(rows, actions, out, plan)
            connection.send_bytes(b"".join([_ROWS, *(array.tobytes() for array in _arrays(out))]))
            actions = np.frombuffer(connection.recv_bytes(), np.float32).reshape(actions.shape)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has closed the pipe: the end
    except Exception as error:
        try:
            connection.send_bytes(_ERROR + pickle.dumps(_told(error)))
        except OSError:
            pass  # the parent is gone; nobody is left to tell
    finally:
        for row in rows:
            row.close()


def _told(error: Exception) -> tuple[str, str]:
    """An error as the parent tells it: one line, and the traceback when it is not a plain UserError."""
    line = str(error) if isinstance(error, UserError) else f"a worker process failed: {plugins.one_line(error)}"
    plain = isinstance(error, UserError) and error.__cause__ is None
    return line, "" if plain else "".join(traceback.format_exception(error))


def _make_rows(plan: Plan) -> list[EnvRows]:
    rows: list[EnvRows] = []
    try:
        for number in plan.numbers:
            env = plugins.make_env(plan.env_name, plan.options, plan.render_mode)
            name = f"{plan.env_name} #{number}"
            rows.append(EnvRows(env, name=name, seed=plan.seed + number, action_repeat=plan.action_repeat))
    except BaseException:
        for row in rows:
            row.close()
        raise
    return rows


def _write_rows(rows: list[EnvRows], actions: np.ndarray, out: Step, plan: Plan) -> None:
    for index, row in enumerate(rows):
        try:
            row.write(actions[index], out, index)
        except UserError:
            raise
        except Exception as error:
            name = f"{plan.env_name} #{plan.numbers[index]}"
            raise UserError(f"env {name!r} failed: {plugins.one_line(error)}") from error


def _checked_actions(actions: np.ndarray, envs: int, spec: Spec) -> np.ndarray:
    actions = np.ascontiguousarray(actions, np.float32)
    if actions.shape != (envs, spec.action_width):
        raise ValueError(f"actions are {list(actions.shape)}, they must be [{envs}, {spec.action_width}]")
    if not np.isfinite(actions).all():
        raise UserError("the agent's action is not finite: its parameters have diverged")
    return actions


def _arrays(step: Step) -> list[np.ndarray]:
    """The arrays that a worker fills, in the order in which they travel."""
    return [*step.obs.values(), step.reward, step.is_first, step.is_last, step.is_terminal]


def _unpack(body: memoryview, spec: Spec, envs: int) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []
    offset = 0
    for like in _arrays(empty_step(spec, envs)):
        arrays.append(np.frombuffer(body, like.dtype, like.size, offset).reshape(like.shape))
        offset += like.nbytes
    return arrays


def _environment() -> dict[str, str]:
    """Environments compute little; a pool of maths threads in each worker would only fight the learner for cores."""
    return {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _named(plan: Plan) -> str:
    first, last = plan.numbers[0], plan.numbers[-1]
    return f"env '{plan.env_name} #{first}'" + (f" to #{last}" if last > first else "")


def _script_hint(env_name: str, message: str) -> str:
    """An id registered by the user's script exists here but not in a worker."""
    import gymnasium

    if "no registered gymnasium id" in message and env_name in gymnasium.registry:
        return f"; it is registered in this process only: name it 'module:{env_name}', module being what registers it"
    return ""
