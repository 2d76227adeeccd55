"""How a command's process is started: with huge pages for what the C library allocates.

An update on a CPU takes hundreds of MB of fresh memory and gives them back, each time. In pages of 4 kB that is some
hundred thousand page faults; Linux leaves larger ones to programs that ask, and glibc asks if a tunable tells it to
when a process starts. Figures: benchmarks/README.md.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from dreamer.apps import cli

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNABLES, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def main() -> int:
    """The command `dreamer`; `dreamer train` is first started again, in the same process, where huge pages are left
    to programs that ask. Returns the exit code."""
    if sys.argv[1:2] == ["train"]:
        policy = HUGE_PAGES.read_text() if HUGE_PAGES.exists() else ""
        environment = asking_for_huge_pages(os.environ, policy, c_library())
        if environment is not None:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    return cli.main()


def asking_for_huge_pages(environment: Mapping[str, str], policy: str, library: str) -> dict[str, str] | None:
    """The environment in which glibc asks for huge pages; None if it need not, cannot, or was told already.

    policy: what HUGE_PAGES says | library: "glibc 2.36"
    """
    version = re.fullmatch(r"glibc (\d+)\.(\d+)", library)
    told = environment.get(TUNABLES, "")
    if "[madvise]" not in policy or not version or tuple(map(int, version.groups())) < (2, 35) or TUNABLE in told:
        return None
    return {**environment, TUNABLES: ":".join(filter(None, [told, f"{TUNABLE}=1"]))}


def c_library() -> str:
    """Name and version of the C library, "" where the system does not say."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""
