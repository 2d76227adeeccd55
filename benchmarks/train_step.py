r"""Milliseconds of a train step and a policy step, operations, compile time and memory, optionally next to a peer.

    python -m benchmarks.train_step --size size12m --obs image --json row.json
    python -m benchmarks.train_step --runs size1m:proprio:bfloat16 size12m:image:bfloat16 --json rows.json
    python -m benchmarks.train_step --size size12m --obs image --compare dreamerv3=/path/to/checkout
    python -m benchmarks.train_step --size cswm --set agent.world_model.hidden=512 --obs shapes --batch 1024 1 \
        --no-policy --compare cswm=/path/to/checkout
    python -m benchmarks.train_step --size size12m --obs image --profile trace_dir

The data are synthetic, a batch is 16 x 64 with one context row, and the default --dtype is float32. Operations are
those of matrix products and convolutions in the jaxpr after dead code elimination (operations.py); flops_per_s is at
the median time. The peak is that of a square matrix product timed in the same run: size 2048 in float32 on a CPU, size
8192 in the dtype elsewhere. Each of several --runs gets a fresh process, so that peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import rounds, serve, table

SHOWN = (
    "params", "trace_s", "compile_s", "ms_median", "ms_min", "ms_spread", "ms_pipelined", "gflops", "tflops_per_s",
    "peak_fraction", "matmul_peak_gflops", "temp_mb", "rss_mb", "device_peak_mb", "policy1_ms_median",
    "policy16_ms_median", "xla_flags",
)  # fmt: skip


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measures the combinations on the command line, prints the results, and writes them to --json."""
    args = parse(argv)
    rows: list[dict[str, Any]] = []
    for run in args.runs or [None]:
        if run:
            rows += in_fresh_process(run, args)
        else:
            rows.append(compare(args) if args.compare else measure_one(args))
        if args.json:  # after each run, so that an interruption loses nothing
            table.write(Path(args.json), rows)
    if len(rows) < len(args.runs or ()):
        raise SystemExit(f"{len(args.runs) - len(rows)} of {len(args.runs)} runs failed")
    return rows


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    serve.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=10, help="timed updates; with --compare, per round")
    parser.add_argument("--runs", nargs="+", metavar="SIZE:OBS[:DTYPE]", help="each in a fresh process")
    parser.add_argument("--json", metavar="FILE", help="file for all results")
    parser.add_argument("--compare", metavar="PEER=CHECKOUT", help="alternate with a peer of benchmarks/peers/")
    parser.add_argument("--peer-python", default="", help="the peer's interpreter; default: this one")
    parser.add_argument("--peer-args", default="", help="further arguments of the peer's adapter, as one string")
    parser.add_argument("--rounds", type=int, default=5, help="rounds with --compare")
    parser.add_argument("--profile", metavar="DIR", help="trace a few updates and print the ten slowest operations")
    return parser.parse_args(argv)


def measure_one(args: argparse.Namespace) -> dict[str, Any]:
    """Measures one row in this process."""
    from benchmarks import measure
    from benchmarks.peers.protocol import peak_rss_mb

    ours = serve.subject(args)
    row = {**named(args), "dtype": ours.dtype, **ours.facts}
    row |= measure.update_times(ours, args.steps, args.warmup)
    if args.policy:
        for envs in (1, 16):
            row |= measure.policy_times(ours, envs)
    row |= {"rss_mb": peak_rss_mb(), "device_peak_mb": measure.device_peak_mb()}
    row |= {"matmul_peak_gflops": round(measure.matmul_peak(ours.dtype), 1), **measure.machine()}
    row |= achieved(row, row["matmul_peak_gflops"])
    show(title(row), row)
    if args.profile:
        from benchmarks import trace

        trace.profile(ours, args.profile)
    return row


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measures one row and, under "peer", the peer's row: both alternately, each in its own process."""
    peer, _, checkout = args.compare.partition("=")
    words = ["--size", args.size, "--obs", args.obs, "--dtype", args.dtype, "--warmup", str(args.warmup)]
    words += ["--batch", *map(str, args.batch), "--policy" if args.policy else "--no-policy"]
    commands = {
        "ours": [sys.executable, "-m", "benchmarks.serve", *words, *(["--set", *args.set] if args.set else [])],
        "peer": rounds.peer_command(peer, args.peer_python, checkout, [*words, *args.peer_args.split()]),
    }
    both = rounds.alternate(commands, args.steps, args.rounds)
    ratio = rounds.ratios(both["ours"], both["peer"])
    peak = both["ours"].get("matmul_peak_gflops")
    for side in both.values():
        side |= achieved(side, peak)
    row = {**named(args), **both["ours"], "peer": {"name": peer, **both["peer"]}, "ratio": ratio}
    show(title(row) + ", ours", row)
    show(title(row) + f", {peer}", row["peer"])
    low, high = ratio["rounds"]
    print(f"{peer} / ours: median {ratio['median']:.2f}, min {ratio['min']:.2f}, rounds {low:.2f} to {high:.2f}")
    return row


def in_fresh_process(run: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the rows of one SIZE:OBS[:DTYPE]. Reports and skips a run that fails, so that the others are kept."""
    size, obs, dtype = (run.split(":") + [args.dtype])[:3]
    words = ["--size", size, "--obs", obs, "--dtype", dtype, "--steps", str(args.steps), "--rounds", str(args.rounds)]
    words += ["--warmup", str(args.warmup), "--batch", *map(str, args.batch)]
    words += ["--policy" if args.policy else "--no-policy"] + (["--set", *args.set] if args.set else [])
    for name in ("compare", "peer_python", "peer_args"):
        words += [f"--{name.replace('_', '-')}={getattr(args, name)}"] if getattr(args, name) else []
    if args.profile:
        words += ["--profile", str(Path(args.profile) / run.replace(":", "_"))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.train_step", *words, "--json", str(file)]
        code = subprocess.run(command, cwd=rounds.ROOT, env=os.environ).returncode
        if code:
            print(f"{run} ended with code {code}", file=sys.stderr)
            return
        yield from json.loads(file.read_text())


def named(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a row that name what was measured."""
    return {"size": args.size, "obs": args.obs, "dtype": args.dtype, "batch": list(args.batch), "set": list(args.set)}


def title(row: dict[str, Any]) -> str:
    """A one-line title of a row."""
    return f"{row['size']} {row['obs']} {row['dtype']} on {row.get('device')}, jax {row.get('jax')}"


def achieved(row: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """Operations per second at the median time, and their share of `peak`, which is in GFLOP/s."""
    if not row.get("flops"):
        return {}
    rate = row["flops"] / row["ms_median"] * 1e3
    shares = {"peak_fraction": round(rate / 1e9 / peak, 4)} if peak else {}
    gflops, tflops_per_s = round(row["flops"] / 1e9, 2), round(rate / 1e12, 4)
    return {"gflops": gflops, "flops_per_s": rate, "tflops_per_s": tflops_per_s, **shares}


def show(heading: str, row: dict[str, Any]) -> None:
    """Prints a row, one fact per line."""
    print(heading)
    for key in SHOWN:
        if row.get(key) not in (None, ""):
            print(f"  {key:<20} {row[key]}", flush=True)


if __name__ == "__main__":
    main()
