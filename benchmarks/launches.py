"""Counts the kernel launches of an update on a GPU, from the compiled program; no GPU is needed.

    pip install "jax[cuda13]"
    JAX_PLATFORMS=cpu python -m benchmarks.launches --size size1m --obs proprio --dtype bfloat16 [--list]

Each kernel, copy and library call counts once per trip of the loops around it. Their number bounds the speed of a small
update: on an H200 a launch takes about two microseconds, however little it does. Nothing is run or autotuned: on a real
device XLA chooses its matrix products by timing them, so a few launches differ there.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from typing import Any, NamedTuple

from benchmarks import hlo, serve

# The description of the device by CUDA.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")
NOTHING = {"bitcast", "get-tuple-element", "tuple", "parameter", "constant", "after-all", "copy-done", "partition-id"}


class Launch(NamedTuple):
    """kind: fusion, custom-call, copy .. | name, result: in the program | loop: "" outside of loops
    times: launches per update | source: the operation in JAX"""

    kind: str
    name: str
    result: str
    loop: str
    times: int
    source: str


def launches(text: str) -> list[Launch]:
    """All launches in the text of a compiled program, except those in branches, which may not be taken."""
    bodies = hlo.computations(text)
    found: list[Launch] = []

    def walk(name: str, loop: str, times: int) -> None:
        for line in bodies[name]:
            if not (instruction := INSTRUCTION.match(line)) or instruction[3] in NOTHING:
                continue
            called = re.search(r"(?:body|to_apply|calls)=%?([\w.\-]+)", line)
            if instruction[3] == "while":
                walk(called[1], called[1], times * hlo.trips(bodies, line))
            elif instruction[3] in ("call", "async-start"):
                walk(called[1], loop, times)
            else:
                source = re.search(r'op_name="([^"]*)"', line)
                result = re.sub(r"\{[^}]*\}", "", instruction[2])
                found.append(Launch(instruction[3], instruction[1], result, loop, times, source[1] if source else ""))

    walk(hlo.entry(bodies), "", 1)
    return found


def compile_for(args: argparse.Namespace, target: str = H100) -> str:
    """Compiles the update selected by the arguments of `serve` and returns its text. Raises ImportError without CUDA.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from benchmarks import measure
    from dreamer import agent as agents
    from dreamer.runtime.devices import mesh as meshes
    from dreamer.runtime.devices import programs

    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=target, topology="1x1x1"
        )
    except Exception as error:
        raise ImportError("programs for NVIDIA GPUs need a plugin of jax: pip install 'jax[cuda13]'") from error
    agent = agents.make(measure.load(args.size, args.dtype, {}), measure.SPECS[args.obs])
    mesh = meshes.make_mesh(topology.devices[:1])

    def batch() -> Any:
        return jax.tree.map(jnp.asarray, measure.make_batch(measure.SPECS[args.obs], agent, *args.batch))

    shapes = jax.eval_shape(agent.init, jax.random.key(0)), jax.eval_shape(batch)
    return programs.jit_update(agent, mesh).trace(*shapes).lower(lowering_platforms=("cuda",)).compile().as_text()


def main() -> None:
    """Compiles, counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    serve.add_arguments(parser)
    parser.add_argument("--list", action="store_true", help="also list each launch inside loops")
    args = parser.parse_args()
    start = time.perf_counter()
    found = launches(compile_for(args))
    print(f"{args.size} {args.obs} {args.dtype}, compiled in {time.perf_counter() - start:.0f} s: "
          f"{sum(one.times for one in found):,} launches per update")  # fmt: skip
    for loop in dict.fromkeys(one.loop for one in found):
        inside = [one for one in found if one.loop == loop]
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(one.kind for one in inside).most_common())
        print(f"  {sum(one.times for one in inside):6,}  {loop or 'outside of loops'}, {inside[0].times} x {kinds}")
        for one in inside if args.list and loop else ():
            print(f"          {one.name:45} {one.result:40} {'/'.join(one.source.split('/')[-3:])}")


if __name__ == "__main__":
    main()
