"""Starts a program of a sweep as a child of the launcher: on its own cores, and not longer than the launcher lives.

    python -m dreamer.apps.sweep.child PARENT CORES WORD ..    PARENT: the launcher's pid; CORES: such as 0,1
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of prctl(2)
GONE = 128 + signal.SIGTERM


def tied(parent: int, cores: set[int]) -> bool:
    """Binds this process to its cores, and to SIGTERM if the launcher dies. Returns whether the launcher still runs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.sched_setaffinity(0, cores)  # before JAX counts the cores
    return os.getppid() == parent


def main(parent: int, cores: set[int], words: list[str]) -> int:
    """Runs `dreamer WORD ..` and returns its exit code."""
    if not tied(parent, cores):
        return GONE
    from dreamer.apps import cli, start

    code = cli.main(words)
    start.end_in_time(code)
    return code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), {int(core) for core in sys.argv[2].split(",")}, sys.argv[3:]))
