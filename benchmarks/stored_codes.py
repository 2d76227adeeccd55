"""Updates of M of `vae_mdn_rnn` that encode images beside updates that read stored codes, in turns in one process.

    python -m benchmarks.stored_codes --batches 4x32 8x32 32x32

The network is that of CarRacing. The order is reversed in every second round. Ratio: images divided by codes.
"""

from __future__ import annotations

import argparse
import os
import statistics

import jax
import jax.numpy as jnp

from benchmarks import measure
from benchmarks.peers.protocol import time_steps
from dreamer.interfaces import Batch
from dreamer.spaces import Action, Space, Spec
from dreamer.world_models import vae_mdn_rnn

SPEC = Spec({"image": Space((64, 64, 3), "uint8")}, Action(continuous=3))
M_ONLY = {"agent.world_model.vae_updates": 0, "agent.world_model.rnn_updates": 1_000_000}


def with_codes(subject: measure.Subject) -> Batch:
    """Returns the subject's batch with codes that name the subject's encoder, so that M does not encode again."""
    encoder = subject.batch.latent["encoder"]
    name = vae_mdn_rnn.fingerprint(subject.state.params["world_model"]["vae"]["enc"])
    latent = {**subject.batch.latent, "encoder": jax.device_put(jnp.full_like(encoder, name), encoder.sharding)}
    return subject.batch._replace(latent=latent)


def measure_batch(size: tuple[int, int], rounds: int, updates: int) -> None:
    """Prints milliseconds of an update with a batch of `size`, from images and from codes, and their ratio."""
    config = measure.load("world_models_2018", "float32", M_ONLY)
    subject = measure.build(config, SPEC, size)
    batches = {"images": subject.batch, "codes": with_codes(subject)}
    seen: dict[str, list[float]] = {name: [] for name in batches}
    for number in range(-1, rounds):  # the first round warms up
        for name in [*batches][:: -1 if number % 2 else 1]:
            subject.batch = batches[name]
            median = statistics.median(time_steps(subject.step, updates))
            if number >= 0:
                seen[name].append(median)
    ratios = [a / b for a, b in zip(seen["images"], seen["codes"], strict=True)]
    images, codes = (statistics.median(times) for times in seen.values())
    print(
        f"{size[0]} x {size[1]}: {images:.1f} ms from images, {codes:.1f} ms from codes, "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True,
    )  # fmt: skip


def main() -> None:
    """Measures each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="+", default=["4x32", "8x32", "32x32"], metavar="BxT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=5, help="in a round, of each kind")
    args = parser.parse_args()
    print(f"{len(os.sched_getaffinity(0))} cores, {args.rounds} rounds of {args.updates} updates of each kind")
    for batch in args.batches:
        rows, length = map(int, batch.split("x"))
        measure_batch((rows, length), args.rounds, args.updates)


if __name__ == "__main__":
    main()
