"""Counts the communication of an update between devices: the collectives of the compiled program.

    python -m benchmarks.scaling --size size1m --devices 1 2 4 8

Each row is compiled in its own process, for the given number of virtual devices of this CPU, or with --tpu v5e:2x4 and
the package libtpu for TPUs that need not exist; nothing is run. The bytes are those of a collective's result times the
trip counts of the loops around it. Prints the rows of a Markdown table; SCALING.md holds the results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks import hlo

ROOT = Path(__file__).parents[1]
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """kind: of KINDS | nbytes: of one result, per device | times: per update | depth: number of loops around it
    source: the operation in JAX"""

    kind: str
    nbytes: int
    times: int
    depth: int
    source: str


def collectives(text: str) -> list[Collective]:
    """All collectives in the text of a compiled program. A loop with an unknown trip count counts once."""
    bodies = hlo.computations(text)
    found: list[Collective] = []

    pieces = set()  # of collectives that a TPU splits, in a loop for example, to overlap them with other work

    def walk(name: str, times: int, depth: int) -> None:
        for line in bodies[name]:
            piece = re.search(r"channel_id=(\d+).*chain_id=", line)
            if piece and piece[1] in pieces:
                continue
            kind = re.search(rf"\s({'|'.join(KINDS)})(?:-start)?\(", line)
            if kind:
                source = re.search(r'op_name="([^"]*)"', line)
                result = line[: kind.start()].partition("=")[2]
                if piece:
                    pieces.add(piece[1])
                    times_here, depth_here = 1, 0
                else:
                    times_here, depth_here = times, depth
                source_here = source[1] if source else ""
                found.append(Collective(kind[1], hlo.nbytes(result), times_here, depth_here, source_here))
            loop = re.search(r"body=%?([\w.\-]+)", line)
            if loop:
                walk(loop[1], times * hlo.trips(bodies, line), depth + 1)
            for called in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", line):
                if not kind:
                    walk(called, times, depth)
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            for branch in re.findall(r"[\w.\-]+", branches[1]) if branches else []:
                walk(branch, times, depth)

    walk(hlo.entry(bodies), 1, 0)
    return found


def wire(one: Collective, group: int) -> float:
    """Bytes that each device sends for one collective of `group` devices in a ring."""
    share = (group - 1) / group
    factor = {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": group * share, "all-to-all": share}
    return one.nbytes * factor.get(one.kind, 1.0)


def count_collectives(size: str, kind: str, count: int, fsdp: int, batch: tuple[int, int], tpu: str) -> dict:
    """Compiles the update for `count` devices and counts its collectives; the process must have that many devices."""
    import jax
    from jax.experimental import topologies

    from benchmarks import measure
    from dreamer import agent as agents
    from dreamer.runtime.devices import mesh as meshes
    from dreamer.runtime.devices import programs

    spec = measure.SPECS[kind]
    agent = agents.make(measure.load(size, "bfloat16" if tpu else "float32", {}), spec)
    chips = topologies.get_topology_desc(tpu, "tpu").devices if tpu else jax.devices()
    mesh = meshes.make_mesh(list(chips)[:count], fsdp)
    form = jax.eval_shape(agent.init, jax.random.key(0))
    compiled = programs.jit_update(agent, mesh).lower(form, measure.make_batch(spec, agent, *batch)).compile()
    text = compiled.as_text()
    if path := os.environ.get("SCALING_HLO"):
        Path(path).write_text(text)
    memory = compiled.memory_analysis()
    return {
        "params": sum(math.prod(x.shape) for x in jax.tree.leaves(form.params)),
        "state_mb": memory.argument_size_in_bytes / 2**20,
        "temp_mb": memory.temp_size_in_bytes / 2**20,
        "collectives": [one._asdict() for one in collectives(text)],
    }


def main() -> None:
    """Measures every combination, each in its own process, or with --child only one in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="size1m")
    parser.add_argument("--kind", default="proprio", choices=("proprio", "image"))
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 2, 4, 8))
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 64))
    parser.add_argument("--tpu", default="", help="a topology to compile for, such as v5e:2x4; needs libtpu but no TPU")
    parser.add_argument("--child", type=int, nargs=2, metavar=("COUNT", "FSDP"))
    args = parser.parse_args()
    if args.child:
        print(json.dumps(count_collectives(args.size, args.kind, *args.child, tuple(args.batch), args.tpu)))
        return
    for count in args.devices:
        for fsdp in sorted({1, count}):
            print(row(count, fsdp, child(sys.argv[1:], count, fsdp)), flush=True)


def child(argv: list[str], count: int, fsdp: int) -> dict:
    """Runs `count_collectives` in a process with `count` virtual devices."""
    flags = f"--xla_force_host_platform_device_count={count} --xla_llvm_disable_expensive_passes=true"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    env |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    command = [sys.executable, "-m", "benchmarks.scaling", *argv, "--child", str(count), str(fsdp)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(count: int, fsdp: int, found: dict) -> str:
    """One line of the table."""
    ones = [Collective(**one) for one in found["collectives"]]
    cells = [str(count), str(fsdp), f"{found['params']:,}"]
    for kind in KINDS:
        of = [one for one in ones if one.kind == kind]
        mb = sum(one.nbytes * one.times for one in of) / 1e6
        inside = sum(one.nbytes * one.times for one in of if one.depth) / 1e6
        cells.append(f"{mb:.3f} ({sum(one.times for one in of)}; loops {inside:.3f})" if of else "0")
    sent = sum(wire(one, count) * one.times for one in ones) / 1e6
    paper = found["params"] * 4 * 2 * (count - 1) / count / 1e6
    cells += [f"{sent:.2f}", f"{paper:.2f}", f"{found['state_mb']:.1f}", f"{found['temp_mb']:.0f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
