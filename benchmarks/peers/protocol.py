"""The protocol by which two measured programs run alternately. Standard library only.

A measured process writes one JSON line ("hello") when it has compiled and warmed up. For each line "K" that it reads,
it runs K steps and writes {"ms": [..]}. At the end of its input it writes {"rss_mb": ..} and stops.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO


def arguments(obs: Sequence[str] = ("proprio", "image")) -> argparse.ArgumentParser:
    """The arguments of every adapter: the checkout, what is measured, and how. obs: what it can measure"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkout", required=True)
    parser.add_argument("--size", default="size1m")
    parser.add_argument("--obs", choices=obs, default=obs[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 64))
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--policy", action=argparse.BooleanOptionalAction, default=False)
    return parser


def own_stdout() -> TextIO:
    """Returns a stream to stdout for answers, and redirects all other output, of C code too, to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def serve(answers: TextIO, hello: dict[str, Any], step: Callable[[], Any], last: Callable[[], dict]) -> None:
    """Writes `hello`, then runs and times `step` on request. last: returns the facts known only at the end."""
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps({"ms": time_steps(step, int(line))}), file=answers, flush=True)
    print(json.dumps({"rss_mb": peak_rss_mb()} | last()), file=answers, flush=True)


def time_steps(step: Callable[[], Any], count: int) -> list[float]:
    """Milliseconds of each of `count` steps. A step waits for its own results."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def peak_rss_mb() -> int:
    """Peak resident memory of this process in MB. Does not use ru_maxrss, which a child inherits from its parent."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
