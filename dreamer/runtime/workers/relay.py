"""Copies what a worker process prints to the output of this process. Imports no jax."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import threading

PATIENCE = 1.0  # seconds to wait for the last lines of a process that has ended
LONGEST = 1 << 16  # bytes of a line that is copied before its end


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
                    text = rests[name] + data
                    end = 1 + max(text.rfind(b"\n"), text.rfind(b"\r"))  # a progress bar ends its lines with "\r"
                    if len(text) - end > LONGEST:
                        end = len(text)
                    if not data:  # the end of this pipe
                        pipes.unregister(pipe.fileobj)
                        text, end = (text + b"\n", len(text) + 1) if text else (text, 0)
                    rests[name] = text[end:]
                    _write(name, text[:end])


def _write(name: str, data: bytes) -> None:
    """Writes to sys.stdout or sys.stderr. Drops what it does not accept: the worker must not wait for a full pipe."""
    stream = getattr(sys, name)
    if data and stream is not None:
        try:
            stream.write(data.decode(errors="replace"))
            stream.flush()
        except (OSError, ValueError):  # closed, or a character that its encoding does not have
            pass
