"""Writes the table of benchmarks/README.md, between two marks, from the JSON files in benchmarks/results/.

    python -m benchmarks.table [--results benchmarks/results] [--readme benchmarks/README.md]

There is one table for each machine and version of jax. A ratio is the peer's milliseconds divided by ours, measured
alternately.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- results: written by python -m benchmarks.table -->", "<!-- end of results -->"
NONE = "No results are kept yet."
HEAD = (
    "", "update ms, median (min)", "operations", "achieved, share of peak", "compile s, trace + XLA",
    "memory: host, device", "policy ms, 1 env, 16 envs", "peer: ms, ratio (rounds)",
)  # fmt: skip


def main() -> None:
    """Rewrites the marked section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    args = parser.parse_args()
    args.readme.write_text(rewrite(args.readme.read_text(), draw(read(args.results))))


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of all files of a folder, in the order of their names."""
    return [row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON with one fact per line, so that diffs are readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = [",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in row.items()) for row in rows]
    path.write_text("[\n " + ",\n ".join(f"{{\n{one}\n }}" for one in facts) + "\n]\n")


def rewrite(text: str, table: str) -> str:
    """`text` with the table between the marks. Raises ValueError unless both marks are there."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"the marks {BEGIN!r} and {END!r} are not both there")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}"


def draw(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns Markdown with a heading and a table for each machine."""
    machines: dict[str, list[str]] = {}
    for row in rows:
        machines.setdefault(machine(row), []).append(line(row))
    head = "\n".join(["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"])
    return "\n\n".join(f"**{name}**\n\n{head}\n" + "\n".join(lines) for name, lines in machines.items()) or NONE


def machine(row: Mapping[str, Any]) -> str:
    """A description of the machine and versions of a row."""
    device = row["cpu"] if row["platform"] == "cpu" else row["device"]
    return f"{device}, {row['cores']} cores; jax {row['jax']}, Python {row['python']}"


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    batch = "" if list(row["batch"]) == [16, 64] else f" {row['batch'][0]}x{row['batch'][1]}"
    extra = "".join(f" {item}" for item in row.get("set", ()))
    cells = (
        f"{row['size']} {row['obs']} {row['dtype']}{batch}{extra}",
        f"{number(row['ms_median'])} ({number(row['ms_min'])})",
        f"{number(row['flops'] / 1e9)} GFLOP",
        f"{rate(row['flops'] / row['ms_median'] / 1e6)}, {row['peak_fraction']:.0%}",
        f"{number(row['trace_s'])} + {number(row['compile_s'])}",
        memory(row),
        ", ".join(number(row[f"policy{n}_ms_median"]) for n in (1, 16) if f"policy{n}_ms_median" in row),
        peer(row),
    )
    return "| " + " | ".join(cells) + " |"


def memory(row: Mapping[str, Any]) -> str:
    """Peak memory in GB, of the device too if it reports it."""
    peaks = [row["rss_mb"]] + ([row["device_peak_mb"]] if row.get("device_peak_mb") else [])
    return ", ".join(f"{peak / 1024:.1f} GB" for peak in peaks)


def peer(row: Mapping[str, Any]) -> str:
    """Name, milliseconds and ratio of the peer."""
    if "peer" not in row:
        return ""
    ratio, low_high = row["ratio"], row["ratio"]["rounds"]
    return (f"{row['peer']['name']} {number(row['peer']['ms_median'])}, **{ratio['median']:.2f}x** "
            f"({low_high[0]:.2f} to {low_high[1]:.2f})")  # fmt: skip


def rate(gflops: float) -> str:
    """A rate in GFLOP/s, or in TFLOP/s from a thousand on."""
    return f"{number(gflops / 1e3)} TFLOP/s" if gflops >= 1e3 else f"{number(gflops)} GFLOP/s"


def number(value: float) -> str:
    """A number with three significant digits and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
