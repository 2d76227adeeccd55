"""One of the processes that train a run together: its connections, and the decisions that all make in common.

A decision that depends on the clock, the signals or the errors of one process must be the same in all processes. They
agree in `Host.exchange`, which is a collective operation: all processes call it, the same number of times. Process 0
owns the lock, the checkpoints, the metrics and the pictures.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax

from dreamer.errors import UserError, one_line
from dreamer.runtime.devices import distributed
from dreamer.runtime.devices.link import Link
from dreamer.runtime.run.process import Place
from dreamer.runtime.run.stopping import Stopped

T = TypeVar("T")
NOTICED = 2.0  # seconds within which a lost connection to another process is noticed
EXIT = 2  # the exit code of a process that ends because of another one, as of any UserError


class Host:
    """One of the processes that train together, and its connections to the others. Use as a context manager.

    place: its share | agreed: the error that all processes have raised together; None: there is none
    failed: whether this process has failed alone, so that the others end at once
    """

    def __init__(self, name: str = ""):
        """Connects to the other processes. A collective operation. name: for messages; "": process and machine."""
        self.agreed: BaseException | None = None
        self.failed = False
        self._ending: list[Callable[[], object]] = []
        self._ends = threading.Lock()
        index, machine = jax.process_index(), socket.gethostname()
        name = name or f"process {index} (pid {os.getpid()} on {machine})"
        self._link: Link = distributed.link(name, self._end)
        machines = self.exchange(machine)
        self.place = Place(index, self._link.count, machines.count(machine))

    def exchange(self, value: Any) -> list[Any]:
        """Gives `value`, a JSON value, to all processes, and returns the values of all. A collective operation."""
        return self._link.exchange(value)

    def from_first(self, value: Any) -> Any:
        """Returns the JSON value that process 0 gives. A collective operation."""
        return self.exchange(value)[0]

    def together(self, do: Callable[[], T], tell: Callable[[T], Any] = lambda result: None) -> tuple[T, list[Any]]:
        """Calls `do` in all processes and waits for them. Returns its result, and in a list `tell` of each result.

        tell: returns a JSON value. A collective operation. If `do` raises an error or Stopped in one process, then all
        raise: that process its own error, the others one that names the process.
        """
        result: Any = None
        caught: BaseException | None = None
        told: dict[str, Any] = {}
        try:
            result = do()
            told = {"value": tell(result)}
        except (Exception, Stopped) as error:
            caught, told = error, outcome(error)
        every = self.exchange(told)
        self.check(every, caught)
        return result, [one["value"] for one in every]

    def only_first(self, do: Callable[[], object]) -> None:
        """Calls `do` in process 0, and waits for its end in all processes. Raises as `together` does."""
        self.together(do if self.place.first else lambda: None)

    def check(self, every: Sequence[Mapping[str, Any]], own: BaseException | None = None) -> None:
        """Raises if one of the `outcome`s in `every` is an error. own: the error of this process; None: it has none."""
        failed = [i for i, one in enumerate(every) if one.get("error")]
        stopped = [one["signal"] for one in every if one.get("signal")]
        if not failed and not stopped:
            return
        if own is None or (failed and isinstance(own, Stopped)):
            first = failed[0] if failed else 0
            line = f"{self._link.names[first]} failed: {every[first].get('error')}"
            own = UserError(line) if failed else Stopped(stopped[0])
        self.agreed = own
        raise own

    def on_end(self, do: Callable[[], object]) -> None:
        """Registers `do`, which is called before this process ends because another one has failed or is gone."""
        self._ending.append(do)

    def fail(self, error: BaseException) -> None:
        """Ends the other processes, unless all have raised an error together. Waits for nobody.

        This process then ends with exit code 2, and without the shutdown of jax, which would wait for the others.
        If another process is gone, which may be the reason for `error`, this call does not return.
        """
        if self.agreed or self.failed:
            return
        self.failed = True
        time.sleep(NOTICED)  # a lost connection ends this process here, with the name of the other one
        with self._ends:
            self._link.leave(outcome(error).get("error") or "was stopped before the run began")
        distributed.abandon(EXIT)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self.failed:
            self.exchange("done")
            self._link.leave()
        self._link.close()

    def _end(self, line: str) -> NoReturn:
        """Ends this process at once, because another one is gone; a collective operation cannot be interrupted."""
        with self._ends:
            print(f"dreamer: error: {line}; this process ends too, continue with --resume", file=sys.stderr, flush=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # jax would report the same in many lines
            for do in self._ending:
                do()
            os._exit(EXIT)


def outcome(error: BaseException) -> dict[str, Any]:
    """Returns what the other processes must know of an error or a signal, as JSON values."""
    if isinstance(error, Stopped):
        return {"signal": error.code - 128}
    return {"error": " ".join(str(error).split()) if isinstance(error, UserError) else one_line(error)}
