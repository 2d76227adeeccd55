"""Several updates in one call of the device beside single calls: milliseconds of an update, in turns in one process.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.several_updates --size size1m --updates 8 --rounds 5

What the host does for an update is included, as fetching its results and copying the parameters that act, but not
drawing and writing back. The order is reversed in every second round. Ratio: one call divided by single calls.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import measure, serve
from dreamer import agent as agents
from dreamer.runtime.learning.learner import Learner
from dreamer.steps import Rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    serve.add_arguments(parser)
    parser.add_argument("--updates", type=int, default=8, help="in one call")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config, spec, count = measure.load(args.size, args.dtype, {}), measure.SPECS[args.obs], args.updates
    agent = agents.make(config, spec)
    learner = Learner(agent, spec, seed=0, batch_size=args.batch[0], lockstep=False)
    batch = learner.place(measure.make_batch(spec, agent, *args.batch))
    rows = Rows(np.zeros(args.batch[0], int), np.zeros(tuple(args.batch), np.int64))
    learner.compile(batch)
    learner.compile_several([batch] * count)

    def single() -> None:
        for _ in range(count):
            learner.fetch(learner.step(batch, rows))

    def several() -> None:
        learner.fetch_several(learner.step_several([batch] * count, [rows] * count))

    compare(single, several, count, args.rounds)


def compare(single: Callable[[], None], several: Callable[[], None], updates: int, rounds: int) -> None:
    """Calls both in turns, and prints the time on the clock and of the processor for each update."""
    kinds: dict[str, Any] = {"single": single, "several": several}
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in kinds}
    for number in range(-1, rounds):  # the first round warms up
        for name in [*kinds][:: -1 if number % 2 else 1]:
            before = time.perf_counter(), time.process_time()
            kinds[name]()
            after = time.perf_counter(), time.process_time()
            if number >= 0:
                seen[name].append(tuple(1000 * (b - a) / updates for a, b in zip(before, after, strict=True)))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {updates} updates in a call, {rounds} rounds")
    for i, what in enumerate(("clock", "processor")):
        ones, others = ([times[i] for times in seen[name]] for name in ("single", "several"))
        each = [other / one for one, other in zip(ones, others, strict=True)]
        print(
            f"{what:10} {statistics.median(ones):8.1f} and {statistics.median(others):8.1f} ms, "
            f"ratio {statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
