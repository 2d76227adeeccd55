"""Traces a few updates with the profiler and lists the most expensive operations by name.

On an accelerator the events are its kernels (the lines "Stream"), on a CPU the operations of the compiled program on
each thread. The time of a called operation is not counted for its caller. The trace also opens in Perfetto and xprof.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

OUTSIDE = re.compile(r"^(while|conditional|call)([._-]?\d+)*$")  # these only wait for the operations they call
NUMBER = re.compile(r"([._]\d+)+$")


class Event(NamedTuple):
    """One run of one operation. name: of the kernel or operation | op: of the HLO operation | start, ns | line."""

    name: str
    op: str
    start: float
    ns: float
    line: str


def profile(subject: Any, folder: str, updates: int = 3, rows: int = 10) -> dict[str, Any]:
    """Traces `updates` updates of a warm subject into `folder`; prints the slowest operations, also in summary.json."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # tracing thousands of Python calls would slow the update
    with jax.profiler.trace(folder, profiler_options=options):
        for _ in range(updates):
            subject.step()
    newest = max(Path(folder).glob("plugins/profile/*/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    result = digest(list(events(newest)), updates, sources(subject.update.as_text()))
    (Path(folder) / "summary.json").write_text(json.dumps(result, indent=1) + "\n")
    print_digest(result, rows)
    return result


def events(path: Path) -> Iterator[Event]:
    """The operations in an xplane.pb, without markers and host calls."""
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    device = [plane for plane in planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
    for plane in device or planes:
        lines = list(plane.lines)
        # Lines other than streams repeat the same time under the names of modules and steps.
        streams = [line for line in lines if line.name.startswith("Stream")] if device else lines
        for line in streams or [line for line in lines if line.name == "XLA Ops"]:
            for event in line.events:
                op = str(dict(event.stats).get("hlo_op", ""))
                if (device or op) and not OUTSIDE.match(op) and event.duration_ns > 0:
                    yield Event(event.name, op, event.start_ns, event.duration_ns, f"{plane.name} {line.name}")


def own_times(found: Iterable[Event]) -> Iterator[tuple[Event, float]]:
    """Each event with its nanoseconds, without those of the events inside it on the same line."""
    lines: dict[str, list[Event]] = collections.defaultdict(list)
    for event in found:
        lines[event.line].append(event)
    for line in lines.values():
        open_events: list[list[Any]] = []
        for event in sorted(line, key=lambda e: (e.start, -e.ns)):
            while open_events and open_events[-1][0].start + open_events[-1][0].ns <= event.start:
                yield tuple(open_events.pop())  # type: ignore[misc]
            if open_events:
                open_events[-1][1] -= event.ns
            open_events.append([event, event.ns])
        yield from (tuple(one) for one in open_events)  # type: ignore[misc]


def busy_ns(found: Iterable[Event]) -> float:
    """Nanoseconds in which at least one operation ran."""
    total = end = 0.0
    for event in sorted(found, key=lambda e: e.start):
        total += max(0.0, event.start + event.ns - max(end, event.start))
        end = max(end, event.start + event.ns)
    return total


def digest(found: list[Event], updates: int, source: dict[str, str]) -> dict[str, Any]:
    """Milliseconds per update by operation and by kind (the name without its number), slowest first."""
    if not found:
        return {"events": 0, "operations": [], "kinds": []}
    spent: dict[str, collections.Counter[str]] = {"operations": collections.Counter(), "kinds": collections.Counter()}
    times: collections.Counter[str] = collections.Counter()
    ops = {}
    for event, ns in own_times(found):
        kind = NUMBER.sub("", event.name)
        spent["operations"][event.name] += ns  # type: ignore[assignment]
        spent["kinds"][kind] += ns  # type: ignore[assignment]
        times[event.name] += 1
        times["kind " + kind] += 1
        ops[event.name] = event.op or event.name
    total = sum(spent["operations"].values())
    span = max(e.start + e.ns for e in found) - min(e.start for e in found)

    def table(which: str, prefix: str) -> list[dict[str, Any]]:
        return [
            {"name": name, "ms": ns / 1e6 / updates, "share": ns / total, "runs": times[prefix + name] / updates,
             "source": source.get(ops.get(name, name), "") if not prefix else ""}
            for name, ns in spent[which].most_common(50)
        ]  # fmt: skip

    return {
        "events": len(found) / updates, "ms": total / 1e6 / updates, "busy_ms": busy_ns(found) / 1e6 / updates,
        "span_ms": span / 1e6 / updates, "operations": table("operations", ""), "kinds": table("kinds", "kind "),
    }  # fmt: skip


def sources(hlo: str) -> dict[str, str]:
    """{name of an HLO operation, or of its kernel: the operation in JAX that it comes from}."""
    found = {}
    for name, source in re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', hlo, re.M):
        found[name] = found[re.sub(r"[.-]", "_", name)] = source
    return found


def print_digest(result: dict[str, Any], rows: int) -> None:
    """Prints the first rows of both tables."""
    if not result["events"]:
        print("no operations in the trace")
        return
    print(f"{result['events']:.0f} operations per update in {result['ms']:.2f} ms, {result['busy_ms']:.2f} ms of "
          f"{result['span_ms']:.2f} with at least one running")  # fmt: skip
    for which in ("operations", "kinds"):
        print(f"  {'ms':>9} {'share':>6} {'runs':>6}  {which}")
        for row in result[which][:rows]:
            tail = "/".join(row["source"].split("/")[-4:])
            print(f"  {row['ms']:9.3f} {row['share']:6.1%} {row['runs']:6.0f}  {row['name'][:60]}  {tail[:70]}")
