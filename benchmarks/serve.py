"""Runs our update in its own process on request, by peers/protocol.py: python -m benchmarks.serve."""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that select what is measured; train_step shares them."""
    parser.add_argument("--size", default="size1m", help="a preset experiments/SIZE.yaml")
    parser.add_argument("--obs", choices=("proprio", "image", "shapes"), default="proprio")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or auto")
    parser.add_argument("--batch", type=int, nargs=2, default=(16, 64), metavar=("SEQUENCES", "ROWS"))
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--policy", action=argparse.BooleanOptionalAction, default=True, help="also time the policy")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings, agent.horizon=100")


def subject(args: argparse.Namespace) -> Any:
    """Builds and compiles the update selected by the arguments."""
    import yaml

    from benchmarks import measure

    pairs = (item.partition("=") for item in args.set)
    overrides = {key: yaml.safe_load(value) for key, _, value in pairs}
    config = measure.load(args.size, args.dtype, overrides)
    return measure.build(config, measure.SPECS[args.obs], tuple(args.batch))


def main() -> None:
    """Compiles, warms up, then answers requests by the protocol."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args()
    from benchmarks.peers import protocol

    answers = protocol.own_stdout()
    from benchmarks import measure

    ours = subject(args)
    protocol.time_steps(ours.step, args.warmup)
    hello = {**ours.facts, "dtype": ours.dtype, **measure.machine()}
    if args.policy:
        for envs in (1, 16):
            hello |= measure.policy_times(ours, envs)

    def last() -> dict[str, Any]:
        peak_mb = measure.device_peak_mb()  # read before the large product
        return {"device_peak_mb": peak_mb, "matmul_peak_gflops": round(measure.matmul_peak(ours.dtype), 1)}

    protocol.serve(answers, hello, ours.step, last)


if __name__ == "__main__":
    main()
