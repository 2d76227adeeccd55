"""The code inside a worker process, which serves each environment on its own socket. Imports no jax.

A single environment runs in the main thread. If there are several, each is made, stepped and closed in its own thread.
A slow environment thus delays only itself, and a resource bound to a thread (a GL context) stays in its thread.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NamedTuple

from dreamer.runtime.workers import messages
from dreamer.runtime.workers.guarded import Guarded
from dreamer.runtime.workers.interface import Incident, WorkerPlan
from dreamer.runtime.workers.memory import rows_in
from dreamer.spaces import Spec
from dreamer.steps import Step

GRACE = 5.0  # seconds in which environments can close after the parent is gone


class Part(NamedTuple):
    """The part of a plan that one process runs: the environments with these `numbers`, with a seed for each.

    spec: the Spec that the environments must have; None: any
    """

    plan: WorkerPlan
    numbers: tuple[int, ...]
    seeds: tuple[int, ...]
    spec: Spec | None


def serve(life: int, memory: int, channels: list[int]) -> None:
    """Runs the environments until the parent closes its sockets.

    life: the file descriptor of a socket that delivers one Part, and shows by closing that the parent is gone
    memory: the file descriptor of the shared memory, see `open_memory`
    channels: the file descriptors of the sockets for messages, one per environment
    """
    # Not SIG_IGN, which child processes of the environments would inherit. Only the parent handles these signals.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # an environment in JAX leaves accelerators to the learner
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a pipe; print shows at once
    for descriptor in (life, memory, *channels):
        os.set_inheritable(descriptor, False)
    parent = socket.socket(fileno=life)
    try:
        part: Part = messages.body(parent)
    except (EOFError, OSError):
        return
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    homes = [
        _Home(part, number, seed, socket.socket(fileno=channel), memory)
        for number, seed, channel in zip(part.numbers, part.seeds, channels, strict=True)
    ]
    if len(homes) == 1:
        homes[0].run()
        return
    threads = [threading.Thread(target=home.run) for home in homes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _end_with(parent: socket.socket) -> None:
    """Waits until the parent is gone, and ends this process GRACE seconds later if environments have not closed."""
    messages.kind(parent)
    time.sleep(GRACE)
    os._exit(1)


class _Home:
    """Owns one environment and answers the parent's messages. All calls run in one thread."""

    def __init__(self, part: Part, number: int, seed: int, channel: socket.socket, memory: int):
        self._env = Guarded(part.plan, number, part.spec)
        self._envs, self._number, self._seed = part.plan.envs, number, seed
        self._channel, self._memory = channel, memory
        self._out: Step | None = None

    def run(self) -> None:
        """Serves messages until the parent closes the socket."""
        try:
            self._send(messages.SPEC, self._env.make(self._seed))
            while kind := self._channel.recv(1):
                if kind == messages.STEP:
                    self._step()
                elif kind == messages.NEW:
                    self._send(messages.SPEC, self._env.make(messages.body(self._channel)))
                elif kind == messages.GET:
                    self._send(messages.STATE, self._env.get_state())
                elif kind == messages.PUT:
                    self._send(messages.STATE, self._env.set_state(messages.body(self._channel)))
                elif kind == messages.RENDER:
                    self._send(messages.FRAME, self._env.render())
        except (EOFError, OSError):
            pass  # the parent is gone
        finally:
            self._env.close()

    def _step(self) -> None:
        """Steps the environment and sends ROW, END or FAULT. Does nothing between a failure and the replacement."""
        spec = self._env.spec
        if spec is None:
            return
        # The parent sizes the memory before it sends the first action.
        out = self._out = self._out or rows_in(self._memory, spec, self._envs * spec.agents)
        incident = self._env.turn(out, self._number)
        if incident:
            self._send(messages.FAULT, incident)
        elif finished := self._env.finished():
            self._send(messages.END, finished)
        else:
            self._channel.send(messages.ROW)

    def _send(self, kind: bytes, body: Any) -> None:
        messages.send(self._channel, messages.FAULT if isinstance(body, Incident) else kind, body)
