"""The loop on the device: beside the host's loop, and with many members in one program.

    python -m benchmarks.fused loops --rounds 3            env steps per second of both loops, whole runs in turns
    python -m benchmarks.fused members --sizes 1 4 16      milliseconds per member and update, memory, compile time
    python -m benchmarks.fused rows --copies 4 64 1024     env steps per second of acting alone, inside the program

The agent is that of the quickstart. `--env` names any environment written in JAX.
"""

from __future__ import annotations

import argparse
import statistics
import time
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

import dreamer
from benchmarks import run_rate
from benchmarks.rounds import ROOT
from dreamer import agent as agents
from dreamer import plugins
from dreamer.interfaces import Agent, JaxEnv
from dreamer.runtime.fused import envs as environments
from dreamer.runtime.fused import loop as fused
from dreamer.runtime.fused import population
from dreamer.runtime.fused.loop import Loop
from dreamer.runtime.fused.ring import Ring, Sizes
from dreamer.runtime.replay import columns

ROWS = 2048  # of a ring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("loops", "members", "rows"))
    parser.add_argument("--env", default="jax_probes:both")
    parser.add_argument("--preset", nargs="*", default=["quickstart"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--env-steps", type=int, default=4000, help="of each run of loops")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--copies", type=int, nargs="*", default=[4, 64, 1024])
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, env {args.env}, presets {' '.join(args.preset)}, {args.rounds} rounds")
    {"loops": loops, "members": members, "rows": rows}[args.what](args)


def loops(args: argparse.Namespace) -> None:
    """Prints the rates of whole runs with the loop on the host and on the device, in turns."""
    words = [*args.preset, "--env", args.env, "--env-steps", str(args.env_steps)]
    rates: dict[str, list[float]] = {"device": [], "host": []}
    for number in range(args.rounds):
        for name in [*rates][:: 1 if number % 2 else -1]:
            rates[name].append(run_rate.rate(ROOT, [*words, "--loop", name]))
    ratios = [one / other for one, other in zip(*rates.values(), strict=True)]
    for name, found in rates.items():
        print(f"{name:8} {statistics.median(found):8.1f} env steps/s")
    print(f"ratio    {statistics.median(ratios):8.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def members(args: argparse.Namespace) -> None:
    """Prints what a member costs, for each number of members and both ways of running them."""
    config, env, agent = parts(args)
    size = config.replay
    rate = Fraction(1, config.workers.envs)  # one update a turn
    for count in args.sizes:
        for together in dict.fromkeys((1, count)):
            sizes = Sizes(config.workers.envs, ROWS, size.context, size.batch_length)
            run, begin = made(agent, env, fused.Plan(sizes, size.batch_size, rate, size.batch_size * size.batch_length))
            loop = population.stack([begin(seed) for seed in range(count)])
            before = time.perf_counter()
            program: Any = jax.jit(population.make_population(run, count, together), donate_argnums=0)
            program = program.lower(loop, jnp.int32(1)).compile()
            compiled = time.perf_counter() - before
            loop, report = jax.block_until_ready(program(loop, jnp.int32(150)))  # until training has started
            times = []
            for _ in range(args.rounds):
                before = time.perf_counter()
                loop, report = jax.block_until_ready(program(loop, jnp.int32(20)))
                times.append(1000 * (time.perf_counter() - before) / (count * int(report.updates[0])))
            analysis = program.memory_analysis()
            print(
                f"{count:3} members, {together:3} together: {statistics.median(times):7.1f} ms per member and update "
                f"({min(times):.1f} to {max(times):.1f}), {analysis.temp_size_in_bytes / 1e6:7.1f} MB temporaries, "
                f"{analysis.argument_size_in_bytes / 1e6:7.1f} MB state and rings, compiled in {compiled:.1f} s",
                flush=True,
            )


def rows(args: argparse.Namespace) -> None:
    """Prints the rate of acting, stepping and storing without updates, for each number of environments."""
    config, env, agent = parts(args)
    for copies in args.copies:
        sizes = Sizes(copies, ROWS, config.replay.context, config.replay.batch_length)
        run, begin = made(agent, env, fused.Plan(sizes, config.replay.batch_size, Fraction(0), 1))
        program: Any = jax.jit(run, donate_argnums=0)
        loop, _ = jax.block_until_ready(program(begin(0), jnp.int32(10)))
        turns, found = max(20, 20_000 // copies), []
        for _ in range(args.rounds):
            before = time.perf_counter()
            loop, _ = jax.block_until_ready(program(loop, jnp.int32(turns)))
            found.append(turns * copies / (time.perf_counter() - before))
        spread = f"({min(found):,.0f} to {max(found):,.0f})"
        print(f"{copies:5} copies: {statistics.median(found):12,.0f} env steps/s {spread}", flush=True)


def parts(args: argparse.Namespace) -> tuple[Any, JaxEnv, Agent]:
    """Returns the config, the environment and the agent of the presets."""
    config = dreamer.load_config(*args.preset, overrides={"env": args.env})
    env = plugins.make_jax_env(args.env)
    if env is None:
        raise SystemExit(f"{args.env} is not written in JAX")
    return config, env, agents.make(config.agent, env.spec)


def made(agent: Agent, env: JaxEnv, plan: fused.Plan) -> tuple[Any, Any]:
    """Returns the function of the loop, and a function seed -> Loop before the first turn."""
    functions, streams = environments.make(env), plan.sizes.streams
    spaces = columns.columns_of(env.spec, agent.storage)
    init: Any = jax.jit(agent.init)

    def begin(seed: int) -> Loop:
        key = jax.random.key(seed)
        held = {k: jnp.zeros((streams, ROWS, *s.shape), columns.dtype_of(s)) for k, s in spaces.items()}
        envs = functions.begin(environments.env_keys(seed + jnp.arange(streams, dtype=jnp.uint32)))
        keys = fused.Keys(jax.random.fold_in(key, 1), jax.random.fold_in(key, 2))
        episodes = fused.Episodes(jnp.zeros(streams), jnp.zeros(streams, jnp.int32))
        return Loop(
            keys, init(key), Ring(held, jnp.int32(0), jnp.int32(0)), envs, agent.initial_carry(streams), jnp.int32(0),
            episodes, jnp.bool_(False), jnp.int32(0),
        )  # fmt: skip

    return fused.make_run(agent, env.spec, functions, plan), begin


if __name__ == "__main__":
    main()
