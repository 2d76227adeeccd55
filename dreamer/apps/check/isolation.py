"""Runs the check in a separate process, so that an environment that hangs or crashes ends only that process.

This module imports no jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from dreamer import plugins
from dreamer.apps.check.verdicts import Settings, Verdict, wrong
from dreamer.apps.check.watch import Watch
from dreamer.errors import UserError

GRACE = 10.0  # a process that is silent for this many seconds more than the patience is killed
START = 60.0  # seconds in which python and numpy must start
PLACE = 100  # bytes that describe the current stage of the check


def verdicts_of(
    name: str, settings: Settings, progress: Callable[[str], object] = lambda place: None
) -> Iterator[Verdict]:
    """Runs `examine` in another process and yields its verdicts, and one more if that process hangs or dies.

    progress: called about every second with the current stage of the check. Raises UserError as `examine` does, and
    RuntimeError, with the traceback, if the check itself fails.
    """
    plugins.add_folder_for(name)
    with tempfile.TemporaryFile() as place:
        # SIGINT is set first: Ctrl-C reaches the whole group, and only the parent must handle it.
        code = (
            "import signal; signal.signal(signal.SIGINT, lambda *_: None); "
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from dreamer.apps.check.isolation import serve; serve({place.fileno()})"
        )
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[place.fileno()],
        )  # fmt: skip
        with child:  # which closes its pipes
            try:
                _ask(child, name, settings)
                yield from _received(child, place.fileno(), settings.patience, progress)
            finally:
                child.kill()


def _ask(child: subprocess.Popen, name: str, settings: Settings) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has already died; reading its answer reports that
        child.stdin.write(json.dumps([name, dataclasses.asdict(settings)]).encode() + b"\n")  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]


def _received(
    child: subprocess.Popen, place: int, patience: float, progress: Callable[[str], object]
) -> Iterator[Verdict]:
    for message in _messages(child.stdout.fileno(), patience + GRACE):  # type: ignore[union-attr]
        if "verdict" in message:
            yield Verdict(*message["verdict"])
        elif "error" in message:
            raise UserError(message["error"])
        elif "trace" in message:
            raise RuntimeError(f"the check itself failed:\n{message['trace']}")
        elif "end" in message:
            return
        elif "silent" not in message:
            progress(_noted(place))
        elif child.poll() is None:  # it may be dead while its child process holds the pipe open
            text = f"no sign of life for {message['silent']:g} s, last seen in {_noted(place)}: native code that hangs"
            yield wrong("hangs", text)
            return
    code = child.wait()
    how = f"ended with exit code {code}" if code >= 0 else f"died with signal {signal.Signals(-code).name}"
    memory = "; was the machine out of memory?" if code == -signal.SIGKILL else ""
    yield wrong("dies", f"the process of the environment {how}{memory}, last seen in {_noted(place)}")


def _noted(place: int) -> str:
    return os.pread(place, PLACE, 0).decode(errors="replace").strip() or "its start"


def _messages(descriptor: int, patience: float) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects, one per line, that the other process writes to a pipe, until it closes the pipe.

    If the other process is silent for `patience` seconds, yields {"silent": seconds} and ends.
    """
    data, limit = b"", max(patience, START)
    while True:
        if not select.select([descriptor], [], [], limit)[0]:
            yield {"silent": limit}
            return
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            return
        limit = patience
        *lines, data = (data + chunk).split(b"\n")
        yield from map(json.loads, lines)


def serve(place: int) -> None:
    """Runs the check in the separate process. Reads the settings from stdin and writes messages to stdout.

    Anything that the environment prints goes to stderr.

    place: the descriptor of a file, into which the process writes the current stage of the check.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as in the worker processes of a run
    os.set_inheritable(place, False)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(**message: Any) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")
            out.flush()

    def hung(text: str) -> None:
        send(verdict=wrong("hangs", text))
        send(end=True)
        os._exit(0)

    name, settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    watch = Watch(lambda words: os.pwrite(place, words.encode()[:PLACE].ljust(PLACE), 0))
    watch.start(settings["patience"], lambda: send(alive=True), hung)
    try:
        from dreamer.apps.check.examine import examine

        for verdict in examine(name, Settings(**settings), watch):
            send(verdict=verdict)
    except UserError as error:
        send(error=str(error))
    except BaseException:
        send(trace=traceback.format_exc())
    send(end=True)
    os._exit(0)  # threads of the environment may be alive


def _end_with_parent() -> None:
    sys.stdin.read()
    time.sleep(1.0)
    os._exit(1)
