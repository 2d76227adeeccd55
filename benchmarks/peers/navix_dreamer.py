"""Trains the Dreamer of epignatelli/navix (tested at 03b056a) in its own interpreter; imports nothing from dreamer.

    PEER_PYTHON benchmarks/peers/navix_dreamer.py --checkout PATH --env Navix-Empty-5x5-v0 --seeds 3 --out navix.csv

Needs rlax and distrax beside navix. Widths, batches, environments and updates per step are set to those of our
`experiments/results/navix_empty/small.yaml` (`--own` keeps its own); everything else is its own. The agent sees the
7 x 7 cells ahead, as ours does. The program collects `num_steps` rows of each environment, then makes all its updates.
The table holds, for each such block and seed, the share of the ended episodes that reached the goal. These are episodes
of collection, whose actions are drawn from the policy mixed with 5 % of uniform ones.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

LIKE_OURS = {
    "num_envs": 8, "num_steps": 128, "num_model_updates": 128, "num_actor_updates": 128, "num_critic_updates": 128,
    "batch_size": 8, "seq_len": 32, "recurrent_size": 128, "hidden_size": 64, "embed_size": 64, "num_latents": 16,
    "num_classes": 8, "bins": 255,
}  # fmt: skip


def main() -> None:
    """Trains all seeds in one program, block by block, and writes a row for each block and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", required=True, help="folder of navix's source")
    parser.add_argument("--env", default="Navix-Empty-5x5-v0")
    parser.add_argument("--env-steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--own", action="store_true", help="keep its own widths, batches and updates")
    parser.add_argument("--out", default="navix.csv")
    args = parser.parse_args()
    sys.path.insert(0, args.checkout)
    import jax

    agent, create = make(args)
    states = jax.vmap(create)(jax.vmap(jax.random.key)(jax.numpy.arange(args.seeds)))
    block = agent.hparams.num_steps * agent.hparams.num_envs
    before = time.perf_counter()
    # One seed after the other is fastest on a CPU.
    update = jax.jit(lambda states: jax.lax.map(lambda state: agent.update(state, None), states))
    program = update.lower(states).compile()
    print(f"{args.env}: {args.seeds} seeds, blocks of {block} steps, compiled in {time.perf_counter() - before:.1f} s")
    rows, before = [], time.perf_counter()
    for number in range(1, math.ceil(args.env_steps / block) + 1):
        states, logs = jax.block_until_ready(program(states))
        for seed in range(args.seeds):
            done = logs["done_mask"][seed]
            won = float((done & (logs["returns"][seed] == 1)).sum())
            rows.append((seed, number * block, won / max(int(done.sum()), 1), int(done.sum())))
        now = [f"{share:.2f}" for _, _, share, _ in rows[-args.seeds :]]
        print(f"{number * block} steps: {' '.join(now)}, {time.perf_counter() - before:.0f} s", flush=True)
    with Path(args.out).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("seed", "env_steps", "return", "episodes"), *rows])


def make(args: argparse.Namespace) -> tuple[Any, Any]:
    """Returns their agent, and a function that makes its state from a key."""
    import navix
    import numpy as np
    from navix.agents import Dreamer, DreamerActor, DreamerCritic, DreamerHparams, WorldModel
    from navix.agents.dreamer import DreamerTrainState

    settings = DreamerHparams(budget=args.env_steps, **({} if args.own else LIKE_OURS))
    env = navix.make(args.env, max_steps=100, observation_fn=navix.observations.symbolic_first_person)
    actions = len(env.action_set)
    world = WorldModel(obs_dim=int(np.prod(env.observation_space.shape)), act_dim=actions, hparams=settings)
    actor = DreamerActor(act_dim=actions, hidden=settings.hidden_size)
    critic = DreamerCritic(
        hidden=settings.hidden_size, bins=settings.bins, low=settings.bins_low, high=settings.bins_high
    )
    agent = Dreamer(hparams=settings, env=env, world=world, actor=actor, critic=critic)
    return agent, lambda key: DreamerTrainState.create(key, settings, env, world, actor, critic)


if __name__ == "__main__":
    main()
