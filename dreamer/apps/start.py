"""Starts the process of a command, with huge pages for memory that the C library allocates.

Each update on a CPU allocates hundreds of MB of fresh memory and frees it again. In pages of 4 kB, this causes about a
hundred thousand page faults. Linux gives larger pages to programs that request them; glibc makes this request if a
tunable is set when a process starts. The figures are in benchmarks/README.md.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from dreamer.apps import cli

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PATIENCE = 5.0  # seconds that threads of environments have to end after the command
TUNABLES, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def main() -> int:
    """Runs the command `dreamer` and returns the exit code.

    If huge pages must be requested, `dreamer train` and `dreamer sweep` first execute themselves again, with other
    environment variables.
    """
    if sys.argv[1:2] in (["train"], ["sweep"]):
        policy = HUGE_PAGES.read_text() if HUGE_PAGES.exists() else ""
        environment = asking_for_huge_pages(os.environ, policy, c_library())
        if environment is not None:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    code = cli.main()
    end_in_time(code)
    return code


def end_in_time(code: int, patience: float = PATIENCE) -> None:
    """Makes this process end with the exit code even if threads started by an environment still run.

    Python waits for such threads at exit. All files have been written by then, so the process ends after `patience`
    seconds.
    """

    def end() -> None:
        stuck = [thread.name for thread in threading.enumerate() if not thread.daemon and thread.is_alive()]
        if stuck and not threading.main_thread().is_alive():
            names = ", ".join(map(repr, stuck))
            print(f"threads that nobody has ended still run: {names}; the process ends without them", flush=True)
            os._exit(code)

    timer = threading.Timer(patience, end)
    timer.daemon = True
    timer.start()


def asking_for_huge_pages(environment: Mapping[str, str], policy: str, library: str) -> dict[str, str] | None:
    """Returns the environment variables with which glibc requests huge pages, or None to keep `environment`.

    Returns None if `environment` already has this setting, if no request is needed, or if glibc cannot make it.
    policy: the contents of HUGE_PAGES | library: the C library, such as "glibc 2.36"
    """
    version = re.fullmatch(r"glibc (\d+)\.(\d+)", library)
    given = environment.get(TUNABLES, "")
    if "[madvise]" not in policy or not version or tuple(map(int, version.groups())) < (2, 35) or TUNABLE in given:
        return None
    return {**environment, TUNABLES: ":".join(filter(None, [given, f"{TUNABLE}=1"]))}


def c_library() -> str:
    """Returns the name and version of the C library, or "" if they are unknown."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""
