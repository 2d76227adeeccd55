"""Copies what a worker process prints to the output of this process. Imports no jax."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading

PATIENCE = 1.0  # seconds to wait for the last lines of a process that has ended


class Relay:
    """Owns the pipes from a process's stdout and stderr, and the thread that copies whole lines from them.

    The lines go to sys.stdout and sys.stderr. The live panel of a run replaces these, so that it prints the lines above
    the panel. A process that writes to the terminal by itself would write into the panel.
    """

    def __init__(self, process: subprocess.Popen):
        """process: started with stdout=PIPE, stderr=PIPE and bufsize=0"""
        self._process = process
        self._thread = threading.Thread(target=self._copy, daemon=True, name="relay")
        self._thread.start()

    def join(self) -> None:
        """Waits until the last lines of an ended process are copied. A child that it left behind may still print."""
        self._thread.join(PATIENCE)

    def _copy(self) -> None:
        process = self._process
        with selectors.DefaultSelector() as pipes, process.stdout, process.stderr:  # type: ignore[union-attr]
            rests = {name: b"" for name in ("stdout", "stderr")}
            for name in rests:
                pipes.register(getattr(process, name), selectors.EVENT_READ, name)
            while pipes.get_map():
                for pipe, _ in pipes.select():
                    data, name = os.read(pipe.fd, 1 << 16), pipe.data
                    whole, newline, rests[name] = (rests[name] + data).rpartition(b"\n")
                    if not data:  # the end of this pipe
                        pipes.unregister(pipe.fileobj)
                        whole, newline, rests[name] = rests[name], b"\n" if rests[name] else b"", b""
                    _write(name, whole + newline)


def _write(name: str, data: bytes) -> None:
    """Writes to sys.stdout or sys.stderr. Drops what it does not accept: the worker must not wait for a full pipe."""
    stream = getattr(sys, name)
    if data and stream is not None:
        try:
            stream.write(data.decode(errors="replace"))
            stream.flush()
        except (OSError, ValueError):  # closed, or a character that its encoding does not have
            pass
