"""Runs environments in worker processes, each at its own speed. Imports no jax."""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.workers import messages
from dreamer.runtime.workers.child import Part
from dreamer.runtime.workers.faults import as_error, differs, envs_in_words
from dreamer.runtime.workers.interface import Incident, WorkerPlan
from dreamer.runtime.workers.memory import open_memory, resize, rows_in
from dreamer.runtime.workers.process import Process
from dreamer.runtime.workers.remote import PATIENCE, SILENT, START, RemoteWorkers
from dreamer.runtime.workers.table import BUSY, READY, Table
from dreamer.spaces import Spec


class ProcessWorkers(RemoteWorkers[Process]):
    """E environments in worker processes. Rows and actions are in shared memory."""

    backend = "processes"

    def __init__(self, plan: WorkerPlan, processes: int, *, timeout: float = 60.0, restarts: int = 0, why: str = ""):
        """Makes all environments, in `processes` worker processes. Raises UserError if one cannot be made.

        timeout, restarts: as in `Config` | why: the end of the line that `describe` returns
        """
        super().__init__(plan, timeout, restarts)
        self._why = why
        self._poll = select.poll()
        self._numbers: dict[int, int] = {}  # number of the environment by descriptor of its socket
        self._channels: list[int] = [-1] * plan.envs  # descriptors by number
        self._killed: list[Process] = []
        self._memory = open_memory()
        self._known: Spec | None = None  # the Spec that every later environment must have
        try:
            for share in np.array_split(np.arange(plan.envs), processes):
                self._start(tuple(share.tolist()))
            self.spec = self._known = self._specs()
            self.streams = plan.envs * self.spec.agents
            resize(self._memory, self.spec, self.streams)
            self._table = Table(rows_in(self._memory, self.spec, self.streams), self.spec.agents)
            self._dispatch(range(plan.envs))
        except BaseException:
            self.close()
            raise

    def describe(self) -> str:
        """Returns one line of text that says where the environments run, and why."""
        processes = len(set(self._homes.values()))
        return f"workers: {envs_in_words(self.envs, self.spec.agents)} in {processes} processes{self._why}"

    def close(self) -> None:
        """Ends the worker processes by closing their sockets. Kills those that do not end within PATIENCE seconds."""
        homes, self._homes = set(self._homes.values()), {}
        for home in homes:
            home.hang_up()
        deadline = time.monotonic() + PATIENCE
        for home in [*homes, *self._killed]:
            if not home.gone(max(0.0, deadline - time.monotonic())):
                home.kill()
                home.gone(PATIENCE)
                if home in homes:
                    self._faults.note(_not_closed(self._plan, home))
        self._killed = []
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        vars(self).pop("_table", None)  # unmaps the memory

    # ---- rows and actions

    def _receive_answers(self, seconds: float, count: int) -> int:
        """Receives messages, and waits at most `seconds` for the first. Returns the number of ready environments.

        `count` has no effect.
        """
        phase, numbers = self._table.phase, self._numbers
        others: list[tuple[int, bytes, Process]] = []
        for descriptor, _ in self._poll.poll(math.ceil(1000 * seconds)):
            number = numbers[descriptor]
            try:
                kind = os.read(descriptor, 1)
            except OSError:
                kind = b""
            if kind == messages.ROW:
                phase[number] = READY
            else:
                others.append((number, kind, self._homes[number]))
        for number, kind, home in others:
            if self._homes[number] is home:  # the previous message has not replaced it
                self._handle_other(number, kind, home)
        self._look_for_hung()
        return int(np.count_nonzero(phase == READY))

    def _dispatch(self, numbers: Sequence[int]) -> None:
        """Signals to environments that their actions are in the shared memory."""
        self._since[numbers] = np.maximum(self._since[numbers], time.monotonic())
        for number in numbers:
            try:
                os.write(self._channels[number], messages.STEP)
            except OSError:
                pass  # it has died; `_receive_answers` notices and replaces it

    # ---- other messages

    def _handle_other(self, number: int, kind: bytes, home: Process) -> None:
        channel = home.channels[number]
        try:
            if not kind:
                raise EOFError
            channel.settimeout(PATIENCE)
            body = messages.body(channel)
            channel.settimeout(None)
        except (EOFError, OSError):
            self._replace(home, home.death(PATIENCE))
            return
        if kind == messages.END:
            self._table.phase[number] = READY
            self._table.note(number, body, self._plan.named(number))
        elif kind == messages.FAULT:
            self._faults.count(body)
            self._renew(number)
        elif kind == messages.SPEC:  # it is made; from now on the timeout applies
            self._since[number] = time.monotonic()

    def _renew(self, number: int) -> None:
        """Asks the process of environment `number` to replace this environment."""
        self._since[number] = time.monotonic() + self._making
        try:
            messages.send(self._homes[number].channels[number], messages.NEW, self._faults.seed(number))
        except OSError:
            return
        if self._table.phase[number] == BUSY:
            self._dispatch([number])

    def _replace(self, home: Process, incident: Incident, forgiven: bool = False) -> None:
        """Starts a new process for the environments of a failed process. Rows that were already written stay valid."""
        for number, channel in home.channels.items():
            self._poll.unregister(channel)
            del self._numbers[channel.fileno()]
            if self._table.phase[number] == BUSY and self._wrote(number, channel):
                self._table.phase[number] = READY
        home.kill()
        home.hang_up()
        self._killed = [other for other in [*self._killed, home] if not other.gone()]
        self._blame(incident, forgiven)
        self._start(home.numbers)
        self._dispatch([number for number in home.numbers if self._table.phase[number] == BUSY])

    def _wrote(self, number: int, channel: socket.socket) -> bool:
        """Returns whether an environment had written its rows before its process failed.

        Stores the environment's own metrics of ended episodes.
        """
        kind = messages.kind(channel, socket.MSG_DONTWAIT)
        if kind == messages.END:
            channel.settimeout(PATIENCE)
            try:
                self._table.note(number, messages.body(channel), self._plan.named(number))
            except (EOFError, OSError):
                return False
        return kind in (messages.ROW, messages.END)

    def _start(self, numbers: tuple[int, ...]) -> None:
        """Starts a process and returns at once; the environments of the process become ready later."""
        part = Part(self._plan, numbers, tuple(self._faults.seed(number) for number in numbers), self._known)
        home = Process(part, self._memory)
        for number, channel in home.channels.items():
            self._homes[number] = home
            self._numbers[channel.fileno()] = number
            self._channels[number] = channel.fileno()
            self._poll.register(channel, select.POLLIN)
        self._since[list(numbers)] = time.monotonic() + self._making

    def _specs(self) -> Spec:
        """Waits until all environments are made and returns their Spec. Raises UserError if one fails.

        Also raises UserError if the environments have different Specs.
        """
        found: Spec | None = None
        for number, home in sorted(self._homes.items()):
            channel = home.channels[number]
            channel.settimeout(START + self._timeout if self._timeout else None)
            kind = messages.kind(channel)
            try:
                body = messages.body(channel)
            except (EOFError, OSError):
                raise as_error(home.death(PATIENCE)) from None
            channel.settimeout(None)
            if kind == messages.FAULT:
                raise as_error(body, script_hint(str(self._plan.env_name), body.text))
            found = found or body
            if body != found:
                raise UserError(differs(self._plan.named(number), body, found))
        self._since[:] = 0.0
        assert found is not None
        return found

    def _get_states(self) -> list[bytes | str]:
        return self._ask([(number, messages.GET, None) for number in range(self.envs)])

    def _get_image(self, number: int) -> np.ndarray | str | None:
        return self._ask([(number, messages.RENDER, None)])[0]

    def _put_states(self, states: dict[int, bytes]) -> dict[int, str]:
        answers = self._ask([(number, messages.PUT, state) for number, state in states.items()])
        given = {number: (a, {}) if a == SILENT else a for number, a in zip(states, answers, strict=True)}
        for number, (_, finished) in given.items():
            self._table.note(number, finished, self._plan.named(number))
        return {number: why for number, (why, _) in given.items()}

    def _ask(self, questions: Sequence[tuple[int, bytes, Any]]) -> list[Any]:
        """Sends messages to environments that are not stepping, and returns their answers in the same order.

        questions: (number of the environment, kind, body) of each message; body None: the message has no body
        If an environment does not answer, the result has SILENT in its place, and its process is killed. `receive`
        replaces the process later.
        """
        answers: list[Any] = []
        for number, kind, body in questions:
            channel = self._homes[number].channels[number]
            channel.settimeout(self._timeout or None)
            try:
                channel.sendall(kind) if body is None else messages.send(channel, kind, body)
                if messages.kind(channel) not in (messages.STATE, messages.FRAME):
                    raise EOFError
                answers.append(messages.body(channel))
                channel.settimeout(None)
            except (EOFError, OSError):
                answers.append(SILENT)
                self._homes[number].kill()  # `_receive_answers` finds it dead and replaces it
        return answers


def _not_closed(plan: WorkerPlan, home: Process) -> Incident:
    names = ", ".join(repr(plan.named(number)) for number in home.numbers)
    text = f"env {names} had not closed after {PATIENCE:g} seconds; its process was killed"
    return Incident(home.numbers, "not closed", text, "")


def script_hint(env_name: str, message: str) -> str:
    """Returns a hint if `message`, an error, is about an id that only the user's script has registered; else ""."""
    import gymnasium

    if "no registered gymnasium id" in message and env_name in gymnasium.registry:
        return f"; it is registered only in this process: name it 'module:{env_name}', naming the module that does"
    return ""
