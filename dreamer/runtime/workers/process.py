"""The parent's side of one worker process. Imports no jax.

A worker is a new interpreter, not a fork of this process, so it copies no running jax. Unlike a process that
multiprocessing spawns, it does not import the user's script again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys

from dreamer import plugins
from dreamer.runtime.workers import messages
from dreamer.runtime.workers.child import Part
from dreamer.runtime.workers.interface import Incident
from dreamer.runtime.workers.relay import Relay
from dreamer.runtime.workers.screen import without_screen


class Process:
    """Owns one worker process, the parent's side of its sockets, and the thread that copies what it prints.

    channels: {number of the environment: socket}
    """

    def __init__(self, part: Part, memory: int):
        """Starts the process and returns at once. memory: the file descriptor that `open_memory` returned."""
        plugins.add_folder_for(part.plan.env_name)
        self.part = part
        message = pickle.dumps(part)  # before the process starts, so that an error leaves nothing behind
        pairs = [socket.socketpair() for _ in range(1 + len(part.numbers))]
        self._life, *channels = (ours for ours, _ in pairs)
        self.channels = dict(zip(part.numbers, channels, strict=True))
        life, *others = (theirs.fileno() for _, theirs in pairs)
        # SIGINT comes first: Ctrl-C reaches the whole process group, and only the parent must handle it.
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from dreamer.runtime.workers.child import serve; serve({life}, {memory}, {others})"
        )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],  # -P: no imports from the current folder before the path is set
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                pass_fds=[life, memory, *others], env=_environment(part.plan.render_mode), cwd=part.plan.folder or None,
            )  # fmt: skip
        except BaseException:
            self.hang_up()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()
        self._relay = Relay(self._process)
        with contextlib.suppress(OSError):  # it has died already, which its channels also show
            self._life.sendall(messages.framed(message))

    @property
    def numbers(self) -> tuple[int, ...]:
        """Returns the numbers of the environments that run in the process."""
        return self.part.numbers

    def hang_up(self) -> None:
        """Closes the sockets, so that the worker ends by itself."""
        for channel in (self._life, *self.channels.values()):
            channel.close()

    def kill(self) -> None:
        """Sends SIGKILL to the process and returns at once. `gone` tells when the process has ended."""
        self._process.kill()

    def gone(self, patience: float = 0.0) -> bool:
        """Returns whether the process has ended. Waits up to `patience` seconds for it to end."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        self._relay.join()
        return True

    def death(self, patience: float) -> Incident:
        """Returns an Incident that says how the process died. Call it after the sockets of the process have closed.

        patience: how many seconds to wait for the end of the process
        """
        numbers = self.part.numbers
        first, last = self.part.plan.named(numbers[0]), numbers[-1]
        name = f"env {first!r}" + (f" to #{last}" if len(numbers) > 1 else "")
        if not self.gone(patience):
            return Incident(numbers, "exited", f"the worker process of {name} closed its sockets but still runs", "")
        code = self._process.returncode
        if code >= 0:
            return Incident(numbers, "exited", f"the worker process of {name} died with exit code {code}", "")
        memory = "; was the machine out of memory?" if code == -signal.SIGKILL else ""
        text = f"the worker process of {name} died with signal {signal.Signals(-code).name}{memory}"
        return Incident(numbers, "killed", text, "")


def _environment(render_mode: str | None) -> dict[str, str]:
    """Returns the environment variables of a worker. Variables that are already set keep their values.

    By default, math libraries use one thread, to leave the cores to the learner.
    """
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**threads, **without_screen(os.environ, render_mode), **os.environ}
